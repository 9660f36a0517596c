"""Any frames in: a message or ProtocolError, never anything else. Every message comes back as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portrait_shared import protocol as p
from portrait_shared import wire

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
WILD_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
MESSAGE_KINDS = sorted(p.MESSAGES.values(), key=lambda kind: kind.__name__)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a type hint of a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return JSON
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=3)
    if arguments:  # X | None
        return st.none() | values(next(a for a in arguments if a is not type(None)))
    if dataclasses.is_dataclass(hint):
        return messages(hint)  # type: ignore[arg-type]
    return {
        str: TEXT,
        bytes: st.binary(max_size=40),
        bool: st.booleans(),
        int: st.integers(-(2**63) + 1, 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }[hint]


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for instances of a dataclass."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values(hints[field.name]) for field in dataclasses.fields(kind)})


@given(st.sampled_from(MESSAGE_KINDS).flatmap(messages))
def test_every_message_comes_back(message: p.Message) -> None:
    frames = p.serialise(message)
    assert all(isinstance(frame, bytes) for frame in frames) and frames[0] == b"PD1"
    again = p.deserialise(frames)
    assert type(again) is type(message) and again == message
    assert p.request_of(frames) == message.request


def accepts(frames: list[bytes]) -> None:
    """Deserialise whatever it is; only two outcomes are right."""
    try:
        message = p.deserialise(frames)
    except p.ProtocolError as error:
        assert error.code == "protocol-error" and error.message and len(error.message) < 500
        assert isinstance(p.request_of(frames), str)
        return
    assert p.deserialise(p.serialise(message)) == message


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_any_frames(frames: list[bytes]) -> None:
    accepts(frames)


@given(st.lists(st.binary(max_size=60), max_size=7))
def test_any_frames_after_the_right_start(frames: list[bytes]) -> None:
    accepts([b"PD1", *frames])


@given(st.sampled_from(sorted(p.MESSAGES)), WILD_JSON, st.lists(st.binary(max_size=20), max_size=3))
def test_any_json_as_the_content_of_any_message(name: str, content: Any, buffers: list[bytes]) -> None:
    accepts([b"PD1", json.dumps({"type": name, "request": "1"}).encode(), json.dumps(content).encode(), *buffers])


@given(WILD_JSON, WILD_JSON)
def test_any_json_as_header(header: Any, content: Any) -> None:
    accepts([b"PD1", json.dumps(header).encode(), json.dumps(content).encode()])


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_message_is_refused_or_read(data: st.DataObject) -> None:
    """Replace one field of a right message by anything, cut a frame, flip a bit."""
    message = data.draw(st.sampled_from(MESSAGE_KINDS).flatmap(messages))
    frames = p.serialise(message)
    content = json.loads(frames[2])
    change = data.draw(st.sampled_from(["field", "drop", "bit", "cut", "swap"]))
    if change in ("field", "drop") and content:
        name = data.draw(st.sampled_from(sorted(content)))
        content[name] = data.draw(WILD_JSON)
        if change == "drop":
            del content[name]
        frames[2] = json.dumps(content).encode()
    elif change == "bit":
        which = data.draw(st.integers(0, len(frames) - 1))
        if frames[which]:
            damaged = bytearray(frames[which])
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
            frames[which] = bytes(damaged)
    elif change == "cut":
        which = data.draw(st.integers(0, len(frames) - 1))
        frames[which] = frames[which][: len(frames[which]) // 2]
    else:
        frames = data.draw(st.permutations(frames))
    accepts(frames)


def frames_of(content: Any, name: str = "job.get", header: dict[str, Any] | None = None) -> list[bytes]:
    return [b"PD1", json.dumps({"type": name, **(header or {})}).encode(), json.dumps(content).encode()]


@pytest.mark.parametrize(
    ("frames", "what"),
    [
        ([], "3 to 8 frames"),
        ([b"PD1", b"{}", b"{}", *[b""] * 6], "3 to 8 frames"),
        ([b"PD2", b'{"type":"ping"}', b"{}"], "starts with"),
        ([b"PD1", b"\xff", b"{}"], "header is no JSON"),
        ([b"PD1", b"[]", b"{}"], "no JSON object"),
        ([b"PD1", b'{"type":["ping"]}', b"{}"], "no message"),
        (frames_of({"job": "1"}, "job.destroy"), "no message 'job.destroy'"),
        (frames_of({}), "lacks the field 'job'"),
        (frames_of({"job": 3}), "JobGet.job must be str, got 3"),
        (frames_of({"job": "1"}, header={"request": 7}), "request must be str"),
        (frames_of({"limit": True}, "job.list"), "limit must be int, got True"),
        (frames_of({"limit": 1.5}, "job.list"), "limit must be int"),
        (frames_of({"limit": 2**63}, "job.list"), "too large"),
        ([b"PD1", b'{"type":"job.list"}', b'{"limit":' + b"9" * 5000 + b"}"], "no JSON"),
        ([b"PD1", b'{"type":"job.list"}', b'{"limit":NaN}'], "NaN is no JSON number"),
        ([b"PD1", b'{"type":"job.list"}', b'{"limit":1e999}'], "too large"),
        ([b"PD1", b'{"type":"job.get"}', b'{"job":"\\ud800"}'], "no Unicode"),
        ([b"PD1", b'{"type":"job.get"}', b'{"job":' + b"[" * 100_000 + b"]" * 100_000 + b"}"], "no JSON"),
        (frames_of({"job": "1", "settings": {"a": [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}}, "job.submit"), "nested more than 16"),
        ([b"PD1", b'{"type":"ping","x":"' + b"x" * 5000 + b'"}', b"{}"], "header has 5022 bytes"),
        (frames_of({"job": "1", "settings": {}, "photo": {"buffer": 0, "length": 1, "sha256": ""}}, "job.submit"), "there are 0"),
    ],
)
def test_the_refusal_says_why(frames: list[bytes], what: str) -> None:
    with pytest.raises(p.ProtocolError) as caught:
        p.deserialise(frames)
    assert what in caught.value.message


@pytest.mark.parametrize("wrong", [{"buffer": 1}, {"buffer": -1}, {"buffer": True}, {"length": 4}, {"length": 5.0}, {"sha256": "0" * 64}])
def test_a_buffer_must_be_what_the_content_says(wrong: dict[str, Any]) -> None:
    frames = p.serialise(p.JobSubmit("1", {}, b"photo"))
    content = json.loads(frames[2])
    content["photo"].update(wrong)
    frames[2] = json.dumps(content).encode()
    with pytest.raises(p.ProtocolError):
        p.deserialise(frames)


def test_unknown_fields_are_ignored() -> None:
    frames = frames_of({"job": "1", "colour": {"hair": ["red"]}}, header={"request": "r", "trace": 5})
    assert p.deserialise(frames) == p.JobGet("1", request="r")


def test_bytes_are_never_in_the_json() -> None:
    frames = p.serialise(p.JobProgress("1", 1, "prior", 1, 2, preview=b"\xff\xd8 jpeg"))
    assert frames[3] == b"\xff\xd8 jpeg" and b"jpeg" not in frames[2] and json.loads(frames[2])["preview"]["length"] == 7


def test_numbers_that_json_does_not_have_can_not_be_sent() -> None:
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            p.serialise(p.JobProgress("1", 1, "prior", 1, 2, eta=number))


@given(messages(p.JobInfo))
def test_what_is_stored_as_json_comes_back(info: p.JobInfo) -> None:
    assert wire.from_json(wire.to_json(info), p.JobInfo) == info


def test_every_message_and_every_field_is_in_the_specification() -> None:
    kinds = {kind for kind in vars(p).values() if isinstance(kind, type) and issubclass(kind, p.Message)} - {p.Message}
    assert kinds == set(p.MESSAGES.values())
    text = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
    for name in p.MESSAGES:
        assert f"`{name}`" in text, name
    for kind in (*kinds, p.JobInfo, p.ServerInfo, p.WeightInfo, p.ModelInfo, p.FileInfo, p.ErrorInfo):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text, f"{kind.__name__}.{field.name}"
    assert f"Protocol version: **{p.PROTOCOL_VERSION}**" in text


@pytest.mark.parametrize("name", ["head.glb", "views/left_front.png", "job.json", "turntable.gif"])
def test_result_names(name: str) -> None:
    assert p.FILE_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../photo", "views/../x", "a/b/c", "C:\\x", ".hidden", "views/.x", "a\n", "con:", "a/"]
)
def test_names_that_leave_the_result_are_none(name: str) -> None:
    assert not p.FILE_NAME.fullmatch(name)
