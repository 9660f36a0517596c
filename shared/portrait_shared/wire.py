"""Dataclasses to frames and back: strict about types, tolerant of fields it doesn't know.

A message travels as ``[b"PD1", header JSON, content JSON, *buffers]``. JSON only: nothing that is read here can run
code. Bytes are not in the JSON but in the buffers; the JSON holds their number, length and sha256 instead.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from portrait_shared.errors import PortraitDiffusionError

MAGIC = b"PD1"
MAX_FRAMES = 8
MAX_HEADER_BYTES = 4096
MAX_CONTENT_BYTES = 8 * 2**20
MAX_BUFFER_BYTES = 128 * 2**20
MAX_DEPTH = 16
"""Levels of nesting in the JSON; a job with its settings needs 5."""
MAX_INTEGER = 2**63 - 1

T = TypeVar("T")


class ProtocolError(PortraitDiffusionError):
    """What arrived is no message of this protocol."""

    def __init__(self, what: str) -> None:
        super().__init__("protocol-error", what, "Use the same version of Portrait Diffusion on both sides")


def pack(header: Mapping[str, Any], message: Any) -> list[bytes]:
    """Return the frames of a header (JSON data) and a dataclass instance; ValueError for a number that JSON doesn't have."""
    buffers: list[bytes] = []
    content = _encode(message, buffers)
    return [MAGIC, _json_bytes(header), _json_bytes(content), *buffers]


def unpack_header(frames: Sequence[bytes]) -> dict[str, Any]:
    """Return the header of received frames; raises ProtocolError."""
    if not 3 <= len(frames) <= MAX_FRAMES:
        raise ProtocolError(f"a message has 3 to {MAX_FRAMES} frames, this one {len(frames)}")
    if frames[0] != MAGIC:
        raise ProtocolError(f"a message starts with {MAGIC!r}, this one with {bytes(frames[0][:8])!r}")
    return _json_object(frames[1], MAX_HEADER_BYTES, "header")


def unpack_content(frames: Sequence[bytes], kind: type[T], extra: Mapping[str, Any]) -> T:
    """Return the content of received frames as dataclass `kind`; `extra` fields come from the header. Raises ProtocolError."""
    content = _json_object(frames[2], MAX_CONTENT_BYTES, "content")
    buffers = frames[3:]
    for buffer in buffers:
        if len(buffer) > MAX_BUFFER_BYTES:
            raise ProtocolError(f"a buffer has {len(buffer)} bytes, the limit is {MAX_BUFFER_BYTES}")
    made = _decode({**content, **extra}, kind, buffers, kind.__name__)
    return cast(T, made)


def to_json(value: Any) -> str:
    """Return a dataclass instance without bytes in it as JSON text."""
    return _json_bytes(_encode(value, [])).decode("ascii")


def from_json(text: str, kind: type[T]) -> T:
    """Return the dataclass instance that `to_json` wrote; raises ProtocolError."""
    made = _decode(_json_object(text.encode(), MAX_CONTENT_BYTES, kind.__name__), kind, (), kind.__name__)
    return cast(T, made)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _json_object(frame: bytes, limit: int, name: str) -> dict[str, Any]:
    if len(frame) > limit:
        raise ProtocolError(f"the {name} has {len(frame)} bytes, the limit is {limit}")
    try:
        value = json.loads(bytes(frame).decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the {name} is no JSON ({str(error)[:80]})") from error
    _check_json(value, name, 0)
    if not isinstance(value, dict):
        raise ProtocolError(f"the {name} is no JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_json(value: Any, name: str, depth: int) -> None:
    """Refuse what JSON allows but a database or file system chokes on: half surrogates, endless numbers, deep nesting."""
    if depth > MAX_DEPTH:
        raise ProtocolError(f"the {name} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        if not _is_text(value):
            raise ProtocolError(f"the {name} holds text that is no Unicode")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ProtocolError(f"the {name} holds a number that is too large")
    elif isinstance(value, int):
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise ProtocolError(f"the {name} holds a number that is too large")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_json(key, name, depth)
            _check_json(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, name, depth + 1)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _encode(value: Any, buffers: list[bytes]) -> Any:
    if isinstance(value, bytes):
        buffers.append(value)
        return {"buffer": len(buffers) - 1, "length": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    if is_dataclass(value):
        in_header = getattr(value, "IN_HEADER", ())
        return {f.name: _encode(getattr(value, f.name), buffers) for f in fields(value) if f.name not in in_header}
    if isinstance(value, dict):
        return {key: _encode(item, buffers) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item, buffers) for item in value]
    return value


def _decode(value: Any, hint: Any, buffers: Sequence[bytes], where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        options = [option for option in get_args(hint) if option is not NoneType]
        return None if value is None else _decode(value, options[0], buffers, where)
    if origin is Literal:
        return _expect(value in get_args(hint) if isinstance(value, str) else False, value, where, " or ".join(map(str, get_args(hint))))
    if origin is tuple:
        _expect(isinstance(value, list), value, where, "a list")
        return tuple(_decode(item, get_args(hint)[0], buffers, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: _decode(item, get_args(hint)[1], buffers, f"{where}.{key}") for key, item in value.items()}
    if hint is bytes:
        return _decode_buffer(value, buffers, where)
    if is_dataclass(hint):
        return _decode_dataclass(value, cast(type, hint), buffers, where)
    if hint is float:
        _expect(type(value) in (int, float), value, where, "a number")
        return float(value)
    return _expect(type(value) is hint, value, where, hint.__name__)


def _decode_dataclass(value: Any, kind: type, buffers: Sequence[bytes], where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    hints = _hints(kind)
    values = {}
    for item in fields(kind):
        if item.name in value:
            values[item.name] = _decode(value[item.name], hints[item.name], buffers, f"{where}.{item.name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ProtocolError(f"{where} lacks the field {item.name!r}")
    return kind(**values)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode_buffer(value: Any, buffers: Sequence[bytes], where: str) -> bytes:
    _expect(isinstance(value, dict), value, where, "a buffer")
    index, length, digest = value.get("buffer"), value.get("length"), value.get("sha256")
    if type(index) is not int or not 0 <= index < len(buffers):
        raise ProtocolError(f"{where} names buffer {index!r}, there are {len(buffers)}")
    data = bytes(buffers[index])
    if length != len(data) or type(length) is not int:
        raise ProtocolError(f"{where} should have {length!r} bytes, {len(data)} arrived")
    if digest != hashlib.sha256(data).hexdigest():
        raise ProtocolError(f"{where} arrived damaged: its sha256 is another")
    return data


def _expect(right: bool, value: Any, where: str, what: str) -> Any:
    if not right:
        raise ProtocolError(f"{where} must be {what}, got {repr(value)[:60]}")
    return value
