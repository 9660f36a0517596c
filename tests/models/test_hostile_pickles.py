"""Whatever a file asks for, nothing of it happens: no call, no import, no memory, no endless loop; one line of error."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from portrait_backend.cli import main
from portrait_backend.models.conversion import read_checkpoint
from portrait_backend.models.pickle_reader import PickleRefused, read_pickle
from portrait_shared.errors import PortraitDiffusionError
from tests.models.pickled_networks import eg3d_shapes, network_pickle

WATCHED = {"os.system", "subprocess.Popen", "exec", "compile", "pickle.find_class", "os.remove", "socket.connect"}
seen: list[str] = []
watching = [False]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching[0] or event not in WATCHED:
        return
    if event in ("exec", "compile"):  # of a text; modules of the standard library may be loaded meanwhile
        where = arguments[0].co_filename if event == "exec" else arguments[1]
        if where != "<string>":
            return
    seen.append(event)


sys.addaudithook(_hook)


def refused(content: bytes, tmp_path: Path, word: str = "can't be converted") -> None:
    """The file is refused with one line, quickly, and nothing that it asks for happens."""
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    before, start = set(sys.modules), time.process_time()
    seen.clear()
    watching[0] = True
    try:
        with pytest.raises(PortraitDiffusionError, match=word) as caught:
            read_checkpoint(path)
    finally:
        watching[0] = False
    assert caught.value.code == "checkpoint-unreadable" and "\n" not in str(caught.value)
    assert not seen and not (tmp_path / "marker").exists()
    assert not {name for name in set(sys.modules) - before if name.startswith(("antigravity", "this", "webbrowser"))}
    assert time.process_time() - start < 20


class Bomb:
    def __init__(self, *reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


def bombs(marker: Path) -> dict[str, object]:
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Bomb(os.system, (command,)),
        "subprocess": Bomb(subprocess.check_output, (["touch", str(marker)],)),
        "eval": Bomb(builtins.eval, (code,)),
        "exec": Bomb(builtins.exec, (code,)),
        "chain": Bomb(getattr, (Bomb(__import__, ("os",)), "system")),
        "chain of calls": Bomb(Bomb(getattr, (Bomb(__import__, ("os",)), "system")).__class__, (command,)),
        "open": Bomb(builtins.open, (str(marker), "w")),
        "torch.load": Bomb(torch.load, (io.BytesIO(pickle.dumps(1)),)),
        "setstate": Bomb(OrderedDict, (), {"__class__": Bomb(os.system, (command,))}),
    }


@pytest.mark.parametrize("name", list(bombs(Path("x"))))
@pytest.mark.parametrize("where", ["alone", "beside", "as a parameter", "in a storage", "in an archive", "as the storage"])
def test_calls_are_never_made(tmp_path: Path, name: str, where: str) -> None:
    bomb = bombs(tmp_path / "marker")[name]
    if where == "alone":
        refused(pickle.dumps(bomb), tmp_path)
    elif where == "beside":
        path = tmp_path / "beside.pkl"
        path.write_bytes(pickle.dumps({"extra": bomb, "weight": torch.ones(2)}))
        seen.clear()
        watching[0] = True
        try:
            found = read_checkpoint(path)[1]
        finally:
            watching[0] = False
        assert list(found) == ["weight"] and not seen and not (tmp_path / "marker").exists(), "the tensors are taken, the rest is not run"
    elif where == "as a parameter":
        state = {"_parameters": {"weight": bomb}, "_buffers": {}, "_modules": {}}
        refused(pickle.dumps(Bomb(torch.nn.Module, (), state)), tmp_path, "instead of a tensor")
    elif where == "in a storage":
        inner = pickle.dumps(bomb)
        storage = Bomb(torch.storage._load_from_bytes, (inner,))
        refused(pickle.dumps({"w": Bomb(torch._utils._rebuild_tensor_v2, (storage, 0, (1,), (1,), False, None))}), tmp_path)
    elif where == "as the storage":
        refused(pickle.dumps({"w": Bomb(torch._utils._rebuild_tensor_v2, (bomb, 0, (1,), (1,), False, None))}), tmp_path, "storage is")
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(bomb))
        refused(buffer.getvalue(), tmp_path)


class References(pickle.Pickler):
    """Writes chosen objects as persistent ids."""

    def __init__(self, stream: io.BytesIO, ids: dict[int, object]) -> None:
        super().__init__(stream, protocol=2)
        self.ids = ids

    def persistent_id(self, obj: Any) -> Any:
        return self.ids.get(id(obj))


def with_reference(key: object, inner: object = None) -> bytes:
    """A tensor whose storage is the persistent id `key`, in which `inner` (if given) is one again."""
    storage, stream = object(), io.BytesIO()
    ids = {id(storage): key} | ({id(inner): ("storage", "x")} if inner is not None else {})
    References(stream, ids).dump({"w": Bomb(torch._utils._rebuild_tensor_v2, (storage, 0, (2,), (1,), False, None))})
    return stream.getvalue()


def archive_of(main_pickle: bytes, **data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", main_pickle)
        for key, content in data.items():
            archive.writestr(f"archive/data/{key}", content)
    return buffer.getvalue()


NESTED = ["inner"]


@pytest.mark.parametrize(
    "key",
    [
        "a text",
        ("storage",),
        ("storage", "FloatStorage", "0", "cpu", 2),
        ("storage", torch.FloatStorage, "../../etc", "cpu", 2),
        ("storage", torch.FloatStorage, "0", "cpu", 2**50),
        ("storage", torch.FloatStorage, "0", "cpu", -1),
        ("storage", torch.FloatStorage, 0, "cpu", 2),
        ("storage", torch.FloatStorage, NESTED, "cpu", 2),
        ("storage", torch.FloatStorage, "0", "cpu", True),
        ("storage", os.system, "0", "cpu", 2),
        ("storage", torch.FloatStorage, "0", "cpu", 2, ("view", 0, 2)),
        ("module", torch.FloatStorage, "0", "cpu", 2),
    ],
    ids=str,
)
def test_references_to_storages_are_checked(tmp_path: Path, key: object) -> None:
    content = with_reference(key, NESTED if isinstance(key, tuple) and NESTED in key else None)
    refused(archive_of(content, **{"0": b"\0" * 8}), tmp_path)
    refused(content, tmp_path)


def operations(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


SIZE8, SIZE4 = (2**40).to_bytes(8, "little"), (2**32 - 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    "content",
    [
        operations(b"\x8e" + SIZE8),
        operations(b"\x96" + SIZE8),
        operations(b"\x8d" + SIZE8),
        operations(b"B" + SIZE4),
        operations(b"X" + SIZE4),
        operations(b"\x8b" + (2**31 - 1).to_bytes(4, "little")),
        operations(b"I" + b"9" * 100_000 + b"\n"),
        operations(b"N" * 1000),
        operations(b"q\x05"),
        operations(b"h\x05"),
        operations(b"t"),
        operations(b"("),
        operations(b"R"),
        operations(b"((("),
        operations(b"]]s"),
        operations(b"cos\nsystem\n}b"),
        operations(b"cos\nsystem\nN\x86b"),
        operations(b"\x82\x01"),
        operations(b"\x97"),
        operations(b"}((N\x85\x85NuN"),
        operations(b"(l" * 10_000),
        b"",
        b"\x80\x04",
        b"\x80\xff",
        b"PK\x03\x04 no archive",
        b"\x00" * 100,
    ],
    ids=lambda content: repr(content[:12]),
)
def test_damaged_and_oversized_streams_are_refused(tmp_path: Path, content: bytes) -> None:
    refused(content, tmp_path)


def test_the_watch_sees_what_it_should() -> None:
    seen.clear()
    watching[0] = True
    try:
        eval("1 + 1")
        pickle.loads(pickle.dumps(os.getcwd))  # noqa: S301 - the very thing that must be noticed
    finally:
        watching[0] = False
    assert {"compile", "exec", "pickle.find_class"} <= set(seen)


def test_a_far_memo_index_takes_no_memory() -> None:
    content = operations(b"N", b"r" + SIZE4, b"j" + SIZE4, b"\x86")
    assert read_pickle(io.BytesIO(content)) == (None, None)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((2**40,), (0,), 0),
        ((2,), (2**40,), 0),
        ((2,), (1,), 2**40),
        ((13,), (1,), 0),
        ((-1,), (1,), 0),
        ((2, 2), (1,), 0),
        ((2,), (-1,), 1),
        ("ab", (1,), 0),
    ],
)
def test_tensors_that_do_not_fit_their_storage(tmp_path: Path, shape: object, stride: object, offset: int) -> None:
    storage = Bomb(*torch.ones(3).untyped_storage().__reduce__())
    refused(pickle.dumps({"w": Bomb(torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, None))}), tmp_path)


def test_doubling_structures_end(tmp_path: Path) -> None:
    key: object = ()
    for _ in range(64):
        key = (key, key)
    tuples = pickle.dumps([key])
    refused(tuples.replace(b"]", b"}", 1).replace(b"a.", b"Ns."), tmp_path)
    module: object = Bomb(torch.nn.Module, (), {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(40):
        module = Bomb(torch.nn.Module, (), {"_parameters": {}, "_buffers": {}, "_modules": {"a": module, "b": module}})
    refused(pickle.dumps(module), tmp_path, "modules")
    cyclic: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    cyclic["_modules"]["self"] = Bomb(torch.nn.Module, (), cyclic)
    refused(pickle.dumps(cyclic["_modules"]["self"]), tmp_path, "nested")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", with_reference(("storage", torch.FloatStorage, "0", "cpu", 2**20)))
        archive.writestr("archive/data/0", bytes(2**22))
    refused(buffer.getvalue(), tmp_path, "compressed")


VALID = network_pickle({k: v for k, v in eg3d_shapes().items() if "decoder" in k or "const" in k})[0]


@given(st.data())
@hypothesis_settings(max_examples=60)
def test_cut_and_flipped_files_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(VALID[: data.draw(st.integers(0, len(VALID)))])
    for position in data.draw(st.lists(st.integers(0, max(len(content) - 1, 0)), max_size=4)):
        if content:
            content[position] = data.draw(st.integers(0, 255))
    try:
        read_pickle(io.BytesIO(bytes(content)))
    except PickleRefused as error:
        assert str(error)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h.pkl").write_bytes(pickle.dumps(Bomb(os.system, (f"touch {tmp_path / 'marker'}",))))
    assert main(["models", "convert", str(tmp_path / "h.pkl"), "--as", "eg3d", "-o", str(tmp_path / "o.safetensors")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error[checkpoint-unreadable]: ") and err.count("\n") == 1 and "system" in err
    assert [p.name for p in tmp_path.iterdir()] == ["h.pkl"]
