"""Install the bundled wheel with its dependencies into an own virtual environment, in a thread, step by step.

A marker file exists from the first step to the last, so an installation that was interrupted (Blender closed, power
lost) is recognised at the next start and goes on where it was: finished steps are seen to be finished. What is installed
is written down last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from portrait_shared.errors import PortraitDiffusionError

from .find_python import find_python
from .folders import Folders
from .log import Log
from .task import Task, clean_environment

Torch = Literal["cpu", "gpu"]
Kind = Literal["absent", "installed", "outdated", "incomplete", "broken"]

TORCH_INDEX: dict[tuple[str, Torch], str] = {
    ("linux", "cpu"): "https://download.pytorch.org/whl/cpu",
    ("win32", "gpu"): "https://download.pytorch.org/whl/cu130",
}
"""Where the torch build lies that the package index does not have under this choice: PyPI holds the CUDA build for Linux, the CPU build
for Windows, the only one for macOS. pip prefers the local version (2.13.0+cpu) that satisfies the same pin."""
DISTRIBUTION = "portrait-diffusion"
VERIFY = ["-m", "portrait_backend", "doctor", "--json"]


@dataclass(frozen=True)
class Options:
    """What to install: the wheel, its constraints, which torch, and a folder of wheels to take everything from (offline)."""

    wheel: Path
    constraints: Path
    torch: Torch = "cpu"
    wheel_folder: Path | None = None
    own_python: str = sys.executable


@dataclass(frozen=True)
class Examined:
    """What lies on the disk, and one line about it."""

    kind: Kind
    text: str


def examine(folders: Folders, wheel: Path | None) -> Examined:
    """Return what is installed, without running anything; wheel: the bundled one (None: any will do)."""
    if folders.incomplete.exists():
        return Examined("incomplete", "The installation was interrupted; it goes on where it was")
    if not folders.record.exists():
        return Examined("absent", "The backend is not installed")
    try:
        record = json.loads(folders.record.read_text(encoding="utf-8"))
        installed = str(record["wheel_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return Examined("broken", "The record of the installation is damaged")
    if not folders.python.exists():
        return Examined("broken", "The backend's Python is gone")
    if wheel is not None and installed != sha256(wheel):
        return Examined("outdated", f"Version {record.get('version', '?')} is installed, this extension brings another")
    return Examined("installed", f"Version {record.get('version', '?')}")


def sha256(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def uninstall(folders: Folders) -> None:
    """Remove the environment; jobs and results stay. Only a folder that an installation of ours made is removed."""
    if not folders.backend.exists():
        return
    if not (folders.incomplete.exists() or folders.record.exists()):
        raise PortraitDiffusionError("not-ours", f"{folders.backend} was not made by an installation", "Look at it and remove it by hand")
    folders.incomplete.touch()  # interrupted, it is seen to be incomplete
    shutil.rmtree(folders.backend)


class Installer(Task):
    """One installation at a time: `start`, then ask `running`, `error` and the log; `cancel` ends it, the rest stays for later."""

    def __init__(self, folders: Folders, log: Log) -> None:
        super().__init__(log)
        self.folders = folders
        self._advice = ""

    def start(self, options: Options) -> None:
        """Begin, or go on with, an installation."""
        self.begin(lambda: self._install(options), "portrait-install")

    def stopped(self) -> PortraitDiffusionError:
        """Return the error of an installation that was cancelled."""
        return PortraitDiffusionError("install-cancelled", "the installation was cancelled", "Install again to go on where it was", True)

    def failed(self, error: OSError) -> PortraitDiffusionError:
        """Return the error of an installation that the operating system stopped."""
        return PortraitDiffusionError("install-failed", f"{error.strerror or error} ({error.filename or 'no file'})", "Try again")

    def _install(self, options: Options) -> None:
        folders = self.folders
        offline = options.wheel_folder is not None
        self._advice = "The folder of wheels must hold every package that the backend needs" if offline else "Try again"
        folders.backend.mkdir(parents=True, exist_ok=True)
        folders.incomplete.touch()
        self.log.start()
        if not self._works([str(folders.python), "-m", "pip", "--version"]):
            self._step("Making a Python environment")
            python = find_python(options.own_python)
            self._call([*python, "-I", "-m", "venv", "--clear", str(folders.venv)], "the environment could not be made")
        self._step("Installing the backend and what it needs")
        self._call(self._pip(options, str(options.wheel)), "pip could not install it")
        # Equal version numbers may be different builds: pip keeps what is there, so the wheel itself is laid anew.
        self._call(self._pip(options, "--no-deps", "--force-reinstall", str(options.wheel)), "pip could not install it")
        self._step("Checking the installation")
        report = self._verify()
        self._write_record(options, report)
        folders.incomplete.unlink()
        self._step("Done")

    def _pip(self, options: Options, *what: str) -> list[str]:
        command = [str(self.folders.python), "-I", "-u", "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command += ["--progress-bar", "off", "--constraint", str(options.constraints)]
        if options.wheel_folder is not None:
            command += ["--no-index", "--find-links", str(options.wheel_folder)]
        elif (sys.platform, options.torch) in TORCH_INDEX:
            command += ["--extra-index-url", TORCH_INDEX[sys.platform, options.torch]]
        return [*command, *what]

    def _verify(self) -> dict[str, Any]:
        lines: list[str] = []
        self._call([str(self.folders.python), *VERIFY], "the installed backend doesn't run", lines.append, accept=(0, 2))
        try:
            report: dict[str, Any] = json.loads("\n".join(lines)[max(0, "\n".join(lines).find("{")) :])
        except ValueError as error:
            raise PortraitDiffusionError("install-failed", "the installed backend gives no report", f"See {self.log.path}") from error
        for name, state in report.get("packages", {}).items():
            if state["error"]:
                do = next((p["do"] for p in report.get("problems", ()) if name in p["what"]), f"See {self.log.path}")
                raise PortraitDiffusionError("install-failed", f"{name} can't be used ({state['error']})", do)
        for problem in report.get("problems", ()):
            self.log.write(f"note: {problem['what']}; {problem['do']}")
        return report

    def _write_record(self, options: Options, report: dict[str, Any]) -> None:
        record = {
            "version": report.get("version", ""),
            "wheel_sha256": sha256(options.wheel),
            "torch": options.torch,
            "python": report.get("python", ""),
        }
        part = self.folders.record.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self.folders.record)

    def _step(self, text: str) -> None:
        self.step = text
        self.log.write(f"== {text}")

    def _works(self, command: list[str]) -> bool:
        try:
            return subprocess.run(command, capture_output=True, check=False, timeout=60, env=clean_environment()).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    def _call(self, command: list[str], problem: str, take: Callable[[str], None] | None = None, accept: tuple[int, ...] = (0,)) -> None:
        """Run a command, its output going to the log (or to `take`) line by line; raises install-failed or install-cancelled."""
        last, first_error = "", ""

        def read(line: str) -> None:
            nonlocal last, first_error
            last = line or last
            if line.startswith("ERROR: "):
                first_error = first_error or line
            (take or self.log.write)(line)

        code = self.call(command, read, subprocess.STDOUT if take is None else subprocess.DEVNULL)
        if code not in accept:
            detail = (first_error or last).removeprefix("ERROR: ").rstrip(".") or f"exit code {code}"
            raise PortraitDiffusionError(
                "install-failed", f"{problem}: {detail}", f"{self._advice}; all output is in {self.log.path}", True
            )
