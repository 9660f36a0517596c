"""Work on models as the panel does it, with the real program: from a folder, from an imitated hub, refused, failing, cancelled."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from blender_addon.core.folders import Folders
from blender_addon.core.log import Log
from blender_addon.core.manager import Backend, Plan
from blender_addon.core.model_work import ModelWork, Transfer, answer, arguments, read_transfer, told
from blender_addon.core.process import Launch
from portrait_shared.errors import PortraitDiffusionError
from tests.blender import tiny_mirror
from tests.blender.tiny_mirror import FILES, HEAVY, MODEL
from tests.models.imitation import COMMIT, Imitation, serving

PROGRAM = Launch(Path(sys.executable), developer=True)
BELOW = "data/ckpt/segmentation_mask_brushnet_ckpt"
PATIENCE = 120.0


class Bench:
    """The work, and where its models lie."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        self.models = root / "models"
        folders = Folders(root / "user")
        self.work = ModelWork(folders, Log(folders.models_log), lambda: self.now)
        self.seen: list[Transfer] = []

    def do(self, action: str, accepted: bool = True, mirror: Path | None = None, model: str = MODEL) -> PortraitDiffusionError | None:
        self.work.start(PROGRAM, action, model, accepted, mirror)  # type: ignore[arg-type]
        self.finish()
        return self.work.error

    def finish(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.work.running:
            assert time.monotonic() < end
            if (now := self.work.transfer) is not None and now not in self.seen:
                self.seen.append(now)
            time.sleep(0.002)

    def there(self) -> set[str]:
        """The files below the models' folder, without locks."""
        return {p.relative_to(self.models).as_posix() for p in self.models.rglob("*") if p.is_file() and p.suffix != ".lock"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path)
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(bench.models))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return bench


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tiny_mirror.write(tmp_path / "stick")


class SlowHub(Imitation):
    """A hub whose heavy file doesn't come before `go` is set."""

    def __init__(self) -> None:
        super().__init__({f"{BELOW}/{name}": body for name, body in FILES.items()}, "space", "TencentARC/BrushNet")
        self.go, self.asked = threading.Event(), threading.Event()

    def answer(self, method: str, path: str, form: dict[str, list[str]], wanted: str) -> tuple[int, dict[str, str], bytes]:
        if method == "GET" and path.endswith(HEAVY) and not self.go.is_set():
            self.asked.set()
            self.go.wait(PATIENCE)
            return 503, {}, b""  # nobody is there to read it any more
        return super().answer(method, path, form, wanted)


def test_the_life_of_a_model(bench: Bench, mirror: Path) -> None:
    assert bench.do("download", mirror=mirror) is None
    assert bench.work.outcome == "Installed, and ready"
    assert bench.there() == {f"{MODEL}/{name}" for name in (*FILES, "model.json")}
    assert all((bench.models / MODEL / name).read_bytes() == body for name, body in FILES.items())
    last = bench.work.transfer
    assert last == Transfer("checking", HEAVY, sum(map(len, FILES.values())), sum(map(len, FILES.values()))) and bench.work.fraction == 1
    assert bench.work.ended() and not bench.work.ended(), "the list is asked for again once"
    assert "licence: Apache-2.0" in bench.work.log.path.read_text(), "the log has what the program showed"

    assert bench.do("verify") is None and bench.work.outcome == "Every file is as it was published or installed"
    (bench.models / MODEL / HEAVY).write_bytes(FILES[HEAVY][::-1])
    error = bench.do("verify")
    assert error is not None and error.code == "model-damaged" and bench.work.outcome == ""
    assert error.message == f"{MODEL} is not as it was: {HEAVY}" and "Remove it" in error.hint
    assert bench.do("remove") is None and bench.work.outcome == "Removed: 3.1 MB are free again" and bench.there() == set()
    error = bench.do("remove")
    assert error is not None and error.code == "model-missing" and error.hint == "Refresh the list"


def test_a_refused_licence_leaves_nothing(bench: Bench, mirror: Path) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        bench.do("download", accepted=False, mirror=mirror)
    assert caught.value.code == "licence-not-accepted" and not bench.models.exists() and not bench.work.running
    assert "--yes" not in arguments("download", MODEL, False, mirror) and "--yes" in arguments("download", MODEL, True, mirror)
    # the program refuses by itself, too
    said: list[str] = []
    code = bench.work.call(PROGRAM.command(*arguments("download", MODEL, False, mirror)), said.append, environment=PROGRAM.environment)
    assert code == 2 and (answer(said) or {})["code"] == "licence-not-accepted" and not bench.models.exists()


def test_without_a_network_it_says_so_in_one_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = bench.do("download")
    assert error is not None and error.code == "download-failed" and error.retryable
    assert "huggingface.co/spaces/TencentARC/BrushNet can't be reached" in error.message and "\n" not in str(error)
    assert "From Folder" in error.hint and "--" not in error.hint
    assert bench.there() == set() and bench.work.ended()


@pytest.mark.parametrize(("names", "missing"), [((), "config.json"), (("config.json",), HEAVY)])
def test_a_folder_that_lacks_files_is_refused_by_name(bench: Bench, tmp_path: Path, names: tuple[str, ...], missing: str) -> None:
    stick = tmp_path / "half"
    stick.mkdir()
    error = bench.do("download", mirror=tiny_mirror.write(stick, names))
    assert error is not None and error.code == "mirror-incomplete" and missing in error.message and "Copy the files" in error.hint
    assert bench.there() == set()


def test_cancelled_it_ends_at_once_and_goes_on_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(SlowHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        bench.work.start(PROGRAM, "download", MODEL, True)
        with pytest.raises(PortraitDiffusionError, match="is being worked on"):
            bench.work.start(PROGRAM, "verify", MODEL)
        assert hub.asked.wait(PATIENCE)
        start = time.monotonic()
        bench.work.cancel()
        assert bench.work.title == "Cancelling"
        bench.finish()
        assert time.monotonic() - start < 20
        error = bench.work.error
        assert error is not None and error.code == "cancelled" and "goes on where it stopped" in error.hint
        assert f".{MODEL}.part/config.json" in bench.there() and not (bench.models / MODEL).exists()

        hub.go.set()
        part = bench.models / f".{MODEL}.part"
        (part / f"{HEAVY}.{COMMIT[:12]}.unfinished").write_bytes(FILES[HEAVY][:4096])  # as after some minutes
        hub.requests.clear()
        assert bench.do("download") is None
        assert (bench.models / MODEL / HEAVY).read_bytes() == FILES[HEAVY]
        fetched = [(path.rpartition("/")[2], wanted) for method, path, wanted in hub.requests if method == "GET" and "/resolve/" in path]
        assert fetched == [(HEAVY, "bytes=4096-")], "what was there was not fetched again"


def test_a_program_that_is_gone_or_fails_is_told_with_a_line(bench: Bench, tmp_path: Path) -> None:
    bench.work.start(Launch(tmp_path / "no/python"), "verify", MODEL)
    bench.finish()
    assert bench.work.error is not None and bench.work.error.code == "models-failed" and "can't be run" in bench.work.error.message


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for Python is a shell script")
def test_a_program_that_dies_without_an_answer(bench: Bench, tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho 'ImportError: libgone.so.1' >&2\nexit 1\n")
    broken.chmod(0o755)
    bench.work.start(Launch(broken), "verify", MODEL)
    bench.finish()
    error = bench.work.error
    assert error is not None and "libgone" in error.message and str(bench.work.log.path) in error.hint
    bench.work.dismiss()
    assert (bench.work.model, bench.work.error, bench.work.outcome) == ("", None, "")


def test_amount_and_time_left(bench: Bench) -> None:
    work = bench.work
    assert work.amount == "" and work.fraction == 0

    def report(step: str, done: int, total: int) -> None:
        work._read(json.dumps({"step": step, "file": "a", "done": done, "total": total}), [])

    report("fetching", 2_000_000_000, 4_000_000_000)  # it goes on with the first half
    assert work.amount == "2.0 of 4.0 GB" and work.fraction == 0.5
    bench.now = 10.0
    report("fetching", 2_500_000_000, 4_000_000_000)
    assert work.amount == "2.5 of 4.0 GB, about 30 s left"
    report("checking", 1_000_000, 4_000_000)
    assert (work.title, work.amount) == ("Checking", "1.0 of 4.0 MB")
    report("checking", 1_000_000, 0)
    assert (work.amount, work.fraction) == ("", 0)


def test_what_is_read_of_the_output() -> None:
    assert read_transfer('{"step": "fetching", "file": "x", "done": 1, "total": 2}') == Transfer("fetching", "x", 1, 2)
    for line in ("", "{", '{"step": "fetching"}', '{"step": "fetching", "file": "x", "done": "?", "total": 2}', "licence: none"):
        assert read_transfer(line) is None
    assert answer(["sd15: note", "{not json", "{", '  "a": {"b": 1}', "}", "a warning at the end"]) == {"a": {"b": 1}}
    assert answer(["nothing"]) is None and answer([]) is None
    kept = told({"code": "download-failed", "message": "m", "hint": "Accept its terms at x, then log in: hf auth login"})
    assert kept.hint.startswith("Accept its terms") and "From Folder" in told({"code": "download-failed", "hint": "use --from"}).hint
    assert told({"code": "other", "message": "m", "hint": "h --x", "retryable": True}).as_dict() == {
        "code": "other", "message": "m", "hint": "h --x", "retryable": True
    }  # fmt: skip


def test_models_of_another_machine_or_of_no_backend_are_left_alone(tmp_path: Path) -> None:
    backend = Backend(Folders(tmp_path), None, None)  # type: ignore[arg-type]
    with pytest.raises(PortraitDiffusionError) as caught:
        backend.work_on_model("download", MODEL, True)
    assert caught.value.code == "backend-unavailable" and "not installed" in caught.value.message
    backend.choose(Plan(is_remote=True))
    with pytest.raises(PortraitDiffusionError) as caught:
        backend.work_on_model("remove", MODEL)
    assert caught.value.code == "backend-remote" and backend.program is None and not backend.model_work.running
    backend.choose(Plan(developer=PROGRAM))
    assert backend.program == PROGRAM
