"""Hair colour of the unseen sides: what the photo shows above the forehead, applied where the prior only guessed.

The prior learned from synthetic light, so the back of a head comes out too dark or in an average hair
colour. The photo knows better: its hair gives a colour, and the guessed hair is scaled towards it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from portrait_backend.portrait.types import Portrait

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Face-mesh indices of the face's outline."""
EYE_CORNERS = (33, 263)
LEAST_PIXELS = 200
"""Fewer hair pixels than this at 512 px tell no colour."""


def inside_polygon(points: Tensor, polygon: Tensor) -> Tensor:
    """Return whether points (N, 2) lie in a polygon (K, 2), by the even-odd rule: (N,) bool."""
    a, b = polygon, polygon.roll(-1, 0)
    y = points[:, 1:2]
    crosses = (a[None, :, 1] > y) != (b[None, :, 1] > y)
    slope = (b[:, 0] - a[:, 0]) / torch.where((b[:, 1] - a[:, 1]).abs() < 1e-6, 1e-6, b[:, 1] - a[:, 1])
    x = a[:, 0] + (y - a[:, 1]) * slope
    return ((crosses & (points[:, :1] < x)).sum(1) % 2) == 1


def photo_hair_colour(portrait: Portrait) -> Tensor | None:
    """Return the median colour (3,) of what lies above the face's outline, within the matte; None if too little shows."""
    size = portrait.rgba.shape[0]
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).reshape(-1, 2).float()
    oval = portrait.landmarks[list(FACE_OVAL)]
    grown = oval.mean(0) + (oval - oval.mean(0)) * 1.08
    eyes = portrait.landmarks[list(EYE_CORNERS), 1].mean()
    candidates = (pixels[:, 1] < eyes) & (portrait.matte.reshape(-1) > 0.95) & (portrait.valid.reshape(-1) > 0.5)
    index = candidates.nonzero()[:, 0]
    index = index[~inside_polygon(pixels[index], grown)]
    if len(index) < LEAST_PIXELS:
        return None
    return portrait.rgba.reshape(-1, 4)[index, :3].median(0).values


def towards_hair(colours: Tensor, hair: Tensor, strength: float = 1.0, least: float = 0.5, most: float = 3.0) -> Tensor:
    """Scale colours (N, 3) of guessed hair so that their mean becomes `hair` (3,); detail stays, gains are limited."""
    gain = (hair / colours.mean(0).clamp_min(1e-3)).clamp(least, most) ** strength
    return (colours * gain).clamp(0, 1)
