"""An engine without torch: the "photo" is JSON that says what happens. Its three stages are checkpoints in the job's folder.

``{"steps": 3, "pause": 0.01, "fail": code, "crash": stage, "crashes": 1, "stubborn": true, "preview": "text", "size": bytes}``
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from portrait_backend.server.backstage import DeviceInfo, RunJob
from portrait_backend.server.executor import Cancelled, Reporter
from portrait_shared.errors import PortraitDiffusionError

STAGES = ("portrait", "prior", "mesh")


def photo(**plan: Any) -> bytes:
    """Return the photo that makes the engine follow a plan."""
    return json.dumps(plan).encode()


def runs(folder: Path) -> list[str]:
    """Return which stages ran in a job's folder, in order, over all attempts."""
    log = folder / "runs.log"
    return log.read_text().split() if log.exists() else []


def expected(photo_bytes: bytes, size: int = 1000) -> bytes:
    """Return the bytes of head.glb that the engine makes of a photo."""
    return (hashlib.sha256(photo_bytes).digest() * (size // 32 + 1))[:size]


class FakeEngine:
    """Follows the photo's plan."""

    def __init__(self, device: str) -> None:
        if device == "cuda":
            raise PortraitDiffusionError("device-unavailable", "no CUDA device can be used here", "Use --device cpu")
        self.device = device

    def describe(self) -> DeviceInfo:
        return DeviceInfo("cpu", "a fake", 1000, 500)

    def warm_up(self) -> None:
        return None

    def run(self, job: RunJob, reporter: Reporter) -> tuple[str, ...]:
        folder = Path(job.folder)
        data = (folder / "photo").read_bytes()
        plan = json.loads(data)
        if "fail" in plan:
            raise PortraitDiffusionError(plan["fail"], "it failed as planned", "Plan better", retryable=True)
        if plan.get("bug"):
            raise ZeroDivisionError("a bug")
        for stage in STAGES:
            done = folder / "checkpoints" / f"{stage}.json"
            if done.exists():
                continue
            self._stage(stage, folder, plan, reporter)
            done.parent.mkdir(exist_ok=True)
            done.write_text('{"payloads": {}}')
        result = folder / "result"
        shutil.rmtree(result, ignore_errors=True)
        part = folder / f"part-{os.getpid()}"
        (part / "views").mkdir(parents=True)
        (part / "head.glb").write_bytes(expected(data, plan.get("size", 1000)))
        (part / "views/front.png").write_bytes(b"front" + job.source.encode())
        (part / "job.json").write_text(json.dumps(job.settings))
        part.rename(result)
        return ("planned",)

    def _stage(self, stage: str, folder: Path, plan: dict[str, Any], reporter: Reporter) -> None:
        with (folder / "runs.log").open("a") as log:
            log.write(stage + "\n")
        if plan.get("crash") == stage and runs(folder).count(stage) <= plan.get("crashes", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        steps = plan.get("steps", 2)
        for step in range(steps):
            preview = plan["preview"].encode() if "preview" in plan and reporter.wants_preview() else None
            reporter.report(stage, step + 1, steps, {"loss": 1 / (step + 1)}, preview)
            time.sleep(plan.get("pause", 0))
            if reporter.cancelled() and not plan.get("stubborn"):
                raise Cancelled
