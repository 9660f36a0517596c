"""The short fit of the shape to the photo's matte, held at the network's cleaned shape; the colours come after (`paint.py`).

The residual is coarse, slow and smooth: a finer one shatters the surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.painting.adam import Adam
from portrait_backend.painting.surface import silhouette
from portrait_backend.portrait.regions import ear_share
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.clean_shape import RESOLUTION, clean_occupancy, largest_piece
from portrait_backend.prior.paint import paint
from portrait_backend.radiance.density_grid import DensityGrid, neighbourhood_max
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.triplane import resize_planes, sample_planes
from portrait_shared.settings import PriorSettings

SHAPE_SIZE = 64
"""Texels per side of the residual."""
SHAPE_RATE = 0.01
NEAR, ANYWHERE = 7000, 1000
"""Points a step that hold the shape: where it is decided, and in the whole box."""
EAR_WEIGHT = 8
"""How many times as often as others points where ears are hold the shape: their small folds are what the coarse residual loses first."""
RAYS, GRID, REBUILD = 2025, 80, 14
"""Rays a step, lattice resolution, steps between two lattices."""
MARGIN = 3
"""Cells around the cleaned shape in which there may be matter; farther off there is the network's haze."""
FLOATS = 0.5
"""Share of the surface's density from which matter is looked at for what hangs together."""


@dataclass(frozen=True)
class FitWeights:
    """Weights of the fit's terms."""

    matte: float = 2.5
    anchor: float = 6.0
    residual: float = 0.05
    variation: float = 0.15


class ShapeField:
    """The head's density with a residual added to its geometry planes."""

    def __init__(self, head: Head) -> None:
        self.head, self.half_extent, self.surface_density = head, head.half_extent, head.surface_density
        depth, channels = head.geometry.depth, head.geometry.channels
        self.residual = torch.zeros(1, 3, depth, SHAPE_SIZE, SHAPE_SIZE, channels, requires_grad=True)

    def raw(self, points: Tensor) -> Tensor:
        """Raw density (N,) of points (N, 3)."""
        added = sample_planes(self.residual, (points / self.half_extent)[None], self.head.geometry.axes)[0]
        return self.head.decoder(self.head.geometry.sample(points) + added, outputs=1)[0]

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit."""
        return self.head.activation(self.raw(points)) * (points.abs() <= self.half_extent).all(-1)

    def decode(self, points: Tensor, features: bool = False) -> tuple[Tensor, Tensor]:
        """Density (N,) and no colours."""
        return self.density(points), points.new_zeros(len(points), 3)

    def finished(self) -> Head:
        """Return the head with the residual merged into its planes."""
        geometry, appearance = self.head.geometry, self.head.appearance
        with torch.no_grad():
            planes = geometry.planes + resize_planes(self.residual.detach(), geometry.planes.shape[3])
        return self.head.with_planes(geometry=geometry.with_planes(planes), appearance=appearance)


def fit_to_photo(head: Head, portrait: Portrait, settings: PriorSettings, context: Context) -> Head:
    """Fit the shape to the matte in `settings.fit_steps` Adam steps, then paint in `settings.painting` times as many.

    Colours have more detail. Two photos, 40 steps of the shape, the photo's rays and points around: 29.8 and 30.6 dB, 0.0137 and 0.0175
    off with as many steps of painting; 35.2 and 33.8 dB, 0.0083 and 0.0105 with four times. Returns the fitted head.
    """
    steps = settings.fit_steps
    total = (1 + settings.painting) * steps
    shaped = fit_shape(head, portrait, steps, context, total) if settings.fit_shape else head
    return paint(shaped, portrait, settings.painting * steps, context, steps, total)


def fit_shape(head: Head, portrait: Portrait, steps: int, context: Context, total: int, weights: FitWeights | None = None) -> Head:
    """Minimise the difference between silhouette and matte over the residual in `steps` Adam steps, reported as the first of `total`."""
    weights, generator = weights or FitWeights(), context.generator
    field = ShapeField(head)
    optimiser = Adam(field.residual, SHAPE_RATE, betas=(0.9, 0.95))
    found = DensityGrid.build(head, RESOLUTION)
    wanted = clean_occupancy(head, portrait, found)
    cells = _undecided(found.values / (2 * head.surface_density), wanted)
    ears = ear_share(((_corner(cells, len(wanted)) + 0.5) / len(wanted) * 2 - 1) * head.half_extent) > 0.5
    cells = torch.cat([cells, cells[ears].repeat(EAR_WEIGHT - 1)])
    target = torch.stack([portrait.matte, portrait.valid])[None]
    side = round(RAYS**0.5)
    for step in range(steps):
        if step % REBUILD == 0:
            grid = DensityGrid.build(field, GRID)
        optimiser.lr = SHAPE_RATE * (1 - 0.8 * step / steps)
        pixels = portrait.camera.resized(side).pixel_centres()
        pixels = pixels + torch.rand(pixels.shape, generator=generator) - 0.5
        origin, directions = portrait.camera.resized(side).rays_through(pixels)
        alpha, _ = silhouette(field, origin, directions, grid)
        matte, valid = _lookup(target, pixels / side).unbind(-1)
        error = ((alpha - matte).abs() * valid).mean()
        loss = weights.matte * error + _anchor(field, wanted, cells, weights, generator)
        optimiser.minimise(loss)
        context.report(step + 1, total, None, matte_error=float(error.detach()))
    return without_floaters(field.finished().within(around(wanted)))


@torch.no_grad()
def without_floaters(head: Head) -> Head:
    """Return the head without what does not hang together with its largest solid: shreds of flying hair."""
    solid = (head.density_grid().values > FLOATS * head.surface_density).cpu()
    largest = torch.from_numpy(largest_piece(solid.numpy()))
    if torch.equal(largest, solid):
        return head
    loose = around(solid.float() * ~largest, 1) & ~around(largest.float(), 1)
    near = around(largest.float(), MARGIN) & ~loose
    if head.region is None:
        return head.within(near)
    finer = F.interpolate(near[None, None].float(), size=head.region.shape, mode="nearest")[0, 0] > 0.5
    return head.within(head.region & finer.to(head.region.device))


def around(wanted: Tensor, cells: int = MARGIN) -> Tensor:
    """Return the cells (n, n, n) bool within `cells` of the solid ones of a lattice (n, n, n)."""
    for _ in range(cells):
        wanted = neighbourhood_max(wanted)
    return wanted > 0.5


def _lookup(target: Tensor, at: Tensor) -> Tensor:
    """Sample target (1, C, H, W) at positions (N, 2) in [0, 1]: (N, C)."""
    sampled = F.grid_sample(target, (at * 2 - 1)[None, :, None], padding_mode="border", align_corners=False)
    return sampled[0, :, :, 0].T


def _anchor(field: ShapeField, wanted: Tensor, cells: Tensor, w: FitWeights, generator: torch.Generator) -> Tensor:
    """Hold the shape at the cleaned lattice (n, n, n), mostly at `cells` (K,) of it; keep the residual small and smooth."""
    n = len(wanted)
    pick = cells[torch.randint(0, len(cells), (NEAR,), generator=generator)]
    near = (_corner(pick, n) + torch.rand(NEAR, 3, generator=generator)) / n * 2 - 1
    anywhere = torch.rand(ANYWHERE, 3, generator=generator) * 2 - 1
    points = torch.cat([near, anywhere])
    share = F.grid_sample(wanted[None, None], points[None, None, None], padding_mode="border", align_corners=False)[0, 0, 0, 0]
    solid = field.head.activation(field.raw(points * field.half_extent)) / (2 * field.surface_density)
    loss = w.anchor * (solid - share).abs().mean()
    return loss + w.residual * field.residual.pow(2).sum(-1).mean() + w.variation * _variation(field.residual)


def _corner(cells: Tensor, n: int) -> Tensor:
    """Return x, y and z (K, 3), in cells, of the lower corners of the cells (K,) of a lattice (n, n, n)."""
    return torch.stack([cells % n, cells // n % n, cells // n**2], -1)


def _undecided(share: Tensor, wanted: Tensor) -> Tensor:
    """Return the cells (K,) of the lattices (n, n, n) that are near the surface or not what they should be."""
    high, low = (neighbourhood_max(neighbourhood_max(sign * wanted)) for sign in (1, -1))  # 5 x 5 x 5 cells
    edge = high + low > 0.3
    return (edge | ((share - wanted).abs() > 0.1)).flatten().nonzero()[:, 0]


def _variation(planes: Tensor) -> Tensor:
    """Total variation of planes (1, 3, D, H, W, C) along H and W."""
    return (planes[:, :, :, 1:] - planes[:, :, :, :-1]).abs().mean() + (planes[:, :, :, :, 1:] - planes[:, :, :, :, :-1]).abs().mean()
