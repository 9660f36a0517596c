"""The short fit to the photo (L_ref on rgb and matte), with the network's result as the anchor.

Shape and colour have separate residuals: a coarse, slow and strongly anchored one for the shape, a fine
one for the colour. One residual for both shatters the surface. What the photo does not see is held at
the network's answer (with its hair brought to the photo's hair colour), so unseen sides don't drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import hair_share, photo_hair_colour, towards_hair
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import RayOutput, render, render_rays
from portrait_backend.radiance.triplane import resize_planes, sample_planes
from portrait_shared.settings import PriorSettings

SHAPE_SIZE, COLOUR_SIZE = 64, 128
"""Texels per side of the two residuals."""
SHAPE_RATE, COLOUR_RATE = 0.004, 0.01
RAYS, SAMPLES, GRID, REBUILD = 4096, 12, 80, 14
"""Rays a step, samples a ray, lattice resolution, steps between two lattices."""
BACK_VIEWS = ((100.0, 10.0), (140.0, 0.0), (180.0, 25.0), (180.0, -10.0), (-140.0, 0.0), (-100.0, 10.0), (60.0, 45.0), (-60.0, 45.0))
"""Azimuth and pitch of the views whose surface anchors the unseen colours."""
BEHIND = 0.04
"""A surface this much behind what the photo sees is unseen, head units."""


@dataclass(frozen=True)
class FitWeights:
    """Weights of the fit's terms."""

    rgb: float = 2.0
    matte: float = 0.5
    grow: float = 1.0
    shape_anchor: float = 2.0
    colour_anchor: float = 2.0
    residual: float = 0.1
    variation: float = 0.3


class FitField:
    """The head with residual planes added; what the renderer sees during the fit."""

    def __init__(self, head: Head) -> None:
        self.head, self.half_extent, self.surface_density = head, head.half_extent, head.surface_density
        depth, channels = head.geometry.depth, head.geometry.channels
        self.shape = torch.zeros(1, 3, depth, SHAPE_SIZE, SHAPE_SIZE, channels, requires_grad=True)
        self.colour = torch.zeros(1, 3, depth, COLOUR_SIZE, COLOUR_SIZE, channels, requires_grad=True)

    def _sample(self, residual: Tensor, points: Tensor) -> Tensor:
        return sample_planes(residual, (points / self.half_extent)[None], self.head.geometry.axes)[0]

    def raw(self, points: Tensor) -> Tensor:
        """Raw density (N,) of points (N, 3)."""
        return self.head.decoder(self.head.geometry.sample(points) + self._sample(self.shape, points), outputs=1)[0]

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit."""
        return self.head.activation(self.raw(points)) * (points.abs() <= self.half_extent).all(-1)

    def rgb(self, points: Tensor) -> Tensor:
        """Colour (N, 3)."""
        return self.head.decoder(self.head.appearance.sample(points) + self._sample(self.colour, points), outputs=4)[1]

    def decode(self, points: Tensor, features: bool = False) -> tuple[Tensor, Tensor]:
        """Density (N,) and rgb (N, 3)."""
        return self.density(points), self.rgb(points)

    def finished(self) -> Head:
        """Return the head with the residuals merged into its planes."""
        geometry, appearance = self.head.geometry, self.head.appearance
        with torch.no_grad():
            g = geometry.planes + resize_planes(self.shape.detach(), geometry.planes.shape[3])
            a = appearance.planes + resize_planes(self.colour.detach(), appearance.planes.shape[3])
        return self.head.with_planes(geometry=geometry.with_planes(g), appearance=appearance.with_planes(a))


@torch.no_grad()
def unseen_surface(head: Head, portrait: Portrait, grid: DensityGrid) -> tuple[Tensor, Tensor]:
    """Return surface points (N, 3) that the photo does not see and the colours (N, 3) they should have.

    Those of crown and back get the photo's hair colour; the rest keep the prior's.
    """
    reference = render(head, portrait.camera.resized(128), grid=grid, samples=SAMPLES)
    points, colours = [], []
    for azimuth, pitch in BACK_VIEWS:
        camera = Camera.orbit(azimuth + portrait.yaw, pitch, 80)
        out = render(head, camera, grid=grid, samples=SAMPLES)
        solid = (out.alpha > 0.9).reshape(-1)
        origin, directions = camera.rays()
        surface = (origin + directions * out.depth.reshape(-1, 1))[solid]
        hidden = _hidden(surface, reference.depth, portrait.camera.resized(128))
        points.append(surface[hidden])
        colours.append((out.rgb / out.alpha.clamp_min(1e-3)[..., None]).reshape(-1, 3)[solid][hidden])
    p, c = torch.cat(points), torch.cat(colours)
    hair = photo_hair_colour(portrait)
    return p, c if hair is None else towards_hair(c, hair_share(p), hair)


def _hidden(points: Tensor, depth: Tensor, camera: Camera) -> Tensor:
    """Return whether points (N, 3) lie behind the depth map (H, W) of a camera, or beside what it hits."""
    pixels, z = camera.project(points)
    uv = pixels / camera.width * 2 - 1
    seen = F.grid_sample(depth[None, None], uv[None, :, None], mode="nearest", padding_mode="zeros", align_corners=False)[0, 0, :, 0]
    return (seen == 0) | (z > seen + BEHIND)


def fit_to_photo(head: Head, portrait: Portrait, settings: PriorSettings, context: Context, weights: FitWeights | None = None) -> Head:
    """Minimise L_ref over the residual planes in `settings.fit_steps` Adam steps; returns the fitted head."""
    weights, generator = weights or FitWeights(), context.generator
    field = FitField(head)
    groups = [{"params": [field.colour], "lr": COLOUR_RATE, "base": COLOUR_RATE}]
    if settings.fit_shape:
        groups.append({"params": [field.shape], "lr": SHAPE_RATE, "base": SHAPE_RATE})
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    grid = DensityGrid.build(field, GRID)
    unseen = unseen_surface(head, portrait, grid)
    target = _target(portrait)
    side = round(RAYS**0.5)
    for step in range(settings.fit_steps):
        if step and step % REBUILD == 0:
            grid = DensityGrid.build(field, GRID)
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * (1 - 0.8 * step / settings.fit_steps)
        pixels = portrait.camera.resized(side).pixel_centres()
        pixels = pixels + torch.rand(pixels.shape, generator=generator) - 0.5
        origin, directions = portrait.camera.resized(side).rays_through(pixels)
        out = render_rays(field, origin, directions, grid, samples=SAMPLES)
        truth = _lookup(target, pixels / side)
        loss, colour_error = _reference_loss(field, out, truth, origin, directions, weights, generator)
        loss = loss + _anchors(field, head, origin, directions, out, unseen, weights, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        preview = (out.rgb + 1 - out.alpha[:, None]).detach().view(side, side, 3).clamp(0, 1) if step % 10 == 0 else None
        context.report(step + 1, settings.fit_steps, preview, colour_error=float(colour_error.detach()))
    return field.finished()


def _target(portrait: Portrait) -> Tensor:
    """Premultiplied colour, matte and validity (1, 5, H, W)."""
    rgb, matte = portrait.rgba[..., :3], portrait.rgba[..., 3:]
    return torch.cat([rgb * matte, matte, portrait.valid[..., None]], -1).permute(2, 0, 1)[None]


def _lookup(target: Tensor, at: Tensor) -> Tensor:
    """Sample target (1, C, H, W) at positions (N, 2) in [0, 1]: (N, C)."""
    sampled = F.grid_sample(target, (at * 2 - 1)[None, :, None], padding_mode="border", align_corners=False)
    return sampled[0, :, :, 0].T


def _reference_loss(
    field: FitField, out: RayOutput, truth: Tensor, origin: Tensor, directions: Tensor, w: FitWeights, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """L_ref: rgb over a random background and matte, plus growth where the photo has matter and the field none."""
    background = torch.rand(3, generator=generator)
    matte, valid = truth[:, 3], truth[:, 4]
    shown = out.rgb + (1 - out.alpha[:, None]) * background
    colour_error = ((shown - truth[:, :3] - (1 - matte[:, None]) * background).abs().mean(-1) * valid).mean()
    matte_error = ((out.alpha - matte).abs() * valid).mean()
    loss = w.rgb * colour_error + w.matte * matte_error
    missing = ((out.alpha.detach() < 0.3) & (matte > 0.8) & (valid > 0.5)).nonzero()[:, 0][:512]
    if len(missing):
        depth = -(origin @ directions[missing].T) / directions[missing].pow(2).sum(-1)
        t = depth[:, None] + torch.linspace(-0.3, 0.3, 24)
        raw = field.raw((origin + directions[missing, None] * t[..., None]).reshape(-1, 3)).view(len(missing), -1)
        loss = loss + w.grow * F.softplus(1.0 - raw.amax(1)).sum() / len(truth)
    return loss, colour_error


def _anchors(
    field: FitField,
    head: Head,
    origin: Tensor,
    directions: Tensor,
    out: RayOutput,
    unseen: tuple[Tensor, Tensor],
    w: FitWeights,
    generator: torch.Generator,
) -> Tensor:
    """Hold the shape everywhere and the unseen colours at the prior's answer; keep residuals small and smooth."""
    near = origin + directions * out.depth.detach()[:, None]
    near = near[out.alpha.detach() > 0.5]
    pick = torch.randint(0, len(near), (3000,), generator=generator)
    around = near[pick] + 0.04 * torch.randn(3000, 3, generator=generator)
    anywhere = (torch.rand(3000, 3, generator=generator) * 2 - 1) * field.half_extent
    points = torch.cat([around, anywhere])
    with torch.no_grad():
        before = torch.sigmoid(head.decoder(head.geometry.sample(points), outputs=1)[0])
    loss = w.shape_anchor * (torch.sigmoid(field.raw(points)) - before).abs().mean()
    positions, colours = unseen
    if len(positions):
        pick = torch.randint(0, len(positions), (3000,), generator=generator)
        inward = positions[pick] * (1 - 0.02 * torch.rand(3000, 1, generator=generator))
        loss = loss + w.colour_anchor * (field.rgb(inward) - colours[pick]).abs().mean()
    loss = loss + w.residual * (field.shape.pow(2).sum(-1).mean() + field.colour.pow(2).sum(-1).mean())
    return loss + w.variation * (_variation(field.shape) + 0.3 * _variation(field.colour))


def _variation(planes: Tensor) -> Tensor:
    """Total variation of planes (1, 3, D, H, W, C) along H and W."""
    return (planes[:, :, :, 1:] - planes[:, :, :, :-1]).abs().mean() + (planes[:, :, :, :, 1:] - planes[:, :, :, :, :-1]).abs().mean()
