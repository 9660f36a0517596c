"""Spheres as views of a surface, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.geometry.surface_views import SurfaceView
from portrait_backend.radiance.cameras import Camera

Ball = tuple[tuple[float, float, float], float]
HEAD: Ball = ((0.0, 0.0, 0.0), 0.35)


def view_of(camera: Camera, balls: Sequence[Ball] = (HEAD,)) -> tuple[SurfaceView, Tensor]:
    """Return the view of the nearest of some (centre, radius) balls and its texture (1, 3, S, S), a function of the place alone."""
    origin, directions = camera.rays()
    depth = torch.full((len(directions),), float("inf"))
    normals = torch.zeros(len(directions), 3)
    for centre, radius in balls:
        offset = origin - torch.tensor(centre)
        a, b, c = directions.pow(2).sum(-1), directions @ offset, offset @ offset - radius**2
        root = b**2 - a * c
        z = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, float("inf"))
        nearer = z < depth
        depth = torch.where(nearer, z, depth)
        found = F.normalize(origin + directions * z.nan_to_num(posinf=0.0)[:, None] - torch.tensor(centre), dim=-1)
        normals = torch.where(nearer[:, None], found, normals)
    hit = torch.isfinite(depth)
    depth = torch.where(hit, depth, 0.0)
    points = origin + directions * depth[:, None]
    shape = (1, camera.height, camera.width)
    surface = SurfaceView.from_cameras(depth.view(shape), hit.float().view(shape), [camera], normals.view(*shape, 3))
    return surface, texture(points).view(*shape, 3).permute(0, 3, 1, 2)


def texture(points: Tensor) -> Tensor:
    """Return colours (N, 3) in [0, 1] of points (N, 3)."""
    return torch.sin(20 * points) * 0.5 + 0.5
