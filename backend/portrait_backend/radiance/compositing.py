"""Volume rendering quadrature along rays."""

from __future__ import annotations

import torch
from torch import Tensor

LAST_STEP = 0.02
"""Length given to the last sample of a ray, head units."""
LONGEST_STEP = 0.06
"""Gaps longer than this are empty space between proposals, not matter."""


def midpoint_gaps(t: Tensor) -> Tensor:
    """Return the length (..., S) that each of at least two sorted samples t (..., S) stands for: half-way to its neighbours."""
    d = t[..., 1:] - t[..., :-1]
    return torch.cat([d[..., :1], (d[..., 1:] + d[..., :-1]) / 2, d[..., -1:]], -1).clamp(0, LONGEST_STEP)


def ray_weights(density: Tensor, t: Tensor, gap: Tensor | None = None) -> Tensor:
    """Return the quadrature weights (..., S) of samples sorted along a ray; density (..., S) per unit, t (..., S) z-depth.

    gap (..., S): the length each sample stands for; by default, the distance to the next one.
    """
    if gap is None:
        gap = torch.cat([t[..., 1:] - t[..., :-1], torch.full_like(t[..., -1:], LAST_STEP)], -1).clamp(0, LONGEST_STEP)
    x = density * gap
    return torch.exp(-(torch.cumsum(x, -1) - x)) * (1 - torch.exp(-x))


def composite(density: Tensor, values: Tensor, t: Tensor, gap: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Composite samples: values (..., S, C) -> (premultiplied (..., C), alpha (...,), depth (...,), weights (..., S)).

    Depth is the expected z-depth of what the ray hit (0 where it hit nothing); gap as in `ray_weights`.
    """
    w = ray_weights(density, t, gap)
    alpha = w.sum(-1)
    return (w[..., None] * values).sum(-2), alpha, (w * t).sum(-1) / alpha.clamp_min(1e-4), w
