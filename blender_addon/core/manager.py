"""The backend as the panel sees it: one state machine over the installation, the process and the connection.

Belongs to the main thread. `tick` is called by the timer, never waits, and is the only place where states change by
themselves; everything else happens because the user asked for it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from portrait_shared.errors import PortraitDiffusionError

from .folders import Folders
from .installer import Installer, Options, examine, uninstall
from .link import Connected, Disconnected, Link
from .log import Log
from .model_work import Action, ModelWork
from .process import BackendProcess, Launch

if TYPE_CHECKING:
    from portrait_shared.connection import Connection
    from portrait_shared.protocol import ServerInfo


class State(Enum):
    """Where the backend stands."""

    ABSENT = "not installed"
    INSTALLING = "installing"
    BROKEN = "broken"
    INSTALLED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    REMOTE = "connected"
    OFFLINE = "not connected"
    LOST = "lost"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.ABSENT: frozenset({State.INSTALLING, State.INSTALLED, State.BROKEN, State.OFFLINE}),
    State.INSTALLING: frozenset({State.INSTALLED, State.BROKEN}),
    State.BROKEN: frozenset({State.INSTALLING, State.ABSENT, State.INSTALLED, State.OFFLINE}),
    State.INSTALLED: frozenset({State.INSTALLING, State.ABSENT, State.BROKEN, State.STARTING, State.OFFLINE}),
    State.STARTING: frozenset({State.RUNNING, State.REMOTE, State.LOST, State.INSTALLED, State.OFFLINE}),
    State.RUNNING: frozenset({State.INSTALLED, State.LOST, State.OFFLINE}),
    State.REMOTE: frozenset({State.OFFLINE, State.LOST, State.INSTALLED, State.ABSENT, State.BROKEN}),
    State.OFFLINE: frozenset({State.STARTING, State.ABSENT, State.INSTALLED, State.BROKEN}),
    State.LOST: frozenset({State.STARTING, State.INSTALLED, State.ABSENT, State.BROKEN, State.OFFLINE}),
}
CONNECTED = frozenset({State.RUNNING, State.REMOTE})

START_SECONDS = 60.0
"""A backend listens about a second after its start; a cold disk or a virus scanner may take much longer."""
ADOPT_SECONDS = 3.0
"""A backend that is said to run already answers at once, or its file is an old one."""
RESTARTS = 3
RESTART_WINDOW = 600.0
"""At most so many restarts within so many seconds: a backend that keeps dying is shown, not hidden."""
RESTART_DELAYS = (0.5, 2.0, 5.0)
LEAVE_SECONDS = 20.0
"""A backend that was stopped writes its state down first; one that is started again at once waits so long, then makes it end."""


@dataclass(frozen=True)
class Plan:
    """What the preferences say: which backend to use. A remote target, or a local launch (None: what is installed)."""

    remote: Path | Connection | None = None
    is_remote: bool = False
    developer: Launch | None = None
    device: str = "auto"


class Backend:
    """The state machine. `state`, `message` (one line for the user), `info` (of a connected backend), `log` (of the installation)."""

    def __init__(
        self,
        folders: Folders,
        wheel: Path | None,
        link: Link,
        start_process: Callable[[Launch, Folders], BackendProcess] = BackendProcess,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folders, self.wheel, self.link = folders, wheel, link
        self.log = Log(folders.install_log)
        self.installer = Installer(folders, self.log)
        self.model_work = ModelWork(folders, Log(folders.models_log))
        self.plan = Plan()
        self.state = State.ABSENT
        self.message = ""
        self.outdated = False
        self.info: ServerInfo | None = None
        self.process: BackendProcess | None = None
        self._start_process, self._clock = start_process, clock
        self._restarts: list[float] = []
        self._retry_at: float | None = None
        self._adopting = False
        self._leaving: BackendProcess | None = None
        self._left_at = 0.0

    @property
    def connected(self) -> bool:
        """Whether jobs can be sent."""
        return self.state in CONNECTED

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: the timer may look less often."""
        return self.state not in (State.INSTALLING, State.STARTING) and self._retry_at is None and not self.model_work.running

    @property
    def program(self) -> Launch | None:
        """The backend's program on this computer; None where it is remote, not installed, or being installed."""
        if self.plan.is_remote or self.state in (State.ABSENT, State.INSTALLING, State.BROKEN):
            return None
        return self.plan.developer or Launch(self.folders.python, self.plan.device)

    def choose(self, plan: Plan) -> None:
        """Take the preferences' backend; a connection to another one is given up (its jobs go on)."""
        if self.state is State.INSTALLING:
            return
        if self.state in CONNECTED or self.state in (State.STARTING, State.LOST):
            if plan == self.plan:
                return
            self.disconnect()
        self.plan = plan
        self.refresh()

    def refresh(self) -> None:
        """Look at the disk and come to the matching state of rest."""
        if self.plan.is_remote:
            self._move(State.OFFLINE, "")
        elif self.plan.developer is not None:
            self._move(State.INSTALLED, f"Developer: {self.plan.developer.python}")
        else:
            found = examine(self.folders, self.wheel)
            self.outdated = found.kind == "outdated"
            states = {"absent": State.ABSENT, "installed": State.INSTALLED, "outdated": State.INSTALLED}
            self._move(states.get(found.kind, State.BROKEN), found.text)

    # --- what the user asks for

    def install(self, options: Options) -> None:
        """Install, go on with an installation, or repair or update one."""
        if self.plan.is_remote or self.state is State.INSTALLING:
            return
        if self.state not in (State.ABSENT, State.BROKEN, State.INSTALLED):
            self.stop()
        self._end_model_work()
        self.installer.start(options)
        self._move(State.INSTALLING, "")

    def uninstall(self) -> None:
        """Stop the backend and remove its environment; raises PortraitDiffusionError not-ours, uninstall-failed."""
        if self.state is State.INSTALLING:
            self.installer.cancel()
            self.installer.wait(10)
            self._move(State.BROKEN, "")
        if self.state not in (State.ABSENT, State.BROKEN, State.INSTALLED):
            self.stop(patience=5.0)
        self._end_model_work()
        try:
            uninstall(self.folders)
        except OSError as error:
            text = f"{error.filename} can't be removed ({error.strerror})"
            raise PortraitDiffusionError("uninstall-failed", text, "Close programs that use it and try again", True) from error
        finally:
            self.refresh()

    def work_on_model(self, action: Action, model: str, accepted: bool = False, mirror: Path | None = None) -> None:
        """Download, verify, convert or remove a model with the backend's own program; `model_work` tells how it goes.

        accepted: the licence was shown and accepted; mirror: take the files from this folder. PortraitDiffusionError
        ``backend-remote``, ``backend-unavailable``, ``download-running`` or ``licence-not-accepted``; nothing was started then.
        """
        if self.plan.is_remote:
            hint = "Copy the command, and run it there: it shows the licence and asks"
            raise PortraitDiffusionError("backend-remote", "models belong to the backend, which is on another machine", hint)
        if self.program is None:
            raise PortraitDiffusionError("backend-unavailable", f"the backend is {self.state.value}", "Install it first")
        self.model_work.start(self.program, action, model, accepted, mirror)

    def start(self) -> None:
        """Start the local backend (or take over the one that runs already), or connect to the remote one."""
        self._restarts.clear()
        if self.connected or self.state in (State.STARTING, State.INSTALLING):
            return
        self._begin()

    def stop(self, patience: float = 0.0) -> None:
        """Stop the local backend; running jobs go on at its next start. A remote one is only left."""
        if self.state is State.RUNNING and self.info is not None and self.info.local:
            self.link.ask("shutdown", lambda client: client.shutdown())
        process, self.process = self.process, None
        self.disconnect()
        if process is not None:
            self._dismiss(process, patience)

    def disconnect(self) -> None:
        """Leave the backend; it and its jobs go on."""
        self._retry_at = None
        self.info = None
        self.link.leave()
        if self.state in CONNECTED or self.state in (State.STARTING, State.LOST):
            self.refresh()

    # --- what happens by itself

    def tick(self) -> None:
        """Notice the end of an installation or of the process, and restart when it is time."""
        if self.state is State.INSTALLING and not self.installer.running:
            self._installed()
        if self.process is not None and self.state in (State.STARTING, State.RUNNING):
            ended = self.process.ended()
            if ended is not None:
                self.process = None
                self.link.leave()
                self._lose(ended)
        if self.state is State.STARTING and self._leaving is not None:
            self._launch()
        if self.state is State.LOST and self._retry_at is not None and self._clock() >= self._retry_at:
            self._begin()

    def take(self, event: Connected | Disconnected) -> None:
        """Take what the link says about the connection."""
        if isinstance(event, Connected):
            if self.state is State.STARTING:
                self.info = event.info
                self._move(State.REMOTE if self.plan.is_remote else State.RUNNING, "")
        elif self.state is State.STARTING and not event.lost:
            self._refused(event.error)
        elif self.state in CONNECTED or self.state is State.STARTING:
            self._lose(event.error.message)

    def _begin(self, fresh: bool = False) -> None:
        self._retry_at = None
        if self.plan.is_remote:
            if self.plan.remote is None:
                self._move(State.OFFLINE, "Enter the address and the keys of the backend in the preferences")
                return
            self._move(State.STARTING, "Connecting")
            self.link.open(self.plan.remote, 5.0)
            return
        if self.state not in (State.INSTALLED, State.LOST):
            return
        self._move(State.STARTING, "")
        self._launch(fresh)

    def _launch(self, fresh: bool = False) -> None:
        """Start or take over the local backend, once the one that was stopped is gone: two can't use the same folder."""
        if self._leaving is not None and self._leaving.ended() is None:
            if self._clock() - self._left_at < LEAVE_SECONDS:
                self.message = "Waiting for the stopped one to end"
                return
            self._leaving.stop(0.1)
        self._leaving = None
        self.message = ""
        if self.process is not None and self.process.ended() is None:  # only the connection broke
            self._adopting = False
            self.link.open(self.folders.connection, START_SECONDS)
            return
        self._adopting = self.process is None and not fresh and self._runs_already()
        if not self._adopting:
            launch = self.plan.developer or Launch(self.folders.python, self.plan.device)
            self.folders.connection.unlink(missing_ok=True)
            try:
                self.process = self._start_process(launch, self.folders)
            except OSError as error:
                self._move(State.LOST, f"The backend can't be started ({error.strerror or error})")
                return
        self.link.open(self.folders.connection, ADOPT_SECONDS if self._adopting else START_SECONDS)

    def _dismiss(self, process: BackendProcess, patience: float = 0.0) -> None:
        process.stop(patience)
        self._leaving, self._left_at = process, self._clock()

    def _end_model_work(self) -> None:
        if self.model_work.running:
            self.model_work.cancel()
            self.model_work.wait(10)

    def _runs_already(self) -> bool:
        """Whether a backend of ours seems to run: another Blender's, or the one from before the add-on was disabled."""
        from portrait_shared.connection import read_connection

        try:
            pid = read_connection(self.folders.connection).pid
        except PortraitDiffusionError:
            return False
        return pid > 0 and alive(pid)

    def _installed(self) -> None:
        error = self.installer.error
        if error is not None:
            self._move(State.BROKEN, str(error))
            return
        self._move(State.INSTALLED, "")
        self.refresh()

    def _refused(self, error: PortraitDiffusionError) -> None:
        """No connection came about: what answers is of another version or not there."""
        if self._adopting and error.retryable:  # the number belongs to some other process by now
            self.state = State.LOST
            self._begin(fresh=True)
            return
        process, self.process = self.process, None
        if process is not None:
            self._dismiss(process)
        self._retry_at = None
        self._move(State.LOST, str(error))

    def _lose(self, reason: str) -> None:
        self.info = None
        now = self._clock()
        self._restarts = [then for then in self._restarts if now - then < RESTART_WINDOW]
        if len(self._restarts) < RESTARTS:
            self._retry_at = now + RESTART_DELAYS[len(self._restarts)]
            self._restarts.append(now)
            again = "connecting" if self.plan.is_remote else "starting"
            self._move(State.LOST, f"{reason}. {again.capitalize()} again ({len(self._restarts)} of {RESTARTS})")
        else:
            self._retry_at = None
            self._move(State.LOST, f"{reason}. It was restarted {RESTARTS} times; see its log")

    def _move(self, state: State, message: str) -> None:
        if state is not self.state and state not in TRANSITIONS[self.state]:
            raise ValueError(f"the backend can't go from {self.state.name} to {state.name}")
        self.state, self.message = state, message


def alive(pid: int) -> bool:
    """Return whether a process of this number exists (on Windows: whether it can be opened)."""
    if sys.platform == "win32":
        import ctypes

        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
