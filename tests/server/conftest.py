"""A server per test, and a time limit on every test: a server that hangs must fail, not stop the run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.server.harness import Server

QUICK_SECONDS, SLOW_SECONDS = 90, 900


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    seconds = SLOW_SECONDS if request.node.get_closest_marker("slow") else getattr(request.module, "LIMIT_SECONDS", QUICK_SECONDS)

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {seconds} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data").start() as running:
        yield running
