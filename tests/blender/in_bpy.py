"""What a story needs in a real Blender (bpy): the extension installed from its zip, a timer that ticks, operators to click.

A story is a script, run as `STORY.py EXTENSION.zip PHOTO WORK_FOLDER` in a process of its own. Each chapter writes what it saw into
WORK_FOLDER/story.json; the tests judge it. `poll` is called as Blender's timer calls it.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARCHIVE, PHOTO, WORK = (Path(argument) for argument in sys.argv[1:4])
ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [path for path in sys.path if not Path(path or ".").resolve().is_relative_to(ROOT)]  # only what the zip brings
os.environ["BLENDER_USER_RESOURCES"] = str(WORK / "blender")
os.environ["PORTRAIT_DIFFUSION_PYTHON"] = sys.executable  # the developer's setting: a backend without an installation
os.environ["PORTRAIT_DIFFUSION_MODELS"] = str(WORK / "models")

import bpy  # noqa: E402

PACKAGE = "bl_ext.user_default.portrait_diffusion"
PATIENCE = 900.0
polls: list[tuple[float, float]] = []
"""(wall seconds, this thread's own seconds) of every tick of the timer."""


def part(name: str) -> Any:
    """Return a module of the installed extension."""
    return importlib.import_module(f"{PACKAGE}.{name}")


def session() -> Any:
    """Return the extension's session."""
    return part("runtime").session()


def enable() -> None:
    """Install the zip and enable the extension, as dropping it into Blender does."""
    bpy.ops.extensions.package_install_files(repo="user_default", filepath=str(ARCHIVE), enable_on_install=True)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return (value, wall seconds, this thread's own seconds): a busy machine adds to the former only."""
    wall, own = time.perf_counter(), time.thread_time()
    value = call()
    return value, time.perf_counter() - wall, time.thread_time() - own


def turn(until: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Let the timer tick until something is true and return it."""
    end = time.monotonic() + patience
    while True:
        _, wall, own = timed(part("runtime").poll)
        polls.append((wall, own))
        if found := until():
            return found
        if time.monotonic() > end:
            backend, jobs = session().backend, [(j.name, j.state, j.stage) for j in session().jobs]
            raise TimeoutError(f"waited {patience:.0f} s: {backend.state} ({backend.message}), {jobs}")
        time.sleep(0.02)


def click(operator: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Call an operator as a button does (without a window Blender makes every call an execution)."""
    result, wall, own = timed(lambda: operator(**arguments))
    return {"result": sorted(result), "wall": wall, "own": own}


def refused(operator: Callable[..., Any], **arguments: Any) -> str:
    """Call an operator that must fail and return the line that it reports, "" if it didn't fail."""
    try:
        operator(**arguments)
    except RuntimeError as error:
        return str(error).strip()
    return ""


def gone(pid: int) -> bool:
    """Return whether a process has ended (one that nobody waited for stays as a zombie)."""
    path = Path(f"/proc/{pid}/stat")
    return not path.exists() or path.read_text().rpartition(")")[2].split()[0] == "Z"


class Paper:
    """A layout that writes down what is drawn on it."""

    def __init__(self, drawn: list[tuple[str, dict[str, Any]]]) -> None:
        self.drawn = drawn

    def __getattr__(self, name: str) -> Any:
        def draw(*given: Any, **named: Any) -> Paper:
            self.drawn.append((given[0] if given else name, named))
            return Paper(self.drawn)

        return draw


def play(chapters: tuple[Callable[[], dict[str, Any]], ...]) -> None:
    """Play the chapters, and leave as Blender does."""
    faulthandler.dump_traceback_later(3000, exit=True)
    story: dict[str, Any] = {}
    for chapter in chapters:
        start = time.monotonic()
        try:
            story[chapter.__name__] = chapter()
        except Exception:  # noqa: BLE001 - whatever it is, the tests show it
            story[chapter.__name__] = {"failed": traceback.format_exc()}
        print(f"{chapter.__name__}: {time.monotonic() - start:.1f} s", flush=True)
        (WORK / "story.json").write_text(json.dumps({**story, "polls": polls}, default=str))
        if "failed" in story[chapter.__name__]:
            print(story[chapter.__name__]["failed"])
            break
    # Blender's own end: a class or timer that is still registered would hang it
    if PACKAGE in bpy.context.preferences.addons:
        bpy.ops.preferences.addon_disable(module=PACKAGE)
    print("the end", flush=True)
