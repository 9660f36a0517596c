"""Find a Python that the backend runs on: Blender's own where it fits, else one that the system has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError

SUPPORTED = ((3, 12), (3, 11))
"""What the backend's own dependencies have wheels for, the better one first."""
PROBE = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"
PROBE_SECONDS = 20


def find_python(own: str = sys.executable, run: Callable[[list[str]], tuple[int, int] | None] | None = None) -> list[str]:
    """Return the command of a Python 3.11 or 3.12 that can make virtual environments: `own` first, then the system's.

    run: returns the version of a command's Python, None if it can't be used (for tests). Raises PortraitDiffusionError no-python.
    """
    version_of = run or probe
    for command in candidates(own):
        if version_of(command) in SUPPORTED:
            return command
    raise PortraitDiffusionError(
        "no-python",
        f"this Blender's Python is {sys.version_info[0]}.{sys.version_info[1]} and no Python 3.11 or 3.12 was found",
        "Install Python 3.12 (python.org, or your system's packages with python3.12-venv), then try again",
    )


def candidates(own: str) -> Iterator[list[str]]:
    """Yield commands that may be a fitting Python."""
    if own and Path(own).is_file():
        yield [own]
    for major, minor in SUPPORTED:
        if path := shutil.which(f"python{major}.{minor}"):
            yield [path]
        if launcher := shutil.which("py"):  # Windows' launcher
            yield [launcher, f"-{major}.{minor}"]
    for name in ("python3", "python"):
        if path := shutil.which(name):
            yield [path]


def probe(command: list[str]) -> tuple[int, int] | None:
    """Run a command's Python and return its version; None if it fails or lacks venv or ensurepip."""
    try:
        done = subprocess.run(
            [*command, "-I", "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode or not done.stdout.strip():
        return None
    major, minor = done.stdout.split()[0].split(".")
    return int(major), int(minor)
