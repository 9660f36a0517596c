"""Inversion of a photo into a generator of planes, then tuning of the generator around it (PTI, arXiv 2106.05744).

Both compare the head itself, rendered by the one renderer from the photo's camera, with the photo: colour, matte, and how alike the
pictures are. The published code compares the output of the super-resolution network with a VGG network instead; neither is needed here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.eg3d import PlaneGenerator
from portrait_backend.prior.perceptual import pyramid_loss
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PriorSettings

LATENT_RATE, TUNING_RATE = 0.1, 3e-4
"""Learning rates of the published inversion."""
RAMP_UP, RAMP_DOWN = 0.05, 0.25
NOISE, NOISE_END = 0.05, 0.75
"""Noise on w, share of its deviation, and when it has faded."""
SAMPLES_OF_W = 10000
GRID, REBUILD, PREVIEW = 64, 5, 10
"""Lattice resolution; steps between two lattices and two previews."""


@dataclass(frozen=True)
class InversionWeights:
    """Weights of the terms: squared colour and matte errors, pyramid, distance of w from the mean, of w+ from one w."""

    colour: float = 1.0
    matte: float = 1.0
    pyramid: float = 1.0
    mean: float = 0.02
    spread: float = 0.02


@dataclass(frozen=True)
class Inversion:
    """What was found: the generator (tuned), w (w_dim,) or (styles, w_dim), colour error (RMS) after inversion and after tuning."""

    generator: PlaneGenerator
    latent: Tensor
    inverted_error: float
    tuned_error: float


class _Photo:
    """The photo as the target of a render, and the comparison with it."""

    def __init__(self, portrait: Portrait, size: int, context: Context) -> None:
        self.camera = portrait.camera.resized(size).to(context.device)
        maps = torch.cat([portrait.rgba[..., :3] * portrait.rgba[..., 3:], portrait.rgba[..., 3:], portrait.valid[..., None]], -1)
        maps = F.interpolate(maps.permute(2, 0, 1)[None], size=(size, size), mode="area").to(context.device)
        self.rgb, self.matte, self.valid = maps[:, :3], maps[:, 3:4], maps[:, 4:]
        self.context = context

    def compare(self, head: Head, grid: DensityGrid, weights: InversionWeights) -> tuple[Tensor, float, Tensor]:
        """Return the loss, the RMS colour error and the picture (3, H, W) of a head, over a random grey."""
        out = head.render(self.camera, grid=grid, generator=self.context.generator)
        grey = float(torch.rand((), generator=self.context.generator, device=self.context.generator.device))
        alpha = out.alpha[None, None]
        shown = out.rgb.permute(2, 0, 1)[None] + grey * (1 - alpha)
        truth = self.rgb + grey * (1 - self.matte)
        count = self.valid.sum().clamp_min(1)
        colour = ((shown - truth).square().mean(1, keepdim=True) * self.valid).sum() / count
        matte = ((alpha - self.matte).square() * self.valid).sum() / count
        loss = weights.colour * colour + weights.matte * matte + weights.pyramid * pyramid_loss(shown, truth, self.valid)
        return loss, float(colour.detach().sqrt()), shown.detach()[0]


def invert(
    generator: PlaneGenerator,
    place: Callable[[Head], Head],
    label: Tensor,
    portrait: Portrait,
    settings: PriorSettings,
    context: Context,
    weights: InversionWeights | None = None,
) -> Inversion:
    """Find the latent of the photo, then tune a copy of the generator's synthesis; the decoder stays.

    place: a head of the generator's world to ours; label (25,): the camera that the mean latent is conditioned on. PortraitDiffusionError
    ``inversion-diverged`` where the loss stops being finite, and Cancelled.
    """
    weights = weights or InversionWeights()
    photo = _Photo(portrait, settings.compare_size, context)
    steps = settings.inversion_steps + settings.tuning_steps
    latent, error = _find_latent(generator, place, label, photo, settings, weights)
    tuned, after = generator, error
    if settings.tuning_steps:
        tuned = copy.copy(generator)
        tuned._modules = dict(generator._modules)
        tuned.backbone = copy.deepcopy(generator.backbone)
        after = _tune(tuned, place, latent, photo, settings, weights)
    context.report(steps, max(steps, 1), None, colour_error=after)
    return Inversion(tuned, latent, error, after)


def latent_statistics(generator: PlaneGenerator, label: Tensor, random: torch.Generator, count: int = SAMPLES_OF_W) -> tuple[Tensor, float]:
    """Return the mean w (w_dim,) of random heads seen with a label (25,), and their deviation (root of the mean squared distance)."""
    config, device = generator.backbone.config, generator.mean_latent.device
    z = torch.randn(count, config.z_dim, generator=random, device=random.device).to(device)
    with torch.no_grad():
        w = generator.backbone.mapping(z, label.to(device).expand(count, -1))
    mean = w.mean(0)
    return mean, float((w - mean).square().sum(1).mean().sqrt())


def _find_latent(
    generator: PlaneGenerator,
    place: Callable[[Head], Head],
    label: Tensor,
    photo: _Photo,
    settings: PriorSettings,
    weights: InversionWeights,
) -> tuple[Tensor, float]:
    context, steps = photo.context, settings.inversion_steps
    mean, deviation = latent_statistics(generator, label, context.generator)
    latent = mean.clone() if settings.latent == "w" else mean.expand(generator.backbone.config.styles, -1).clone()
    latent.requires_grad_()
    optimiser = torch.optim.Adam([latent], lr=LATENT_RATE)
    grid, error = None, math.nan
    for step in range(steps):
        share = step / steps
        optimiser.param_groups[0]["lr"] = LATENT_RATE * _ramp(share)
        noise = deviation * NOISE * max(0.0, 1 - share / NOISE_END) ** 2
        moved = latent + noise * torch.randn(latent.shape, generator=context.generator, device=context.generator.device).to(latent.device)
        head = place(generator.head(moved))
        grid = _lattice(head) if grid is None or step % REBUILD == 0 else grid
        loss, error, picture = photo.compare(head, grid, weights)
        loss = loss + weights.mean * (latent - mean).square().mean()
        if latent.ndim == 2:
            loss = loss + weights.spread * (latent - latent.mean(0)).square().mean()
        _step(optimiser, loss, "inversion", step)
        _report(context, step + 1, steps + settings.tuning_steps, picture, error)
    return latent.detach(), error


def _tune(
    generator: PlaneGenerator,
    place: Callable[[Head], Head],
    latent: Tensor,
    photo: _Photo,
    settings: PriorSettings,
    weights: InversionWeights,
) -> float:
    """Tune the synthesis of a generator in place, the latent fixed; returns the last colour error."""
    synthesis = generator.backbone.synthesis.requires_grad_(True)
    optimiser = torch.optim.Adam(synthesis.parameters(), lr=TUNING_RATE)
    grid, error = None, math.nan
    for step in range(settings.tuning_steps):
        head = place(generator.head(latent))
        grid = _lattice(head) if grid is None or step % REBUILD == 0 else grid
        loss, error, picture = photo.compare(head, grid, weights)
        _step(optimiser, loss, "tuning", step)
        done = settings.inversion_steps + step + 1
        _report(photo.context, done, settings.inversion_steps + settings.tuning_steps, picture, error)
    synthesis.requires_grad_(False)
    return error


def _lattice(head: Head) -> DensityGrid:
    planes = head.geometry.planes
    return DensityGrid.build(head, GRID, device=planes.device, dtype=planes.dtype)


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, what: str, step: int) -> None:
    if not bool(torch.isfinite(loss)):
        hint = "Lower --prior-inversion-steps or --prior-tuning-steps, or use --prior starter"
        raise PortraitDiffusionError("inversion-diverged", f"the {what} stopped giving finite numbers at step {step + 1}", hint)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def _report(context: Context, step: int, steps: int, picture: Tensor, error: float) -> None:
    context.report(step, steps, picture.permute(1, 2, 0).clamp(0, 1) if step % PREVIEW == 0 else None, colour_error=error)


def _ramp(share: float) -> float:
    """Rise over the first twentieth, fall as a cosine over the last quarter."""
    return (0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - share) / RAMP_DOWN))) * min(1.0, (share + 1e-3) / RAMP_UP)
