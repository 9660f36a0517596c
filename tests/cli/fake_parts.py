"""Stand-ins for the parts below the pipeline: an analytic head (a ball with coloured halves) and what makes and meshes it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from portrait_backend.context import Context
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_shared.errors import PortraitDiffusionError

RADIUS = 0.3
RED, BLUE = torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.8])


class BallHead:
    """A solid ball, red on the subject's left (+x) and blue on the right; rendered by ray-sphere intersection."""

    half_extent, surface_density = 0.5, 125.0

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return 250.0 * (points.norm(dim=-1) < RADIUS)

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return torch.where(points[:, :1] > 0, RED, BLUE)

    def render(self, camera: Camera, size: int | None = None, normals: bool = False) -> RenderOutput:
        camera = camera if size is None else camera.resized(size)
        origin, directions = camera.rays()
        a, b = (directions**2).sum(-1), directions @ origin
        c = origin @ origin - RADIUS**2
        root = (b**2 - a * c).clamp_min(0).sqrt()
        hit = b**2 > a * c
        depth = torch.where(hit, (-b - root) / a, 0)
        points = origin + depth[:, None] * directions
        alpha = hit.float()
        rgb = self.colour(points) * alpha[:, None]
        shape = (camera.height, camera.width)
        world = torch.where(hit[:, None], points / RADIUS, 0).reshape(*shape, 3) if normals else None
        return RenderOutput(rgb.reshape(*shape, 3), alpha.reshape(shape), depth.reshape(shape), None, world)

    def to(self, device: torch.device) -> BallHead:
        return self

    def save(self, path: Path) -> None:
        Path(path).write_bytes(json.dumps({"ball": self.noise}).encode())

    @staticmethod
    def load(path: Path) -> BallHead:
        return BallHead(json.loads(Path(path).read_bytes())["ball"])


def portrait(source: str = "someone.png") -> Portrait:
    flat = torch.full((512, 512, 4), 0.5)
    return Portrait(
        image=flat[..., :3],
        rgba=flat,
        valid=torch.ones(512, 512),
        landmarks=torch.zeros(468, 2),
        camera=Camera.orbit(0, 0, 512),
        coefficients=torch.zeros(25),
        yaw=1.0,
        pitch=2.0,
        roll=3.0,
        source=source,
        sha256="ab" * 32,
        warnings=("two faces: the largest was taken",),
    )


def prepare_portrait(photo: Path, context: Context) -> Portrait:
    context.report(0, 1)
    if not Path(photo).exists():
        raise PortraitDiffusionError("image-missing", f"there is no file {photo}", "Check the path")
    return portrait(Path(photo).name)


class BallPrior:
    """The prior of a `BallHead`; it draws one number from the stage's generator."""

    steps = 4
    pause = 0.0

    def initialise(self, portrait: Portrait, settings: Any, context: Context) -> BallHead:
        for step in range(self.steps):
            context.report(step, self.steps)
            time.sleep(self.pause)
        context.report(self.steps, self.steps)
        return BallHead(float(torch.rand(1, generator=context.generator)))


def build_mesh(head: BallHead, portrait: Portrait, settings: Any, context: Context, views: Any = ()) -> HeadMesh:
    context.report(0, 1)
    corners = np.eye(3, dtype=np.float32)
    mesh = HeadMesh(corners, np.array([[0, 1, 2]]), np.zeros((3, 2), np.float32), corners, np.zeros((4, 4, 3), np.uint8))
    context.report(1, 1)
    return mesh


def export_mesh(mesh: HeadMesh, path: Path, extras: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(extras, sort_keys=True))


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where the pipeline looks for the real parts."""
    for name, attribute, value in (
        ("portrait_backend.portrait.align", "prepare_portrait", prepare_portrait),
        ("portrait_backend.prior", "create_prior", lambda provider: BallPrior()),
        ("portrait_backend.mesh.build", "build_mesh", build_mesh),
        ("portrait_backend.mesh.export", "export_mesh", export_mesh),
    ):
        module = ModuleType(name)
        setattr(module, attribute, value)
        patch.setitem(sys.modules, name, module)
