"""What stands in for the pipeline in the worker processes of a batch: each photo's content says what happens to it."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portrait_backend.batch.worker import Task, generate
from portrait_backend.job_folder import job_folder, write_record
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import to_dict

LIGHT = "tests.batch.fake_engine:light"
PIPELINE = "tests.batch.fake_engine:pipeline"


class Progress:
    """As `portrait_backend.context.Progress`, without torch."""

    stage, step, steps = "prior", 1, 2


def light(task: Task, on_progress: Callable[[Any], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Write a small head; "no-face", "fault", "die", "full" and "slow" in a photo do what they say while its folder is half-written."""
    if not task.photo.is_file():
        raise PortraitDiffusionError("image-missing", f"there is no file {task.photo}", "Check the path")
    text = task.photo.read_text()
    with job_folder(task.folder) as folder:
        (folder / "head.glb").write_text(text)
        on_progress(Progress())
        if text == "no-face":
            raise PortraitDiffusionError("no-face", "there is no face", "Take another photo")
        if text == "memory":
            raise PortraitDiffusionError("out-of-memory", "too little", "Use less", retryable=True)
        if text == "fault":
            raise ZeroDivisionError("a bug\nwith more lines")
        if text == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "wait":
            time.sleep(1)
        while text == "slow":
            time.sleep(0.02)
            if cancelled():
                from portrait_backend.context import Cancelled

                raise Cancelled("prior")
        return write_record(
            folder,
            {
                "photo": {"name": task.photo.name, "sha256": hashlib.sha256(text.encode()).hexdigest()},
                "settings": to_dict(task.settings),
                "warnings": ["blurred"] if text == "blurred" else [],
                "pid": os.getpid(),
                "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "threads": os.environ.get("OMP_NUM_THREADS"),
            },
        )


def pipeline(task: Task, on_progress: Callable[[Any], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Run the real pipeline on an analytic head; MESH_PAUSE slows the mesh, the file RUNS gets the names of stages that are computed."""
    from dataclasses import replace

    from portrait_backend.portrait.types import Portrait
    from tests.cli import fake_parts

    stand_in = fake_parts.prepare_portrait

    def prepare(photo: Path, context: Any) -> Portrait:
        return replace(stand_in(photo, context), sha256=hashlib.sha256(photo.read_bytes()).hexdigest())

    def noted(name: str, make: Callable[..., Any], pause: float) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            if "RUNS" in os.environ:
                with Path(os.environ["RUNS"]).open("a") as log:
                    log.write(name + "\n")
            time.sleep(pause)
            return make(*arguments, **more)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_parts.BallPrior, "initialise", noted("prior", fake_parts.BallPrior.initialise, 0))
        patch.setattr(fake_parts, "build_mesh", noted("mesh", fake_parts.build_mesh, float(os.environ.get("MESH_PAUSE", "0"))))
        patch.setattr(fake_parts, "prepare_portrait", prepare)
        patch.setattr(fake_parts.BallPrior, "pause", float(os.environ.get("PAUSE", "0")))
        fake_parts.install(patch)
        return generate(task, on_progress, cancelled)
