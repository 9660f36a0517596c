"""The I/O thread: what it is asked comes back as events, progress may be dropped, nothing ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blender_addon.core.link import Connected, Disconnected, Done, Event, Failed, Link, Progress, State
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import JobInfo, JobProgress, JobStateChanged, ServerInfo

INFO = ServerInfo("0.1.0", 1, "cpu")
TARGET = Path("connection.json")


class FakeClient:
    """A client whose pushes are put in by the test."""

    info = INFO

    def __init__(self) -> None:
        self.pushed: list[Any] = []
        self.threads = {threading.get_ident()}
        self.closed = False

    def poll(self, timeout: float) -> list[Any]:
        self.threads.add(threading.get_ident())
        time.sleep(0.005)
        events, self.pushed = self.pushed, []
        for event in events:
            if isinstance(event, Exception):
                raise event
        return events

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed = True


@pytest.fixture
def client() -> list[FakeClient]:
    return []


@pytest.fixture
def link(client: list[FakeClient]) -> Iterator[Link]:
    def connect(target: Any, timeout: float) -> Any:
        client.append(FakeClient())
        return client[-1]

    made = Link(connect)
    yield made
    made.close()


def take(link: Link, seconds: float = 10) -> Event:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (event := link.take()) is not None:
            return event
        time.sleep(0.005)
    raise AssertionError("nothing happened")


def take_named(link: Link, name: str) -> Done | Failed:
    while True:
        event = take(link)
        if isinstance(event, (Done, Failed)) and event.name == name:
            return event


def connected(link: Link) -> None:
    link.open(TARGET, 5)
    while not isinstance(take(link), Connected):
        pass


def progress(step: int, preview: bytes | None = None, job: str = "a") -> JobProgress:
    return JobProgress(job, step, "prior", step, 10, preview=preview)


def test_commands_come_back_by_name(link: Link) -> None:
    connected(link)
    link.ask("twice", lambda client: (client.info, 2), "about")
    assert take_named(link, "twice") == Done("twice", "about", (INFO, 2))


def test_without_a_connection_a_command_fails_at_once(link: Link) -> None:
    link.ask("jobs", lambda client: 1 / 0)
    event = take_named(link, "jobs")
    assert isinstance(event, Failed) and event.error.code == "backend-unreachable"
    link.work("files", lambda: 5)
    assert take_named(link, "files") == Done("files", "", 5), "work on files needs none"


def test_a_fault_in_a_command_is_shown_and_the_thread_lives(link: Link) -> None:
    connected(link)
    link.ask("bug", lambda client: 1 / 0)
    event = take_named(link, "bug")
    assert isinstance(event, Failed) and event.error.code == "internal-error" and "ZeroDivisionError" in event.error.message
    link.work("disk", lambda: Path("/nowhere/at/all").read_bytes())
    event = take_named(link, "disk")
    assert isinstance(event, Failed) and event.error.code == "file-error"
    link.ask("fine", lambda client: 3)
    assert take_named(link, "fine") == Done("fine", "", 3)


def test_all_of_the_client_happens_in_one_thread(link: Link, client: list[FakeClient]) -> None:
    connected(link)
    link.ask("x", lambda client: client.threads.add(threading.get_ident()))
    take_named(link, "x")
    link.close()
    assert client[0].closed and len(client[0].threads) == 1 and threading.get_ident() not in client[0].threads


def test_the_latest_progress_wins_and_keeps_the_last_preview(link: Link, client: list[FakeClient]) -> None:
    connected(link)
    client[0].pushed = [progress(1), progress(2, b"jpeg"), progress(3), progress(1, job="b")]
    time.sleep(0.2)
    first, second = take(link), take(link)
    assert isinstance(first, Progress) and (first.progress.step, first.progress.preview) == (3, b"jpeg")
    assert isinstance(second, Progress) and second.progress.job == "b"
    assert link.take() is None


def test_states_are_never_dropped(link: Link, client: list[FakeClient]) -> None:
    connected(link)
    states = [JobInfo("a", "n", state, 0.0) for state in ("queued", "running", "completed")]  # type: ignore[arg-type]
    client[0].pushed = [JobStateChanged(states[0]), progress(1), JobStateChanged(states[1]), progress(2), JobStateChanged(states[2])]
    time.sleep(0.2)
    events = [take(link) for _ in range(4)]
    assert [e.job.state for e in events if isinstance(e, State)] == ["queued", "running", "completed"]


def test_a_lost_backend_is_told_once_and_can_be_opened_again(link: Link, client: list[FakeClient]) -> None:
    connected(link)
    client[0].pushed = [PortraitDiffusionError("backend-lost", "silence", "Start it", True)]
    event = take(link)
    assert isinstance(event, Disconnected) and event.lost and event.error.code == "backend-lost"
    connected(link)
    assert client[0].closed and len(client) == 2


def test_the_end_of_the_connection_before_is_no_news_of_the_next(link: Link, client: list[FakeClient]) -> None:
    connected(link)
    begun = threading.Event()

    def shutdown(client: Any) -> None:
        begun.set()
        time.sleep(0.3)  # the answer doesn't come: the process was ended too
        raise PortraitDiffusionError("backend-lost", "silence", "Start it", True)

    link.ask("shutdown", shutdown)
    assert begun.wait(10)
    link.leave()
    link.open(TARGET, 5)
    events = [take(link)]
    while not isinstance(events[-1], Connected):
        events.append(take(link))
    assert any(isinstance(event, Failed) and event.name == "shutdown" for event in events)
    assert not any(isinstance(event, Disconnected) for event in events)
    client[-1].pushed = [PortraitDiffusionError("backend-lost", "silence", "Start it", True)]
    assert isinstance(take(link), Disconnected), "that of the present one is"


def test_connecting_is_tried_until_the_patience_ends() -> None:
    tries: list[float] = []

    def connect(target: Any, timeout: float) -> Any:
        tries.append(time.monotonic())
        raise PortraitDiffusionError("connection-missing", "no file yet", "Wait", retryable=True)

    link = Link(connect)
    try:
        link.open(TARGET, 0.5)
        assert isinstance(take(link), Done)
        event = take(link)
        assert isinstance(event, Disconnected) and not event.lost and len(tries) >= 3
    finally:
        link.close()


def test_a_refusal_is_final() -> None:
    def connect(target: Any, timeout: float) -> Any:
        raise PortraitDiffusionError("protocol-mismatch", "other version", "Update")

    link = Link(connect)
    try:
        link.open(TARGET, 60)
        assert isinstance(take(link), Done)
        event = take(link)
        assert isinstance(event, Disconnected) and event.error.code == "protocol-mismatch"
    finally:
        link.close()
