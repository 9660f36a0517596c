"""Points on a head's surface with what the photo says about them: what it saw, how surely, and what it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.portrait.collar import Collar
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.compositing import ray_weights
from portrait_backend.radiance.density_grid import DensityGrid, propose
from portrait_backend.radiance.picture import PictureLattice

DEPTH_SIZE, AROUND_SIZE, SAMPLES = 256, 128, 12
"""Pixels of the reference depth map and of the views from around; samples a ray."""
AROUND = (
    *((azimuth, pitch) for azimuth in (45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0) for pitch in (-12.0, 30.0)),
    (0.0, 65.0), (120.0, 65.0), (240.0, 65.0), (0.0, -35.0),
)  # fmt: skip
"""Azimuth and pitch, degrees from the photo's own azimuth, of the views that together see the whole surface."""
SOLID = 0.9
"""Alpha and matte of a solid pixel."""
DEPTH_EDGE = 0.06
"""Depth range (head units) in 3 x 3 px that makes an edge, where the photo's colours are in doubt."""
MATTE_FEATHER = 6.0
"""Pixels of 512 inside the solid matte over which trust rises from 0 to 1."""
FACING, FACING_BLUR = (0.16, 0.5), 9
"""Cosine between normal and direction to the camera over which trust rises from 0 to 1, of normals averaged over this many px:
bumps of hair don't take away what the photo shows."""
BEHIND = 0.02
"""A point this much behind the reference depth map (head units) is hidden."""


class Density(Protocol):
    """The part of a field that a silhouette needs."""

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit at points (N, 3)."""


@dataclass(frozen=True)
class RaySamples:
    """Samples of R rays that hit: points (R, S, 3), their weights (R, S) in the ray's colour, index (R,) of the ray."""

    points: Tensor
    weight: Tensor
    index: Tensor


def sample_rays(field: Density, origin: Tensor, directions: Tensor, grid: DensityGrid, samples: int = SAMPLES) -> tuple[RaySamples, Tensor]:
    """Return the samples of rays, origin (3,) and directions (N, 3), and their depths t (R, S); only the density is decoded."""
    placed = propose(grid, origin, directions, samples)
    points = origin + directions[placed.index][:, None] * placed.t[..., None]
    density = field.density(points.reshape(-1, 3)).view(placed.t.shape)
    return RaySamples(points, ray_weights(density, placed.t, placed.gap), placed.index), placed.t


def silhouette(field: Density, origin: Tensor, directions: Tensor, grid: DensityGrid) -> tuple[Tensor, Tensor]:
    """Return alpha and z-depth (N,) of rays, 0 where nothing was hit."""
    found, t = sample_rays(field, origin, directions, grid)
    alpha = found.weight.sum(-1)
    empty = directions.new_zeros(len(directions))
    return empty.index_copy(0, found.index, alpha), empty.index_copy(0, found.index, (found.weight * t).sum(-1) / alpha.clamp_min(1e-4))


@dataclass(frozen=True)
class SurfacePoints:
    """position (N, 3) head units; inward (N, 3) unit direction below the surface; the photo's colour (N, 3) and the trust (N,) in it."""

    position: Tensor
    inward: Tensor
    colour: Tensor
    trust: Tensor

    def __getitem__(self, index: Tensor) -> SurfacePoints:
        """Return some of the points."""
        return SurfacePoints(*(getattr(self, field.name)[index] for field in fields(self)))


def joined(parts: Sequence[SurfacePoints]) -> SurfacePoints:
    """Concatenate sets of points."""
    return SurfacePoints(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(SurfacePoints)))


class ReferenceView:
    """The photo with the head's own depth in it: tells colour and trust of surface points."""

    @torch.no_grad()
    def __init__(self, portrait: Portrait, lattice: PictureLattice) -> None:
        self.portrait, camera, self.collar = portrait, portrait.camera.resized(DEPTH_SIZE), Collar(portrait)
        origin, directions = camera.rays()
        alpha, depth, _ = lattice.march(origin, directions)
        solid = (alpha > SOLID).view(1, 1, DEPTH_SIZE, DEPTH_SIZE)
        self.depth = torch.where(solid, depth.view_as(solid), 0)
        far = torch.where(solid, self.depth, 9.0)
        clear = (F.max_pool2d(far, 3, 1, 1) + F.max_pool2d(-far, 3, 1, 1) < DEPTH_EDGE).float()
        certain = F.interpolate(
            clear * self._facing(origin, directions, solid), size=portrait.matte.shape, mode="bilinear", align_corners=False
        )
        inside = (portrait.matte > SOLID) & (portrait.valid > 0.5)
        distance = torch.from_numpy(cv2.distanceTransform(inside.numpy().astype(np.uint8), cv2.DIST_L2, 5))
        self.trust = certain[0, 0] * smoothstep(distance, 1.0, MATTE_FEATHER)
        self.maps = torch.cat([portrait.rgba[..., :3].permute(2, 0, 1), self.trust[None]])[None]

    def _facing(self, origin: Tensor, directions: Tensor, solid: Tensor) -> Tensor:
        """Return the feathered cosine (1, 1, h, w) between the smoothed surface and the direction to the camera."""
        side = solid.shape[-1]
        surface = (origin + directions * self.depth.reshape(-1, 1)).T.view(1, 3, side, side)
        window = (FACING_BLUR, 1, FACING_BLUR // 2)
        surface = F.avg_pool2d(surface * solid, *window) / F.avg_pool2d(solid.float(), *window).clamp_min(1e-3)
        right, down = surface.roll(-1, 3) - surface.roll(1, 3), surface.roll(-1, 2) - surface.roll(1, 2)
        normal = F.normalize(torch.linalg.cross(down, right, dim=1), dim=1)
        to_camera = -F.normalize(directions, dim=-1).T.view(1, 3, side, side)
        return smoothstep((normal * to_camera).sum(1, keepdim=True), *FACING)

    def look_up(self, position: Tensor, inward: Tensor) -> SurfacePoints:
        """Return points (N, 3) as the photo saw them; trust 0 where they are hidden, by the head itself or by a collar."""
        pixels, z = self.portrait.camera.project(position)
        at = (pixels / self.portrait.camera.width * 2 - 1)[None, None]
        found = F.grid_sample(self.maps, at, align_corners=False, padding_mode="zeros")[0, :, 0].T
        depth = F.grid_sample(self.depth, at, mode="nearest", align_corners=False, padding_mode="zeros")[0, 0, 0]
        shown = ((depth > 0) & (z < depth + BEHIND)) * (1 - self.collar.hides(position))
        return SurfacePoints(position, inward, found[:, :3], found[:, 3] * shown)


@torch.no_grad()
def points_around(reference: ReferenceView, lattice: PictureLattice) -> SurfacePoints:
    """Return points of the whole surface, looked at from all sides."""
    parts = []
    for azimuth, pitch in AROUND:
        origin, directions = Camera.orbit(reference.portrait.yaw + azimuth, pitch, AROUND_SIZE).rays()
        alpha, depth, _ = lattice.march(origin, directions)
        hit = alpha > SOLID
        parts.append(reference.look_up(origin + directions[hit] * depth[hit, None], F.normalize(directions[hit], dim=-1)))
    return joined(parts)


def smoothstep(value: Tensor, low: float, high: float) -> Tensor:
    """Return 0 at low, 1 at high and beyond, the cubic 3t^2 - 2t^3 between; low may exceed high."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
