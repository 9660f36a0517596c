"""The local backend's process: start it, see whether it lives, stop it. It leaves by itself when Blender is gone."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .folders import Folders
from .log import last_lines
from .task import clean_environment, hidden_window


@dataclass(frozen=True)
class Launch:
    """How to start a backend: which Python, which device; developer: keep PYTHONPATH and its like (a backend that is no installation)."""

    python: Path
    device: str = "auto"
    developer: bool = False

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs the backend's program with these arguments."""
        return [str(self.python), "-m", "portrait_backend", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that the backend's program runs in."""
        return dict(os.environ) if self.developer else clean_environment()


class BackendProcess:
    """A running `portrait_backend serve`; it goes on when this object is forgotten, and leaves when Blender's process is gone."""

    def __init__(self, launch: Launch, folders: Folders) -> None:
        folders.data.mkdir(parents=True, exist_ok=True)
        self._log = folders.serve_log
        command = launch.command("serve", "--data", str(folders.data))
        command += ["--connection-file", str(folders.connection), "--device", launch.device, "--parent-pid", str(os.getpid())]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=launch.environment,
                cwd=folders.data,  # no module of the current folder may shadow the backend's
                start_new_session=os.name == "posix",  # Ctrl-C in Blender's terminal is not for the backend
                **hidden_window(),
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> str | None:
        """Return None while it runs, else one line about its end."""
        code = self._process.poll()
        if code is None:
            return None
        lines = last_lines(self._log, 1) if code > 0 else []  # one that was killed could not say why
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"The backend ended ({how})" + (f": {lines[-1]}" if lines else "")

    def stop(self, patience: float = 0.0) -> None:
        """Ask it to end; after `patience` seconds make it."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        deadline = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if patience and self._process.poll() is None:
            self._process.kill()
