"""The losses of stage 2 besides guidance: the reference photo at every step, and the regularisers (METHOD, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.field import RadianceField
from portrait_backend.radiance.renderer import RenderOutput, render_rays
from portrait_backend.restoration.views import SAMPLES

REFERENCE_RAYS = 2304
"""Rays through the photo at each step (48 x 48, jittered)."""
RGB_WEIGHT, MASK_WEIGHT = 1000.0, 100.0
"""Weights of the squared errors of L_ref."""


def reference_target(portrait: Portrait, device: torch.device) -> Tensor:
    """Return premultiplied colour, matte and validity (1, 5, H, W) of the photo."""
    rgb, matte = portrait.rgba[..., :3], portrait.rgba[..., 3:]
    return torch.cat([rgb * matte, matte, portrait.valid[..., None]], -1).permute(2, 0, 1)[None].to(device)


def reference_loss(
    field: RadianceField, portrait: Portrait, target: Tensor, grid: DensityGrid, generator: torch.Generator, memory_budget_mb: float
) -> tuple[Tensor, Tensor]:
    """Return L_ref where the photo is valid, 1000 x squared rgb error over a random grey + 100 x squared matte error, and the rgb error."""
    side = round(REFERENCE_RAYS**0.5)
    camera = portrait.camera.resized(side).to(target.device)
    pixels = camera.pixel_centres()
    pixels = pixels + torch.rand(pixels.shape, generator=generator, device=generator.device).to(target.device) - 0.5
    origin, directions = camera.rays_through(pixels)
    out = render_rays(field, origin, directions, grid, samples=SAMPLES, memory_budget_mb=memory_budget_mb)
    truth = F.grid_sample(target, (pixels / side * 2 - 1)[None, :, None], padding_mode="border", align_corners=False)[0, :, :, 0].T
    matte, valid = truth[:, 3:4], truth[:, 4]
    grey = float(torch.rand((), generator=generator, device=generator.device))
    shown = out.rgb + (1 - out.alpha[:, None]) * grey
    error = (shown - truth[:, :3] - (1 - matte) * grey).pow(2).mean(-1)
    count = valid.sum().clamp_min(1)
    rgb = (error * valid).sum() / count
    mask = ((out.alpha - matte[:, 0]).pow(2) * valid).sum() / count
    return RGB_WEIGHT * rgb + MASK_WEIGHT * mask, rgb.detach().sqrt()


def opaque_loss(alpha: Tensor) -> Tensor:
    """Return BCE(o, o): opacities are drawn to 0 or 1."""
    o = alpha.clamp(1e-3, 1 - 1e-3)
    return F.binary_cross_entropy(o, o)


def sparsity_loss(alpha: Tensor) -> Tensor:
    """Return the mean of sqrt(o^2 + 0.01): no matter where none is needed."""
    return (alpha.pow(2) + 0.01).sqrt().mean()


def smoothness_loss(out: RenderOutput) -> Tensor:
    """Return the mean squared difference of neighbouring normals (world space) where both pixels are solid."""
    assert out.normals is not None
    n, solid = out.normals, (out.alpha.detach() > 0.9).float()
    across = (n[:, 1:] - n[:, :-1]).pow(2).sum(-1) * solid[:, 1:] * solid[:, :-1]
    down = (n[1:] - n[:-1]).pow(2).sum(-1) * solid[1:] * solid[:-1]
    return (across.sum() + down.sum()) / solid.sum().clamp_min(1)


def colour_anchor_loss(now: RenderOutput, before: RenderOutput) -> Tensor:
    """Return the L1 difference of the straight colours of two renders of a view where both are solid.

    What no photo shows keeps the colours that it had at first; only the surface under them moves.
    """
    solid = ((now.alpha.detach() > 0.9) & (before.alpha > 0.9))[..., None]
    difference = now.rgb / now.alpha.detach().clamp_min(0.1)[..., None] - before.rgb / before.alpha.clamp_min(0.1)[..., None]
    return (difference.abs() * solid).sum() / (3 * solid.sum().clamp_min(1))


def variation_loss(change: Tensor) -> Tensor:
    """Return the total variation of the change of planes (1, 3, D, H, W, C) along H and W."""
    return (change[:, :, :, 1:] - change[:, :, :, :-1]).abs().mean() + (change[:, :, :, :, 1:] - change[:, :, :, :, :-1]).abs().mean()
