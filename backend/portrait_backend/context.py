"""What a stage is given besides its input: device, generator, progress and the only cancel point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from portrait_shared.settings import DiffusionSettings


class Cancelled(Exception):
    """Raised by `Context.report` when the user cancelled the job."""


@dataclass(frozen=True)
class Progress:
    """One progress report: `step` of `steps` in `stage`; preview (H, W, 3) float in [0, 1] or None."""

    stage: str
    step: int
    steps: int
    preview: torch.Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """Device, dtype, seeded generator, progress callback and cancel flag of a running job; whether anybody looks at previews now.

    state: a file in which a long stage may keep what it needs to go on after an interruption; None where nothing is kept.
    diffusion: which networks stages 2 and 3 use, and how they fit into the device's memory.
    """

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator
    on_progress: Callable[[Progress], None] | None = None
    cancelled: Callable[[], bool] | None = None
    stage: str = ""
    shows_previews: Callable[[], bool] | None = None
    state: Path | None = None
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)

    def for_stage(self, stage: str) -> Context:
        """Return the same context reporting under the name `stage`."""
        return replace(self, stage=stage)

    def report(self, step: int, steps: int, preview: torch.Tensor | None = None, **metrics: float) -> None:
        """Report progress; raises `Cancelled` if the job was cancelled. Call it at least once a second."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled(self.stage)
        if self.on_progress is not None:
            self.on_progress(Progress(self.stage, step, steps, preview, metrics))

    def wants_preview(self) -> bool:
        """Tell whether a preview would be shown if it was reported now: ask before making one that costs something."""
        return self.shows_previews is not None and self.shows_previews()


def cpu_context(seed: int = 0) -> Context:
    """Return a silent float32 CPU context seeded with `seed`."""
    return Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(seed))
