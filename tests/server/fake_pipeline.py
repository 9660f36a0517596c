"""The real engine and the real pipeline with the stand-in parts of tests/cli; PAUSE in the environment slows the prior down."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from portrait_backend.context import Context
from portrait_backend.server.engine import PipelineEngine
from tests.cli import fake_parts
from tests.restoration import small_stage


class FakePipeline(PipelineEngine):
    """Runs the pipeline on an analytic head."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        patch = pytest.MonkeyPatch()
        fake_parts.install(patch)
        fake_parts.BallPrior.pause = float(os.environ.get("PAUSE", "0"))

    def warm_up(self) -> None:
        return None


class Hungry(FakePipeline):
    """Runs out of memory while it makes the mesh."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        sys.modules["portrait_backend.mesh.build"].build_mesh = _too_much  # type: ignore[attr-defined]


class Restoring(FakePipeline):
    """Runs the real stage 2 with the tiny weights in the folder WEIGHTS."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        small_stage.install(pytest.MonkeyPatch(), Path(os.environ["WEIGHTS"]))


def _too_much(head: Any, portrait: Any, settings: Any, context: Context, views: Any = ()) -> None:
    torch.empty(1 << 60)
