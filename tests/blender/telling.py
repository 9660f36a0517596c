"""Run a story in a real Blender (bpy), in a process of its own, and return what it saw."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NEEDS_BPY = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("bpy") is None, reason="bpy is not installed (it needs Python 3.11: pip install bpy)"),
    pytest.mark.skipif(sys.platform != "linux", reason="the story looks for processes in /proc"),
]
HERE = Path(__file__).parent
PHOTO = HERE.parents[1] / "examples/astronaut.png"
STORY_SECONDS = 3300
MAIN_THREAD_SECONDS = 0.05
"""No call on Blender's main thread may take longer."""


def tell(script: str, extension_zip: Path, work: Path) -> dict[str, Any]:
    """Run the story and return {chapter: what it saw}, and "exit": (exit code, the end of what it printed)."""
    command = [sys.executable, str(HERE / script), str(extension_zip), str(PHOTO), str(work)]
    environment = {name: value for name, value in os.environ.items() if name != "PORTRAIT_DIFFUSION_PYTHON"}
    with (work / "output.txt").open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, timeout=STORY_SECONDS, check=False)
    said = (work / "output.txt").read_text(errors="replace")
    seen: dict[str, Any] = json.loads((work / "story.json").read_text()) if (work / "story.json").exists() else {}
    seen["exit"] = (done.returncode, said[-3000:])
    return seen


def chapter(story: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what a chapter saw; the test fails if the story did not come to its end."""
    if name not in story:
        pytest.fail(f"the story ended before {name}: {story['exit'][1]}")
    assert "failed" not in story[name], story[name]["failed"]
    seen: dict[str, Any] = story[name]
    return seen
