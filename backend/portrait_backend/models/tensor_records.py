"""Tensors from the records of a pickle: torch's and numpy's, in the three ways that torch has stored them.

- a zip archive (torch.save since 1.6): data.pkl, and a file per storage;
- torch's older stream: five pickles, then the storages;
- a plain pickle of networks (StyleGAN, EG3D and their kin): each storage is an older stream of its own, as bytes in the pickle.
Sizes are checked against the bytes that are there before anything is allocated.
"""

from __future__ import annotations

import math
import mmap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeGuard

import torch
from torch import Tensor

from portrait_backend.models.pickle_reader import Call, Name, Persistent, PickleRefused, read_pickle

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "UntypedStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
NUMPY_TYPES = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32, "i2": torch.int16,
    "i1": torch.int8, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What torch's older stream begins with."""
MAX_WRAPPERS = 4
"""A parameter wraps a tensor once."""
Loader = Callable[[Persistent], Tensor]


@dataclass
class Checkpoint:
    """The records of a file and how to get at its storages."""

    root: Any
    load: Loader
    _cache: dict[int, tuple[object, Tensor]] = field(default_factory=dict)

    def tensor(self, node: object) -> Tensor | None:
        """Return the tensor that a record stands for, contiguous; None if it is none. Raises `PickleRefused` for an impossible one."""
        for _ in range(MAX_WRAPPERS):
            if not isinstance(node, Call):
                return None
            arguments = node.arguments if isinstance(node.arguments, tuple) else ()
            if node.is_call_of("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state") and arguments:
                node = arguments[0]
                continue
            if node.is_call_of("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor") and len(arguments) >= 4:
                return _view(self._storage(arguments[0]), *arguments[1:4])
            if node.is_call_of("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
                return _numpy(node.state)
            return None
        raise PickleRefused("a tensor is wrapped in itself")

    def _storage(self, node: object) -> Tensor:
        """Return a storage as a flat tensor; the same record gives the same one."""
        if id(node) not in self._cache:
            self._cache[id(node)] = (node, self._read_storage(node))
        return self._cache[id(node)][1]

    def _read_storage(self, node: object) -> Tensor:
        if isinstance(node, Persistent):
            return self.load(node)
        if isinstance(node, Call) and node.is_call_of("torch.storage._load_from_bytes") and isinstance(node.arguments, tuple):
            content = _bytes(node.arguments[0]) if len(node.arguments) == 1 else None
            if content is not None:
                inner = _read_stream(BytesIO(content), len(content))
                if isinstance(inner.root, Persistent):
                    return inner.load(inner.root)
        raise PickleRefused(f"a tensor's storage is {describe(node)}")


def describe(node: object) -> str:
    """Return what a record is, for error messages."""
    if isinstance(node, Call):
        return f"a call of {node.what}" if isinstance(node.what, Name) else "a call of something that is no name"
    return f"the name {node}" if isinstance(node, Name) else f"a {type(node).__name__}"


@contextmanager
def open_checkpoint(path: Path) -> Iterator[Checkpoint]:
    """Open a checkpoint of any of the three kinds; its tensors must be read before it closes. Raises `PickleRefused` or OSError."""
    with path.open("rb") as file:
        start = file.read(4)
        if start == b"PK\x03\x04":
            try:
                with zipfile.ZipFile(file) as archive:
                    yield _read_archive(archive)
            except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
                raise PickleRefused(f"the archive is damaged ({error})") from error
            return
        if not start:
            raise PickleRefused("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield _read_stream(view, len(view))  # type: ignore[arg-type]


def _read_archive(archive: zipfile.ZipFile) -> Checkpoint:
    entries = {info.filename: info for info in archive.infolist()}
    mains = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(mains) != 1:
        raise PickleRefused("the archive is not one that torch.save writes")
    prefix = mains[0].removesuffix("data.pkl")
    order = entries.get(f"{prefix}byteorder")
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise PickleRefused("the archive is compressed, which torch.save never does")
    if order is not None and archive.read(order).strip() != b"little":
        raise PickleRefused("it was written on a big-endian machine")

    def load(reference: Persistent) -> Tensor:
        dtype, key, count = _storage_key(reference)
        info = entries.get(f"{prefix}data/{key}")
        if info is None or info.file_size != count * dtype.itemsize:
            raise PickleRefused(f"storage {key} is missing or has another size than {count} x {dtype}")
        return _flat(archive.read(info), dtype, count)

    return Checkpoint(read_pickle(BytesIO(archive.read(mains[0]))), load)


def _read_stream(stream: IO[bytes], size: int) -> Checkpoint:
    """Read a plain pickle, or torch's older stream."""
    first = read_pickle(stream)
    if first != MAGIC or isinstance(first, bool):
        return Checkpoint(first, _no_storages)
    protocol, system, root, keys = (read_pickle(stream) for _ in range(4))
    little = system.get("little_endian") if isinstance(system, dict) else None
    if protocol != PROTOCOL or little is not True or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleRefused("it is not a stream that torch.save writes")
    wanted = {key: dtype for dtype, key, _ in _all_storages(root)}
    found: dict[str, Tensor] = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        dtype = wanted.get(key)
        if dtype is None or count * dtype.itemsize > size - stream.tell():
            raise PickleRefused(
                f"storage {key} claims {count} elements, more than the file holds" if dtype else f"storage {key} has no type"
            )
        found[key] = _flat(stream.read(count * dtype.itemsize), dtype, count)

    def load(reference: Persistent) -> Tensor:
        dtype, key, count = _storage_key(reference)
        if key not in found or found[key].dtype != dtype or len(found[key]) != count:
            raise PickleRefused(f"storage {key} is missing or has another size than {count} x {dtype}")
        return found[key]

    return Checkpoint(root, load)


def _no_storages(reference: Persistent) -> Tensor:
    raise PickleRefused("it refers to a storage that is not in the file")


def _all_storages(root: object) -> Iterator[tuple[torch.dtype, str, int]]:
    """Yield every storage that the records refer to, each record visited once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, str | bytes | int | float | None | Name):
            continue
        seen.add(id(node))
        if isinstance(node, Persistent):
            yield _storage_key(node)
        elif isinstance(node, Call):
            waiting += [node.arguments, node.state, node.items, node.values]
        elif isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node


def _storage_key(reference: Persistent) -> tuple[torch.dtype, str, int]:
    """Return element type, key and number of elements of ("storage", class, key, device, count[, view])."""
    parts = reference.key
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage" or (len(parts) == 6 and parts[5] is not None):
        raise PickleRefused("it refers to something that is no storage")
    _, kind, key, _, count = parts[:5]
    if not isinstance(kind, Name) or kind.module not in ("torch", "torch.storage", "torch.cuda") or kind.name not in STORAGES:
        raise PickleRefused(f"a storage is of an unknown type: {describe(kind)}")
    if not isinstance(key, str) or not _is_count(count):
        raise PickleRefused("it refers to something that is no storage")
    return STORAGES[kind.name], key, count


def _flat(content: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(content) != count * dtype.itemsize:
        raise PickleRefused("a storage is cut short")
    if dtype is torch.bool:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).bool() if count else torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(content), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _view(storage: Tensor, offset: object, shape: object, stride: object) -> Tensor:
    """Return the tensor of that shape within a storage, as a copy."""
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise PickleRefused("a tensor has no proper shape")
    if not _is_count(offset) or not all(map(_is_count, (*shape, *stride))):
        raise PickleRefused("a tensor has no proper shape")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else -1
    if count > len(storage) or last >= len(storage):
        raise PickleRefused(f"a tensor of shape {shape} does not fit into its storage of {len(storage)} elements")
    if not count:
        return torch.empty(shape, dtype=storage.dtype)
    return torch.as_strided(storage, shape, stride, offset).clone(memory_format=torch.contiguous_format)


def _numpy(state: object) -> Tensor:
    """Return the array whose state is (version, shape, dtype, Fortran order, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise PickleRefused("an array has no content")
    _, shape, kind, fortran, content = state
    content = _bytes(content)
    code = kind.arguments[0] if isinstance(kind, Call) and kind.is_call_of("numpy.dtype") and isinstance(kind.arguments, tuple) else None
    order = kind.state[1] if isinstance(kind, Call) and isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    dtype = NUMPY_TYPES.get(code) if isinstance(code, str) else None
    if dtype is None or order not in ("<", "|", "=") or content is None or not isinstance(shape, tuple):
        raise PickleRefused(f"an array is of an unsupported type ({code!r})")
    if not all(map(_is_count, shape)):
        raise PickleRefused("an array has no proper shape")
    flat = _flat(content, dtype, math.prod(shape))
    return flat.view(shape[::-1]).permute(*range(len(shape) - 1, -1, -1)).contiguous() if fortran is True else flat.view(shape)


def _bytes(record: object) -> bytes | None:
    """Return the bytes that a record stands for; pickles of protocol 2 hold them as text with a call that would encode it."""
    if isinstance(record, bytes):
        return record
    if isinstance(record, Call) and record.is_call_of("_codecs.encode") and isinstance(record.arguments, tuple):
        text = record.arguments[0] if record.arguments else None
        if isinstance(text, str):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError as error:
                raise PickleRefused("its bytes are no bytes") from error
    return None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
