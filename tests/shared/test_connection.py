"""The connection file: private from its first byte, never half-written, and refused when others can read it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import zmq

from portrait_shared import connection as c
from portrait_shared.errors import PortraitDiffusionError


@pytest.fixture
def connection() -> c.Connection:
    server, (public, secret) = zmq.curve_keypair()[0], zmq.curve_keypair()
    return c.Connection("tcp://127.0.0.1:5555", server.decode(), public.decode(), secret.decode(), 42)


def code_of(path: Path) -> str:
    with pytest.raises(PortraitDiffusionError) as caught:
        c.read_connection(path)
    return caught.value.code


def test_comes_back_and_is_private(tmp_path: Path, connection: c.Connection) -> None:
    path = tmp_path / "connection.json"
    old_mask = os.umask(0)
    try:
        c.write_connection(path, connection)
        c.write_connection(str(path), connection)
    finally:
        os.umask(old_mask)
    assert c.read_connection(path) == c.read_connection(str(path)) == connection
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [p.name for p in tmp_path.iterdir()] == ["connection.json"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_refused_when_others_may_read_it(tmp_path: Path, connection: c.Connection, mode: int) -> None:
    path = tmp_path / "connection.json"
    c.write_connection(path, connection)
    path.chmod(mode)
    assert code_of(path) == "connection-exposed"


def test_the_secret_is_not_shown(connection: c.Connection) -> None:
    assert connection.client_secret_key not in repr(connection) and connection.endpoint in repr(connection)


def test_missing(tmp_path: Path) -> None:
    assert code_of(tmp_path / "nothing.json") == "connection-missing"


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "ipc:///tmp/x"},
        {"endpoint": 5},
        {"endpoint": "tcp://host"},
        {"server_key": "short"},
        {"client_secret_key": None},
        {"client_public_key": "é" * 40},
        {"format": 99},
    ],
)
def test_damaged(tmp_path: Path, connection: c.Connection, change: dict[str, object]) -> None:
    path = tmp_path / "connection.json"
    c.write_connection(path, connection)
    c.write_private(path, json.dumps({**json.loads(path.read_text()), **change}))
    assert code_of(path) == "connection-unreadable"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10000, "\x00"])
def test_no_connection_file(tmp_path: Path, text: str) -> None:
    c.write_private(tmp_path / "x", text)
    assert code_of(tmp_path / "x") == "connection-unreadable"
    assert code_of(tmp_path) == "connection-unreadable", "a folder"
