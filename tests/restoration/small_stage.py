"""The real stage 2 in the real pipeline, with tiny weights, on an analytic head: stand-ins for everything else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from portrait_backend import checkpoints
from portrait_backend.checkpoints import read_head, write_head
from portrait_backend.context import Context
from portrait_backend.diffusion.codec import tiny_codec
from portrait_backend.diffusion.denoiser import tiny_denoiser
from portrait_backend.diffusion.weights import save_codec, save_denoiser
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head
from portrait_shared.settings import OutputSettings, PriorSettings, RestorationSettings, Settings
from tests.cli import fake_parts

SETTINGS = Settings(
    seed=2,
    stages=("prior", "restoration"),
    prior=PriorSettings(fit_steps=0),
    restoration=RestorationSettings(steps=3, render_size=32),
    output=OutputSettings(view_size=64, turntable="none"),
)
"""Settings with which the stage takes a second."""


class EllipsoidPrior:
    """The prior of an ellipsoid."""

    def initialise(self, portrait: Portrait, settings: Any, context: Context) -> Head:
        context.report(1, 1)
        return ellipsoid_head((0.27, 0.36, 0.3), channels=8, hidden=16, size=32)


def build_mesh(head: Head, portrait: Portrait, settings: Any, context: Context, views: Any = ()) -> HeadMesh:
    """Return a triangle that tells heads apart."""
    context.report(1, 1)
    corners = np.eye(3, dtype=np.float32) * float(head.geometry.planes.abs().mean())
    return HeadMesh(corners, np.array([[0, 1, 2]]), np.zeros((3, 2), np.float32), corners, np.zeros((4, 4, 3), np.uint8))


def write_weights(folder: Path) -> None:
    """Write a tiny codec and denoiser as starter weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_codec(tiny_codec(), folder / "codec.safetensors")
    save_denoiser(tiny_denoiser(), folder / "denoiser.safetensors")


def install(patch: pytest.MonkeyPatch, weights: Path) -> None:
    """Put the stand-ins where the pipeline looks for the real parts, and the starter weights in the folder `weights`."""
    fake_parts.install(patch)
    patch.setattr(checkpoints, "write_head", write_head)
    patch.setattr(checkpoints, "read_head", read_head)
    patch.setattr(sys.modules["portrait_backend.prior"], "create_prior", lambda provider: EllipsoidPrior())
    patch.setattr(sys.modules["portrait_backend.mesh.build"], "build_mesh", build_mesh)
    patch.setattr("portrait_backend.models.STARTER", weights)
    torch.set_num_threads(1)
