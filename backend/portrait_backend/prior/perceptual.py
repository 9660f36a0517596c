"""How alike two pictures are when no perceptual network is at hand: bands of a Laplacian pyramid (Burt and Adelson, 1983)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "Laplacian pyramid"
LEAST = 16
"""Side of the coarsest band, px."""


def bands(image: Tensor) -> list[Tensor]:
    """Return the bands of an image (B, C, H, W), fine to coarse, the last one the image itself at the coarsest size."""
    found = []
    while min(image.shape[2:]) >= 2 * LEAST:
        smaller = F.avg_pool2d(image, 2)
        found.append(image - F.interpolate(smaller, size=image.shape[2:], mode="bilinear", align_corners=False))
        image = smaller
    return [*found, image]


def pyramid_loss(image: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the sum over the bands of the mean absolute difference of (B, C, H, W) images where valid (B, 1, H, W) is 1."""
    total = image.new_zeros(())
    for a, b in zip(bands(image), bands(truth), strict=True):
        weight = F.interpolate(valid, size=a.shape[2:], mode="area")
        total = total + ((a - b).abs() * weight).sum() / (weight.sum() * a.shape[1]).clamp_min(1)
    return torch.as_tensor(total)
