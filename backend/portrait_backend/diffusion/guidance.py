"""Guidance: how a denoiser pulls rendered latents towards what it knows; small functions named after their equations.

Every gradient is taken with respect to clean latents z (B, C, h, w) and is a constant (no graph); `latent_loss` makes it a loss.
Noise predictions are eps_hat(z_t; condition, t). t is (B,) or one whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.denoiser import Denoiser

Weighting = Literal["sigma2", "uniform", "balanced"]
T_HIGH, T_LOW = 0.5, 0.02
"""The share of the schedule at which a fit starts and ends: from the prior's own shape only ever finer changes (METHOD, section 2)."""


def annealed(progress: float, high: float = T_HIGH, low: float = T_LOW) -> float:
    """Return the share of the schedule at `progress` in [0, 1]: linear from high to low."""
    return high + (low - high) * min(1.0, max(0.0, progress))


def sds_weight(denoiser: Denoiser, t: Tensor | int, weighting: Weighting = "sigma2") -> Tensor:
    """Return w(t), shaped as `Denoiser.alpha_bar`.

    sigma2: 1 - alpha_bar (DreamFusion, and Eq. 2's choice here); uniform: 1; balanced: sqrt(alpha_bar) (1 - alpha_bar) (Fantasia3D).
    """
    a = denoiser.alpha_bar(t)
    if weighting == "sigma2":
        return 1 - a
    if weighting == "uniform":
        return torch.ones_like(a)
    if weighting == "balanced":
        return a.sqrt() * (1 - a)
    raise ValueError(f"unknown weighting {weighting!r}; known: sigma2, uniform, balanced")


@torch.no_grad()
def sds_gradient(
    denoiser: Denoiser,
    z: Tensor,
    t: Tensor | int,
    noise: Tensor,
    condition: Tensor,
    guidance: float = 1.0,
    weighting: Weighting = "sigma2",
    null: Tensor | None = None,
) -> Tensor:
    """Return the score-distillation gradient w(t) (eps_hat(z_t; condition, t) - eps) of Eq. 2."""
    z_t = denoiser.add_noise(z, noise, t)
    predicted = denoiser.predict_noise(z_t, t, condition, guidance, null)
    return sds_weight(denoiser, t, weighting).to(z.dtype) * (predicted - noise)


def latent_loss(z: Tensor, gradient: Tensor) -> Tensor:
    """Return 0.5 ||z - stop(z - gradient)||^2 / B, whose derivative with respect to z is gradient / B."""
    target = (z - gradient).detach()
    return 0.5 * (z - target).pow(2).sum() / len(z)


def perp_neg(null: Tensor, positive: Tensor, negatives: Sequence[Tensor], weights: Sequence[float], guidance: float) -> Tensor:
    """Return the Perp-Neg noise prediction (Armandpour et al. 2023): negatives count only where they don't oppose the positive.

    null, positive and each negative: noise predictions (B, C, h, w); weights: of the negatives, positive numbers push away.
    """
    main = positive - null
    total = main
    norm = main.pow(2).sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
    for negative, weight in zip(negatives, weights, strict=True):
        away = negative - null
        along = (away * main).sum((1, 2, 3), keepdim=True) / norm
        total = total - weight * (away - along * main)
    return null + guidance * total


def view_negatives(azimuth: float) -> list[tuple[float, float]]:
    """Return (azimuth, weight) of the views that a view at `azimuth` must not look like; the cure of the second face.

    Away from the front, the front is a negative, strongest at the back; near the front, the back is.
    """
    turn = abs((azimuth + 180) % 360 - 180) / 180
    return [(0.0, turn)] if turn > 0.25 else [(180.0, 1 - turn)]


@torch.no_grad()
def invert(denoiser: Denoiser, z: Tensor, t: int, steps: int, condition: Tensor, t_from: int = 0) -> Tensor:
    """Return z_t of latents z at step `t_from` by DDIM inversion in `steps` evenly spaced steps."""
    times = [round(t_from + (t - t_from) * k / steps) for k in range(steps + 1)]
    for now, later in pairwise(times):
        eps = denoiser.predict_noise(z, now, condition)
        z = denoiser.add_noise(denoiser.x0_from(z, now, eps), eps, later)
    return z


@torch.no_grad()
def interval_score_gradient(
    denoiser: Denoiser,
    z: Tensor,
    t: int,
    interval: int,
    condition: Tensor,
    guidance: float = 7.5,
    steps: int = 2,
    weighting: Weighting = "sigma2",
    null: Tensor | None = None,
) -> Tensor:
    """Return the interval-score-matching gradient w(t) (eps_hat(z_t; condition, t) - eps_hat(z_s; null, s)), s = t - interval.

    z_s and z_t lie on one unconditional DDIM inversion path of z (LucidDreamer, Liang et al. 2023), so nothing is drawn at random.
    """
    if not 0 < interval <= t:
        raise ValueError(f"the interval must be in [1, t = {t}], got {interval}")
    null = denoiser.condition.null(len(z)) if null is None else null
    s = t - interval
    z_s = invert(denoiser, z, s, steps, null) if s > 0 else z
    before = denoiser.predict_noise(z_s, s, null)
    z_t = denoiser.add_noise(denoiser.x0_from(z_s, s, before), before, t)
    after = denoiser.predict_noise(z_t, t, condition, guidance, null)
    return sds_weight(denoiser, t, weighting).to(z.dtype) * (after - before)


@torch.no_grad()
def x0_image(
    denoiser: Denoiser,
    codec: Codec,
    z: Tensor,
    t: int,
    noise: Tensor,
    condition: Tensor,
    steps: int = 2,
    guidance: float = 1.0,
    null: Tensor | None = None,
) -> Tensor:
    """Return the image (B, 3, H, W) in [0, 1] that `steps` of denoising make of z noised to step t."""
    z_0 = denoiser.denoise(denoiser.add_noise(z, noise, t), t, steps, condition, guidance, null)
    return codec.decode(z_0).clamp(0, 1)


def x0_image_loss(image: Tensor, target: Tensor) -> Tensor:
    """Return the multi-step x0 image loss 0.5 ||image - stop(target)||^2 / (pixels of one channel) of images (B, 3, H, W)."""
    return 0.5 * (image - target.detach()).pow(2).sum(1).mean()
