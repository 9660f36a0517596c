"""Multi-View Noise Resampling, a function per equation (Eqs. 12-19).

Every fixed view denoises from noise that is its driver's, carried over the surface (the anchor). Per iteration the noise is
resampled around the anchor; the new image is kept if the gradient it asks for agrees better with the driver's than the previous one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from portrait_backend.geometry.reprojection import carried
from portrait_backend.geometry.surface_views import Culling, SurfaceView

Gradient = tuple[Tensor, ...]
"""One tensor per parameter of Psi."""

ANYWHERE = Culling(facing=0.05, erode=0.0, edge=0.05)
"""Noise may come from nearer to an edge than colour: a wrong place costs nothing but consistency."""


def anchor_noise(
    noise: Tensor, driver: SurfaceView, target: SurfaceView, generator: torch.Generator, culling: Culling = ANYWHERE
) -> Tensor:
    """Carry the driver's noise (B, C, h, w) into the target, still white and of unit variance (Eq. 13).

    Every visible point is scattered once, into the cell it falls in: sum / sqrt(count) there, fresh N(0, 1) in the voids. Composited
    splats would average neighbours: variance .4 and correlation .4. The views are shrunk to the noise's width.
    """
    batch, channels, height, width = noise.shape
    driver, target = driver.shrunk(width), target.shrunk(width)
    pixels, _, keep = carried(driver, target, culling)
    column, row = pixels[..., 0].floor().long(), pixels[..., 1].floor().long()
    keep = keep & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = torch.where(keep, row * width + column, height * width)  # one more cell takes what isn't kept
    source = noise.flatten(2)
    total = source.new_zeros(batch, channels, height * width + 1).scatter_add_(2, cell[:, None].expand(-1, channels, -1), source)
    count = source.new_zeros(batch, height * width + 1).scatter_add_(1, cell, torch.ones_like(cell, dtype=source.dtype))
    total, count = total[..., :-1], count[:, None, :-1]
    fresh = torch.randn(total.shape, generator=generator, device=generator.device).to(total)
    return torch.where(count > 0, total / count.clamp_min(1).sqrt(), fresh).view(noise.shape)


def resample(anchor: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Return noise around the anchor, of unit variance: sqrt(1 - sigma^2) * anchor + sigma * N(0, I) (Eq. 12)."""
    if not 0 <= sigma <= 1:
        raise ValueError(f"sigma must be between 0 and 1, got {sigma}")
    if sigma == 0:
        return anchor
    fresh = torch.randn(anchor.shape, generator=generator, device=generator.device).to(anchor)
    return (1 - sigma**2) ** 0.5 * anchor + sigma * fresh


def image_gradients(render: Tensor, targets: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Gradient]:
    """Return the gradient of 0.5 * mean |render - target|^2 for each target, from one render (Eqs. 14, 15, 17).

    The cotangent of an L2 image loss is the image difference, so each costs one vector-Jacobian product through the same graph. The
    gradient of the previous target is taken at the current Psi. Parameters that the render doesn't reach get zeros.
    """
    gradients = []
    for number, target in enumerate(targets):
        cotangent = (render.detach() - target) / render.numel()
        found = torch.autograd.grad(render, parameters, cotangent, retain_graph=number < len(targets) - 1, allow_unused=True)
        gradients.append(tuple(torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)))
    return gradients


def consistency(a: Gradient, b: Gradient) -> float:
    """Return the cosine between two gradients over all parameters (Eq. 16); 0 where one is null."""
    dot = sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
    lengths = [sum(float(x.pow(2).sum()) for x in g) ** 0.5 for g in (a, b)]
    return dot / (lengths[0] * lengths[1]) if min(lengths) > 0 else 0.0


@dataclass(frozen=True)
class Retained:
    """The outcome for one view: the gradient to apply, whether the new image was kept, both cosines with the driver's gradient."""

    gradient: Gradient
    new: bool
    cosine_new: float
    cosine_previous: float


def retain(new: Gradient, previous: Gradient | None, driver: Gradient) -> Retained:
    """Keep the new gradient if it agrees better with the driver's applied one than the previous target's does (Eqs. 16, 17).

    Without a previous target the new one is kept. The driver of v_0's followers is v_0, whose gradient is that of the reference loss.
    """
    cosine_new = consistency(new, driver)
    if previous is None:
        return Retained(new, True, cosine_new, float("nan"))
    cosine_previous = consistency(previous, driver)
    better = cosine_new > cosine_previous
    return Retained(new if better else previous, better, cosine_new, cosine_previous)


class Aggregate:
    """The sum of the views' gradients (Eq. 18), handed to an optimiser that descends (Eq. 19, whose printed sign ascends)."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.total = [torch.zeros_like(p) for p in self.parameters]

    def add(self, gradient: Gradient, weight: float = 1.0) -> None:
        """Add a view's gradient."""
        for total, part in zip(self.total, gradient, strict=True):
            total.add_(part, alpha=weight)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """Feed the sum to the optimiser: Psi <- Psi - step."""
        for parameter, total in zip(self.parameters, self.total, strict=True):
            parameter.grad = total
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
