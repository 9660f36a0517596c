"""The backend's state machine: installed or not, started, lost and started again at most three times, remote or here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from blender_addon.core.folders import Folders
from blender_addon.core.link import Connected, Disconnected
from blender_addon.core.manager import LEAVE_SECONDS, RESTARTS, TRANSITIONS, Backend, Plan, State, alive
from blender_addon.core.process import Launch
from portrait_shared.connection import Connection, write_connection
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import ServerInfo

INFO = ServerInfo("0.1.0", 1, "cpu", pid=1, local=True)
KEY = "a" * 40


class FakeLink:
    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.asked: list[str] = []
        self.left = 0

    def open(self, target: Any, patience: float) -> None:
        self.opened.append(target)

    def leave(self) -> None:
        self.left += 1

    def ask(self, name: str, call: Any, about: str = "") -> None:
        self.asked.append(name)


class FakeProcess:
    def __init__(self) -> None:
        self.end: str | None = None
        self.stopped = False

    def ended(self) -> str | None:
        return self.end

    def stop(self, patience: float = 0.0) -> None:
        self.stopped = True


class Bench:
    """A backend with everything around it faked."""

    def __init__(self, root: Path) -> None:
        self.folders, self.link = Folders(root), FakeLink()
        self.processes: list[FakeProcess] = []
        self.launches: list[Launch] = []
        self.now = 100.0
        self.backend = Backend(self.folders, None, self.link, self.start, lambda: self.now)  # type: ignore[arg-type]

    def start(self, launch: Launch, folders: Folders) -> Any:
        self.launches.append(launch)
        self.processes.append(FakeProcess())
        return self.processes[-1]

    def install(self) -> None:
        self.folders.python.parent.mkdir(parents=True)
        self.folders.python.touch()
        self.folders.record.write_text(json.dumps({"version": "0.1.0", "wheel_sha256": "x"}))
        self.backend.refresh()

    def run(self) -> None:
        self.install()
        self.backend.start()
        self.backend.take(Connected(INFO))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def error(code: str = "backend-lost", retryable: bool = True) -> PortraitDiffusionError:
    return PortraitDiffusionError(code, "it is gone", "Start it", retryable)


def test_absent_installed_starting_running_stopped(bench: Bench) -> None:
    assert bench.backend.state is State.ABSENT
    bench.backend.start()
    assert bench.backend.state is State.ABSENT and not bench.processes, "there is nothing to start"
    bench.install()
    assert bench.backend.state is State.INSTALLED
    bench.backend.start()
    assert bench.backend.state is State.STARTING and bench.link.opened == [bench.folders.connection]
    bench.backend.take(Connected(INFO))
    assert bench.backend.state is State.RUNNING and bench.backend.connected and bench.backend.info == INFO
    bench.backend.stop()
    assert bench.backend.state is State.INSTALLED and bench.backend.info is None
    assert bench.link.asked == ["shutdown"] and bench.processes[0].stopped


def test_one_that_is_stopped_and_started_at_once_waits_for_the_old_process(bench: Bench) -> None:
    bench.run()
    bench.backend.stop()
    bench.backend.start()
    bench.backend.tick()
    assert bench.backend.state is State.STARTING and "Waiting" in bench.backend.message and len(bench.processes) == 1
    assert bench.link.opened == [bench.folders.connection], "the old one is not adopted"
    bench.processes[0].end = "The backend ended (exit code 0)"
    bench.backend.tick()
    assert len(bench.processes) == 2 and bench.backend.state is State.STARTING and not bench.backend.message
    bench.backend.take(Connected(INFO))
    bench.backend.tick()
    assert bench.backend.state is State.RUNNING and len(bench.processes) == 2


def test_a_broken_connection_to_a_living_process_is_made_again_without_a_second_one(bench: Bench) -> None:
    bench.run()
    bench.backend.take(Disconnected(error(), lost=True))
    assert bench.backend.state is State.LOST and "Starting again (1 of 3)" in bench.backend.message
    bench.now += 1
    bench.backend.tick()
    assert bench.backend.state is State.STARTING and len(bench.processes) == 1 and len(bench.link.opened) == 2
    bench.backend.take(Connected(INFO))
    assert bench.backend.state is State.RUNNING


def test_an_old_process_that_never_ends_is_made_to(bench: Bench) -> None:
    bench.run()
    bench.backend.stop()
    bench.backend.start()
    bench.processes[0].stopped = False
    bench.now += LEAVE_SECONDS + 1
    bench.backend.tick()
    assert bench.processes[0].stopped and len(bench.processes) == 2


def test_stopping_while_it_waits_starts_nothing(bench: Bench) -> None:
    bench.run()
    bench.backend.stop()
    bench.backend.start()
    bench.backend.stop()
    bench.processes[0].end = "The backend ended (exit code 0)"
    bench.backend.tick()
    assert bench.backend.state is State.INSTALLED and len(bench.processes) == 1


def test_a_process_that_dies_is_noticed_and_started_again(bench: Bench) -> None:
    bench.run()
    bench.processes[0].end = "The backend ended (signal 9)"
    bench.backend.tick()
    assert bench.backend.state is State.LOST and "signal 9" in bench.backend.message and "1 of 3" in bench.backend.message
    bench.backend.tick()
    assert len(bench.processes) == 1, "not at once"
    bench.now += 1
    bench.backend.tick()
    assert bench.backend.state is State.STARTING and len(bench.processes) == 2
    bench.backend.take(Connected(INFO))
    assert bench.backend.state is State.RUNNING


def test_it_is_restarted_three_times_and_then_shown(bench: Bench) -> None:
    bench.run()
    for _ in range(RESTARTS + 1):
        bench.processes[-1].end = "The backend ended (exit code 1): no disk"
        bench.backend.tick()
        bench.now += 10
        bench.backend.tick()
    assert bench.backend.state is State.LOST and len(bench.processes) == 1 + RESTARTS
    assert "no disk" in bench.backend.message and bench.backend.settled
    bench.backend.start()
    assert bench.backend.state is State.STARTING, "the user may start it again, with three new tries"


def test_restarts_long_ago_are_forgiven(bench: Bench) -> None:
    bench.run()
    for _ in range(RESTARTS + 2):
        bench.processes[-1].end = "gone"
        bench.backend.tick()
        bench.now += 1000
        bench.backend.tick()
        bench.backend.take(Connected(INFO))
    assert bench.backend.state is State.RUNNING


def test_a_lost_connection_is_a_lost_backend(bench: Bench) -> None:
    bench.run()
    bench.backend.take(Disconnected(error(), lost=True))
    assert bench.backend.state is State.LOST and bench.backend.info is None


def test_a_refused_handshake_is_shown_and_not_repeated(bench: Bench) -> None:
    bench.install()
    bench.backend.start()
    bench.backend.take(Disconnected(error("protocol-mismatch", retryable=False), lost=False))
    assert bench.backend.state is State.LOST and bench.backend.settled and "protocol-mismatch" in bench.backend.message
    assert bench.processes[0].stopped


def test_a_backend_that_runs_already_is_taken_over(bench: Bench) -> None:
    bench.install()
    bench.folders.data.mkdir()
    write_connection(bench.folders.connection, Connection("tcp://127.0.0.1:1", KEY, KEY, KEY, os.getpid()))
    bench.backend.start()
    assert bench.backend.state is State.STARTING and not bench.processes and bench.link.opened
    bench.backend.take(Connected(INFO))
    assert bench.backend.state is State.RUNNING


def test_an_old_connection_file_is_not_believed(bench: Bench) -> None:
    bench.install()
    bench.folders.data.mkdir()
    write_connection(bench.folders.connection, Connection("tcp://127.0.0.1:1", KEY, KEY, KEY, os.getpid()))
    bench.backend.start()
    bench.backend.take(Disconnected(error("backend-unreachable"), lost=False))
    assert bench.backend.state is State.STARTING and len(bench.processes) == 1 and not bench.folders.connection.exists()


def test_remote(bench: Bench) -> None:
    target = Connection("tcp://10.0.0.9:5870", KEY, KEY, KEY)
    bench.backend.choose(Plan(is_remote=True))
    assert bench.backend.state is State.OFFLINE
    bench.backend.start()
    assert bench.backend.state is State.OFFLINE and "keys" in bench.backend.message
    bench.backend.choose(Plan(remote=target, is_remote=True))
    bench.backend.start()
    assert bench.link.opened == [target] and not bench.processes
    bench.backend.take(Connected(INFO))
    assert bench.backend.state is State.REMOTE
    bench.backend.take(Disconnected(error(), lost=True))
    assert bench.backend.state is State.LOST
    bench.now += 1
    bench.backend.tick()
    assert len(bench.link.opened) == 2
    bench.backend.take(Connected(INFO))
    bench.backend.stop()
    assert bench.backend.state is State.OFFLINE and bench.link.asked == [], "another's backend is left, not stopped"


def test_changing_the_preferences_leaves_the_backend(bench: Bench) -> None:
    bench.run()
    bench.backend.choose(bench.backend.plan)
    assert bench.backend.state is State.RUNNING, "nothing changed"
    bench.backend.choose(Plan(is_remote=True))
    assert bench.backend.state is State.OFFLINE and not bench.processes[0].stopped


def test_a_developers_python_needs_no_installation(bench: Bench) -> None:
    bench.backend.choose(Plan(developer=Launch(Path("/python"), developer=True)))
    assert bench.backend.state is State.INSTALLED
    bench.backend.start()
    assert bench.launches == [Launch(Path("/python"), developer=True)]


def test_what_lies_on_the_disk(bench: Bench, tmp_path: Path) -> None:
    bench.install()
    bench.folders.incomplete.touch()
    bench.backend.refresh()
    assert bench.backend.state is State.BROKEN and "interrupted" in bench.backend.message
    bench.folders.incomplete.unlink()
    bench.folders.record.write_text("{")
    bench.backend.refresh()
    assert bench.backend.state is State.BROKEN
    bench.folders.record.write_text(json.dumps({"version": "0.1.0", "wheel_sha256": "x"}))
    bench.folders.python.unlink()
    bench.backend.refresh()
    assert bench.backend.state is State.BROKEN
    wheel = tmp_path / "new.whl"
    wheel.write_bytes(b"new")
    bench.folders.python.touch()
    bench.backend.wheel = wheel
    bench.backend.refresh()
    assert bench.backend.state is State.INSTALLED and bench.backend.outdated


def test_transitions_that_make_no_sense_are_refused(bench: Bench) -> None:
    for state in State:
        for other in set(State) - TRANSITIONS[state] - {state}:
            bench.backend.state = state
            with pytest.raises(ValueError, match="can't go from"):
                bench.backend._move(other, "")


def test_alive() -> None:
    assert alive(os.getpid()) and not alive(2**22 + 12345)
