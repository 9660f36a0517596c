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
CHEEKS = (50, 101, 118, 205, 280, 330, 347, 425)
NECK = (-0.24, -0.10)
"""Heights between which neck turns into hair at the back, head units."""
EARS_Z, EARS_TOP = -0.02, 0.08
"""Behind this depth, or above this height, there are no ears."""
CONTRAST = 0.6
SKIN_LIKE, LEAST_SHARE = 0.07, 0.25
"""Hue (unit rgb vector) this close to the cheeks' counts as skin, unless less than this share is left."""
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
    """Return the median colour (3,) of the hair above the face's outline, within the matte; None if too little shows.

    Bare scalp and a high forehead lie there too: what resembles the cheeks' skin counts only if there is nothing else.
    """
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
    colours = portrait.rgba.reshape(-1, 4)[:, :3]
    cheeks = portrait.landmarks[list(CHEEKS)].round().long().clamp(0, size - 1)
    skin = colours[cheeks[:, 1] * size + cheeks[:, 0]].median(0).values
    hue = torch.nn.functional.normalize
    distance = (hue(colours[index], dim=-1) - hue(skin, dim=-1)).norm(dim=-1)
    other = index[distance > SKIN_LIKE]
    return colours[other if len(other) > LEAST_SHARE * len(index) else index].median(0).values


def hair_share(points: Tensor) -> Tensor:
    """Return how surely unseen surface points (N, 3) are hair, by place: 1 on crown and back, 0 on neck, ears and temples."""
    _, y, z = points.unbind(-1)
    above_neck = ((y - NECK[0]) / (NECK[1] - NECK[0])).clamp(0, 1)
    behind_ears = ((EARS_Z - z) / 0.08).clamp(0, 1)
    above_ears = ((y - EARS_TOP) / 0.08).clamp(0, 1)
    return above_neck * torch.maximum(behind_ears, above_ears)


def towards_hair(colours: Tensor, share: Tensor, hair: Tensor) -> Tensor:
    """Give guessed colours (N, 3) the photo's hair colour (3,), as far as share (N,) says they are hair.

    The hue is the photo's; the light and dark of the guess stays at reduced contrast around the hair's brightness.
    """
    brightness = colours.mean(-1)
    mean = (brightness * share).sum() / share.sum().clamp_min(1e-3)
    pattern = (brightness / mean.clamp_min(1e-3)).clamp(0.3, 2.0) ** CONTRAST
    return (colours + share[:, None] * (hair * pattern[:, None] - colours)).clamp(0, 1)
