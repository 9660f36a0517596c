"""The one thread that speaks with the backend.

Rules: the `Client` and its sockets live and die in this thread. The main thread posts commands and takes events, it
never waits for this one. This thread never touches bpy. A command is a function of the client; its value or its error
comes back as an event under the command's name.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    from portrait_shared.client import Client
    from portrait_shared.connection import Connection
    from portrait_shared.protocol import JobInfo, JobProgress, ServerInfo

POLL_SECONDS = 0.05
"""How long one look for pushed messages may wait: also the longest that a new command waits."""
CONNECT_SECONDS = 2.0
"""One try to connect; a backend on this machine answers within milliseconds."""


@dataclass(frozen=True)
class Connected:
    """The backend answered."""

    info: ServerInfo


@dataclass(frozen=True)
class Disconnected:
    """No connection: it could not be made (`lost` False) or was lost."""

    error: PortraitDiffusionError
    lost: bool


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    progress: JobProgress


@dataclass(frozen=True)
class State:
    """A job came into another state."""

    job: JobInfo


@dataclass(frozen=True)
class Done:
    """A command has ended: its name, what it was about (a job's id, say), its value."""

    name: str
    about: str
    value: Any


@dataclass(frozen=True)
class Failed:
    """A command has failed."""

    name: str
    about: str
    error: PortraitDiffusionError


Event = Connected | Disconnected | Progress | State | Done | Failed


@dataclass(frozen=True)
class _Command:
    name: str
    about: str
    call: Callable[[Any], Any]
    offline: bool


class Link:
    """Start with `open`, post commands with `ask`, `take` events, end with `close`."""

    def __init__(self, connect: Callable[..., Client] | None = None) -> None:
        self._connect = connect
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._client: Client | None = None
        self._target: Path | Connection | None = None
        self._deadline = 0.0
        self._wanted = self._present = 0  # numbers of the connection: the last that was asked for, and the thread's own
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="portrait-link", daemon=True)
        self._thread.start()

    def open(self, target: Path | Connection, patience: float) -> None:
        """Connect, trying for `patience` seconds: then comes Connected or Disconnected."""

        def begin() -> None:
            self._target, self._deadline = target, time.monotonic() + patience

        self._switch("open", begin)

    def leave(self) -> None:
        """Give the connection up; the thread stays."""

        def end() -> None:
            self._target = None

        self._switch("leave", end)

    def ask(self, name: str, call: Callable[[Client], Any], about: str = "") -> None:
        """Let the thread call `call(client)`; Done or Failed follows (Failed at once without a connection)."""
        self._commands.put(_Command(name, about, call, offline=False))

    def work(self, name: str, call: Callable[[], Any], about: str = "") -> None:
        """Let the thread do something that needs no backend (files, mostly)."""
        self._commands.put(_Command(name, about, lambda _: call(), offline=True))

    def take(self) -> Event | None:
        """Return the next thing that happened, None if there is none; never waits."""
        with self._lock:
            return self._events.popleft() if self._events else None

    def close(self, timeout: float = 3.0) -> None:
        """End the thread; jobs go on."""
        self._ending.set()
        self._commands.put(None)
        self._thread.join(timeout)

    def _switch(self, name: str, change: Callable[[], None]) -> None:
        """Give the connection up, then `change`. From now on the one before has nothing to tell of its beginning or end."""
        with self._lock:
            self._wanted += 1
            number = self._wanted
            self._events = deque(event for event in self._events if not isinstance(event, Connected | Disconnected))

        def carry_out(_: Any) -> None:
            self._drop()
            self._present = number
            change()

        self._commands.put(_Command(name, "", carry_out, offline=True))

    # --- in the thread

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._commands_due()
                if self._client is not None:
                    self._listen()
                elif self._target is not None:
                    self._try_connect()
        finally:
            self._drop()

    def _commands_due(self) -> None:
        busy = self._client is not None or self._target is not None
        while True:
            try:
                command = self._commands.get(block=not busy, timeout=None)
            except queue.Empty:
                return
            if command is None or self._ending.is_set():
                return
            self._carry_out(command)
            busy = True

    def _carry_out(self, command: _Command) -> None:
        try:
            if self._client is None and not command.offline:
                raise PortraitDiffusionError("backend-unreachable", "there is no connection to a backend", "Start the backend", True)
            self._emit(Done(command.name, command.about, command.call(self._client)))
        except PortraitDiffusionError as error:
            self._emit(Failed(command.name, command.about, error))
            if error.code == "backend-lost":
                self._lost(error)
        except OSError as error:
            text = f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
            self._emit(
                Failed(command.name, command.about, PortraitDiffusionError("file-error", text, "Check the disk and its permissions"))
            )
        except Exception as error:  # noqa: BLE001 - a fault in one command must not end the thread: it is shown like any other failure
            text = f"{type(error).__name__}: {error}"
            self._emit(Failed(command.name, command.about, PortraitDiffusionError("internal-error", text, "Please report it")))

    def _listen(self) -> None:
        from portrait_shared.protocol import JobProgress

        assert self._client is not None
        try:
            for event in self._client.poll(POLL_SECONDS):
                self._emit(Progress(event) if isinstance(event, JobProgress) else State(event.job))
        except PortraitDiffusionError as error:
            self._lost(error)

    def _try_connect(self) -> None:
        assert self._target is not None
        connect = self._connect
        if connect is None:
            from portrait_shared.client import Client  # imports zmq: here, not while Blender starts

            connect = Client.connect
        try:
            self._client = connect(self._target, timeout=CONNECT_SECONDS)
        except PortraitDiffusionError as error:
            if error.retryable and time.monotonic() < self._deadline:
                self._ending.wait(0.1)
                return
            self._target = None
            self._emit(Disconnected(error, lost=False))
        except (ImportError, OSError, ValueError) as error:
            self._target = None
            self._emit(
                Disconnected(PortraitDiffusionError("backend-unreachable", str(error), "Check the address and the keys"), lost=False)
            )
        else:
            self._emit(Connected(self._client.info))

    def _lost(self, error: PortraitDiffusionError) -> None:
        self._drop()
        self._target = None
        self._emit(Disconnected(error, lost=True))

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _emit(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Connected | Disconnected) and self._present != self._wanted:
                return
            if isinstance(event, Progress):  # the latest of a job wins, its preview stays until a newer one comes
                for index, earlier in enumerate(self._events):
                    if isinstance(earlier, Progress) and earlier.progress.job == event.progress.job:
                        event = _with_preview(event, earlier)
                        del self._events[index]
                        break
            self._events.append(event)


def _with_preview(event: Progress, earlier: Progress) -> Progress:
    if event.progress.preview is not None or earlier.progress.preview is None:
        return event
    return Progress(replace(event.progress, preview=earlier.progress.preview))
