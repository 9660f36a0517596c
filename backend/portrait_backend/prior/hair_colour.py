"""Which part of the unseen surface is hair, and the hair's colour.

The prior learned from synthetic light, so the back of a head comes out too dark or in an average hair
colour. The photo knows better: its hair gives the colour, and how it varies from strand to strand
(`hair_strands.py`).
"""

from __future__ import annotations

import cv2
import torch
from torch import Tensor

from portrait_backend.painting.surface import smoothstep
from portrait_backend.portrait.parts import hair_pixels
from portrait_backend.portrait.types import Portrait

LEAST_PIXELS = 200
"""Fewer hair pixels than this at 512 px tell no colour."""
LIKENESS = (0.35, 0.65)
"""Share of the distance to skin, between hair's and skin's colours, over which something turns from not hair to hair."""
LONG_HAIR = -0.25
"""Hair that the photo shows below this height (head units) is long."""
BESIDE_NECK = 0.2
"""Distance from the middle (head units) at which long hair hangs."""
LEAST_HUE, HUE_SPREAD = 8.0, 2.0
"""Distance in a and b of Lab up to which hair has the same hue, and as a multiple of its median."""
SHORT_HAIR = -0.17
"""Height of the hairline of a nape, head units."""
NECK_FADE = 0.08
"""Height over which neck turns into hair at the back, head units."""
EARS_Z, EARS_TOP = -0.02, 0.08
"""Behind this depth, or above this height, there are no ears."""
BARE = (EARS_TOP, EARS_TOP)
"""Height down to which hair covers the right and the left ear where neither is covered."""
COVER_FRONT, COVER_FADE = 0.08, 0.04
"""Depth before which hair over an ear ends, and length over which it ends there and below (head units)."""


def photo_hair_colour(portrait: Portrait, hair: Tensor | None = None) -> Tensor | None:
    """Return the median colour (3,) of the photo's hair (`hair_pixels`); None if too little shows."""
    hair = hair_pixels(portrait) if hair is None else hair
    colours = portrait.rgba[..., :3][hair]
    return colours.median(0).values if len(colours) >= LEAST_PIXELS else None


def of_one_hue(colours: Tensor, colour: Tensor) -> Tensor:
    """Return which hair colours (N, 3) have the hue of `colour` (3,): bool. The others are what shines through between the strands."""
    both = torch.cat([colours, colour[None]])
    chroma = torch.from_numpy(cv2.cvtColor(both[None].contiguous().numpy(), cv2.COLOR_RGB2LAB)[0, :, 1:])
    distance = (chroma[:-1] - chroma[-1]).norm(dim=-1)
    return distance <= max(LEAST_HUE, HUE_SPREAD * float(distance.median())) if len(distance) else distance > 0


def hair_likeness(colour: Tensor, hair: Tensor, skin: Tensor) -> Tensor:
    """Return how much more colours (N, 3) are like hair's (3,) than like skin's (3,): (N,) in [0, 1]."""
    to_hair, to_skin = (colour - hair).norm(dim=-1), (colour - skin).norm(dim=-1)
    return smoothstep(to_skin / (to_hair + to_skin + 1e-6), *LIKENESS)


def hangs_long(portrait: Portrait, hair: Tensor) -> bool:
    """Whether the photo's hair (512, 512) bool hangs below the jaw."""
    low = portrait.camera.project(torch.tensor([[side * BESIDE_NECK, LONG_HAIR, 0.0] for side in (-1, 1)]))[0][:, 1].mean()
    return int(hair[int(low.clamp(0, len(hair))) :].sum()) >= LEAST_PIXELS


def hair_share(points: Tensor, covered: tuple[float, float] = BARE) -> Tensor:
    """Return how surely unseen surface points (N, 3) are hair, by place: 1 on crown and back, 0 on neck, ears and temples.

    covered: height (head units) to which hair covers the right and the left ear (`ears.covered_ears`).
    """
    x, y, z = points.unbind(-1)
    behind_ears = ((EARS_Z - z) / 0.08).clamp(0, 1)
    above_ears = ((y - EARS_TOP) / 0.08).clamp(0, 1)
    lowest = torch.where(x < 0, covered[0], covered[1])
    over_ear = ((y - lowest) / COVER_FADE + 0.5).clamp(0, 1) * ((COVER_FRONT - z) / COVER_FADE + 0.5).clamp(0, 1) * (lowest < EARS_TOP)
    return share_above(points, SHORT_HAIR) * torch.maximum(torch.maximum(behind_ears, above_ears), over_ear)


def share_above(points: Tensor, lowest: float) -> Tensor:
    """Return 1 for points (N, 3) above the height `lowest` to which hair reaches, 0 below, with a fade between."""
    return ((points[:, 1] - lowest) / NECK_FADE + 0.5).clamp(0, 1)
