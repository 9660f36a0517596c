"""An analytic head for the mesh tests: a signed distance, procedural colours, and the photo a perfect camera would take of it."""

from __future__ import annotations

import torch
from torch import Tensor

from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera

SATURATION = 250.0
PHOTO_SIZE = 256
"""Half of a real portrait's, for speed."""
TINT = (-0.12, 0.0, 0.1)
"""How far the tests' fields are off the colours of their photos."""


class SphereField:
    """A solid sphere with a constant colour; radius and centre in head units."""

    half_extent = 0.5
    surface_density = SATURATION / 2
    mesh_level = 0.0

    def __init__(self, radius: float = 0.3, steepness: float = 200.0, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        self.radius, self.steepness, self.centre = radius, steepness, torch.tensor(centre)

    def distance(self, points: Tensor) -> Tensor:
        return (points - self.centre).norm(dim=-1) - self.radius

    def density(self, points: Tensor) -> Tensor:
        return SATURATION * torch.sigmoid(-self.steepness * self.distance(points))

    def colour(self, points: Tensor) -> Tensor:
        return torch.tensor([0.6, 0.4, 0.3]).expand(len(points), 3)


class HeadField(SphereField):
    """Skull, nose, brows, ears and a neck that leaves the box; optionally a floater and an inner cavity.

    `tint` (3,) is added to the colour, so that a field can disagree with the photo by a known amount.
    """

    def __init__(
        self, steepness: float = 150.0, floater: bool = True, cavity: bool = True, tint: tuple[float, float, float] = (0, 0, 0)
    ) -> None:
        super().__init__(steepness=steepness)
        self.floater, self.cavity, self.tint = floater, cavity, torch.tensor(tint)

    def distance(self, points: Tensor) -> Tensor:
        head = _ellipsoid(points, (0, 0.08, 0), (0.25, 0.33, 0.29))
        neck = (points[:, [0, 2]] - torch.tensor([0.0, -0.05])).norm(dim=-1) - 0.14
        neck = torch.maximum(neck, points[:, 1] - 0.0)
        solid = _smooth_min(head, neck, 0.06)
        solid = _smooth_min(solid, _ellipsoid(points, (0, 0.03, 0.29), (0.035, 0.07, 0.05)), 0.03)
        for side in (-1, 1):
            solid = _smooth_min(solid, _ellipsoid(points, (side * 0.265, 0.06, -0.03), (0.022, 0.075, 0.05)), 0.01)
            solid = -_smooth_min(-solid, _ellipsoid(points, (side * 0.09, 0.12, 0.28), (0.05, 0.03, 0.03)), 0.03)
        if self.cavity:
            solid = torch.maximum(solid, 0.08 - (points - torch.tensor([0.0, 0.1, -0.05])).norm(dim=-1))
        if self.floater:
            solid = torch.minimum(solid, (points - torch.tensor([0.38, 0.36, 0.36])).norm(dim=-1) - 0.06)
        return solid

    def colour(self, points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        hair = torch.sigmoid(60 * torch.maximum(y - 0.22 - 0.15 * z, -0.08 - z - 0.4 * (0.1 - y).clamp_min(0)))[:, None]
        skin = torch.stack([0.75 + 0.08 * torch.sin(40 * x), 0.55 + 0.08 * torch.sin(40 * y), 0.45 + 0.05 * torch.sin(30 * z)], -1)
        dark = torch.stack([0.25 + 0.06 * torch.sin(50 * x), 0.16 + 0.04 * torch.sin(35 * y), 0.12 + 0.03 * torch.sin(45 * z)], -1)
        return (skin * (1 - hair) + dark * hair + self.tint).clamp(0, 1)


def _ellipsoid(points: Tensor, centre: tuple[float, ...], radii: tuple[float, ...]) -> Tensor:
    """Distance estimate k0 (k0 - 1) / k1 of an ellipsoid (Quilez)."""
    q, r = points - torch.tensor(centre), torch.tensor(radii)
    k0, k1 = (q / r).norm(dim=-1), (q / r**2).norm(dim=-1).clamp_min(1e-6)
    return k0 * (k0 - 1) / k1


def _smooth_min(a: Tensor, b: Tensor, k: float) -> Tensor:
    h = (k - (a - b).abs()).clamp_min(0) / k
    return torch.minimum(a, b) - h * h * k / 4


def trace(field: SphereField, camera: Camera, steps: int = 40) -> tuple[Tensor, Tensor]:
    """Sphere-trace the solid, cut by the box: world points (N, 3) and hit mask (N,) per pixel."""
    origin, directions = camera.rays()
    half = field.half_extent
    near = ((torch.where(directions > 0, -half, half) - origin) / directions).amax(-1)
    far = ((torch.where(directions > 0, half, -half) - origin) / directions).amin(-1)
    ray = (near < far).nonzero()[:, 0]
    t, step = near.clone(), 0.8 / directions.norm(dim=-1)
    for _ in range(steps):
        t[ray] += step[ray] * field.distance(origin + t[ray, None] * directions[ray])
        ray = ray[t[ray] < far[ray]]
    points = origin + t[:, None] * directions
    hit = (t <= far) & (t >= near - 1e-4)
    hit[hit.clone()] = field.distance(points[hit]).abs() < 2e-3
    return points, hit


def portrait_of(field: SphereField, camera: Camera | None = None) -> Portrait:
    """Return the photo of `field` that an ideal, unlit camera takes; the floater is not in it."""
    camera = camera or Camera.orbit(0, 0, PHOTO_SIZE)
    points, hit = trace(field, camera)
    shape = (camera.height, camera.width)
    matte = hit.float().reshape(*shape, 1)
    rgb = field.colour(points).reshape(*shape, 3)
    image = rgb * matte + torch.tensor([0.0, 1.0, 0.0]) * (1 - matte)
    return Portrait(
        image,
        torch.cat([image, matte], -1),
        torch.ones(shape),
        torch.zeros(468, 2),
        camera,
        torch.zeros(1),
        0.0,
        0.0,
        0.0,
        "fake.png",
        "0" * 64,
    )
