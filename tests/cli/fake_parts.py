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

from portrait_backend import checkpoints, stages
from portrait_backend.context import Context
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.mesh.views import ProjectedView
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_shared.errors import PortraitDiffusionError

RADIUS = 0.3
RED, BLUE = torch.tensor([0.8, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.8])


class StandIn(ModuleType):
    """A module of stand-ins."""


class BallHead:
    """A solid ball, red on the subject's left (+x) and blue on the right; rendered by ray-sphere intersection."""

    half_extent, surface_density, mesh_level = 0.5, 125.0, 0.0
    meta: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return 250.0 * (points.norm(dim=-1) < RADIUS)

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return torch.where(points[:, :1] > 0, RED, BLUE)

    def picture(self, camera: Camera, *, normals: bool = False) -> RenderOutput:
        return self.render(camera, normals=normals)

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
    corners = np.eye(3, dtype=np.float32) * (1 + head.noise)
    brightness = round(255 * sum(float(view.image.mean()) for view in views))
    texture = np.full((4, 4, 3), brightness, np.uint8)
    mesh = HeadMesh(corners, np.array([[0, 1, 2]]), np.zeros((3, 2), np.float32), np.eye(3, dtype=np.float32), texture)
    context.report(1, 1)
    return mesh


class BallRefined:
    """What a refinement returns: a head and posed images."""

    def __init__(self, head: BallHead, views: list[ProjectedView]) -> None:
        self.head, self.views = head, views


def restore(head: BallHead, portrait: Portrait, settings: Any, context: Context) -> BallHead:
    context.report(1, 1)
    return BallHead(head.noise + float(torch.rand(1, generator=context.generator)))


def refine(head: BallHead, portrait: Portrait, settings: Any, context: Context) -> BallRefined:
    context.report(1, 1)
    image = torch.rand(8, 8, 3, generator=context.generator)
    view = ProjectedView(image, torch.ones(8, 8), torch.ones(8, 8), Camera.orbit(30, 5, 8), 7, 0.5)
    return BallRefined(BallHead(head.noise * 2), [view])


def surface_of(mesh: HeadMesh) -> HeadMesh:
    return mesh


def texture_surface(surface: HeadMesh, head: BallHead, portrait: Portrait, size: int, context: Context, views: Any = ()) -> HeadMesh:
    context.report(1, 1)
    texture = np.full((size // 64, size // 64, 3), round(100 * head.noise), np.uint8)
    return HeadMesh(surface.vertices + 1, surface.faces, surface.uv, surface.normals, texture)


def export_mesh(mesh: HeadMesh, path: Path, extras: dict[str, Any], separate_texture: bool = False, texture_format: str = "png") -> None:
    if separate_texture:
        Path(path).with_suffix(".png").write_bytes(mesh.texture.tobytes())
    Path(path).write_text(
        json.dumps({"extras": extras, "vertices": mesh.vertices.tolist(), "texture": mesh.texture.tolist()}, sort_keys=True)
    )


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins where the pipeline looks for the real parts."""
    for name, attribute, value in (
        ("portrait_backend.portrait.align", "prepare_portrait", prepare_portrait),
        ("portrait_backend.prior", "create_prior", lambda provider: BallPrior()),
        ("portrait_backend.prior", "prior_inputs", lambda settings: {}),
        ("portrait_backend.prior", "for_texture", lambda provider, head, portrait, generator: head),
        ("portrait_backend.mesh.build", "build_mesh", build_mesh),
        ("portrait_backend.mesh.build", "surface_of", surface_of),
        ("portrait_backend.mesh.build", "texture_surface", texture_surface),
        ("portrait_backend.mesh.export", "export_mesh", export_mesh),
    ):
        if not isinstance(sys.modules.get(name), StandIn):
            patch.setitem(sys.modules, name, StandIn(name))
        setattr(sys.modules[name], attribute, value)
    patch.setattr(checkpoints, "write_head", lambda head, path: head.save(path))
    patch.setattr(checkpoints, "read_head", BallHead.load)


def install_later_stages(patch: pytest.MonkeyPatch) -> None:
    """Put stand-ins for stages 2 and 3 into the table of stages."""
    patch.setattr(stages, "RUNNERS", {"prior": stages.RUNNERS["prior"], "restoration": restore, "refinement": refine})
