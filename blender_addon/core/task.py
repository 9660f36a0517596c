"""Work that takes minutes: one thread that runs commands and reads what they print. The panel looks at it, and may cancel it.

The installation and the work on models are such tasks. The thread never touches Blender; the main thread never waits for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from portrait_shared.errors import PortraitDiffusionError

from .log import Log

KILL_SECONDS = 5.0
"""A command that was asked to end, and does not, is made to: a name look-up without a network may hold it for half a minute."""


class Task:
    """One piece of work at a time: `begin` it, then ask `running`, `step`, `error` and the log; `cancel` ends it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.step = ""
        self.error: PortraitDiffusionError | None = None
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = threading.Event()

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def cancelled(self) -> bool:
        """Whether the work was cancelled since it began."""
        return self._cancelled.is_set()

    def begin(self, work: Callable[[], None], name: str) -> None:
        """Run `work` in a thread of this name; what it raises is `error` afterwards. Nothing happens while other work runs."""
        if self.running:
            return
        self.error = None
        self.step = ""
        self._cancelled.clear()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """End it after the current line of output; what was done so far stays."""
        self._cancelled.set()
        if (process := self._process) is not None:
            process.terminate()
            insist = threading.Timer(KILL_SECONDS, process.kill)
            insist.daemon = True
            insist.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the thread (for scripts and tests)."""
        if self._thread is not None:
            self._thread.join(timeout)

    def call(
        self,
        command: list[str],
        take: Callable[[str], None],
        errors: int = subprocess.STDOUT,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> int:
        """Run a command, its output going to `take` line by line, and return its exit code; raises `stopped()` if it was cancelled.

        errors: where its error output goes, as for subprocess; environment: default this one's without Python's own; folder: it runs there.
        """
        if self.cancelled:
            raise self.stopped()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=dict(clean_environment() if environment is None else environment),
            cwd=folder,
            **hidden_window(),
        )
        with process:
            self._process = process
            if self._cancelled.is_set():  # between the look above and the start
                process.terminate()
            assert process.stdout is not None
            for line in process.stdout:
                take(line.rstrip())
        self._process = None
        if self.cancelled:
            raise self.stopped()
        return process.returncode

    def stopped(self) -> PortraitDiffusionError:
        """Return the error of work that was cancelled."""
        return PortraitDiffusionError("cancelled", "it was cancelled", "Start it again", retryable=True)

    def failed(self, error: OSError) -> PortraitDiffusionError:
        """Return the error of work that the operating system stopped."""
        return PortraitDiffusionError("task-failed", f"{error.strerror or error} ({error.filename or 'no file'})", "Try again")

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except PortraitDiffusionError as error:
            self.error = error
        except OSError as error:
            self.error = self.failed(error)
        if self.error is not None:
            self.log.write(str(self.error))


def clean_environment() -> dict[str, str]:
    """Return the environment without what Blender's (or a developer's) Python set for itself; pip says in the log what it does."""
    own = {"__PYVENV_LAUNCHER__", "PIP_QUIET", "PIP_VERBOSE"}
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") and name not in own}


def hidden_window() -> dict[str, Any]:
    """Return the options that keep Windows from opening a console."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW}
    return {}
