"""Which ears are bare and which are under hair, by the head's shape and by the photo."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.portrait.regions import InPhoto, ear_share
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import EARS_TOP, SHORT_HAIR
from portrait_backend.radiance.field import RadianceField

CPU = torch.device("cpu")
SIDES = (-1.0, 1.0)
"""The sitter's right and left: signs of x."""
BESIDE_EAR, COVERED = ((0.23, 0.25), (-0.11, 0.03), (-0.05, 0.07)), (0.25, 0.5)
"""Box just outside a left ear, head units, and the shares of it that are solid over which hair counts as covering the ear. Photos of three
men with bare ears: 0 to .36 of it, of three sitters with hair over their ears: .43 to .96."""
BESIDE = ((0.18, 0.26), (-0.03, 0.04))
"""x and z (head units) of a left ear and what covers it, as the photo sees it."""
FAR_SIDE = 25.0
"""Yaw in degrees from which the photo doesn't show the farther ear."""
STEPS = 26
"""Heights at which the photo is asked, and points of the box along its height."""


def bare_ears(points: Tensor, solid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how much the cells of a solid (n, n, n), centred at points (n^3, 3), belong to an ear that no hair covers: (n, n, n)."""
    share, filled = ear_share(points), torch.from_numpy(solid).reshape(-1).float()
    low, high = points.new_tensor(BESIDE_EAR).T
    for side in SIDES:
        mirrored = points * points.new_tensor([side, 1, 1])
        beside = ((mirrored >= low) & (mirrored <= high)).all(-1)
        share[mirrored[:, 0] > 0] *= 1 - _covered(float(filled[beside].mean()))
    return np.asarray(share.view(solid.shape).numpy())


def _covered(filled: float) -> float:
    """How much an ear with that share of solid beside it is under hair, in [0, 1]."""
    return min(max((filled - COVERED[0]) / (COVERED[1] - COVERED[0]), 0), 1)


@torch.no_grad()
def covered_ears(head: RadianceField, portrait: Portrait, hair: Tensor, device: torch.device = CPU) -> tuple[float, float]:
    """Return the height (head units) down to which hair covers the right and the left ear; `EARS_TOP` where it doesn't.

    An ear that the shape shows bare is bare. Over the others hair goes down to where less than half of what the photo shows beside the
    head is hair, hair (512, 512) bool. A side that the photo doesn't look at is as the other. device: the head's.
    """
    low, high = torch.tensor(BESIDE_EAR).T
    box = torch.cartesian_prod(*(torch.linspace(float(a), float(b), STEPS // 2) for a, b in zip(low, high, strict=True)))
    ends = []
    for side in SIDES:
        filled = float((head.density((box * box.new_tensor([side, 1, 1])).to(device)) > head.surface_density).float().mean())
        ends.append(EARS_TOP if _covered(filled) < 0.5 else _hair_ends(portrait, hair, side))
    hidden = [side * portrait.yaw < -FAR_SIDE for side in SIDES]
    return (ends[1] if hidden[0] else ends[0]), (ends[0] if hidden[1] else ends[1])


def _hair_ends(portrait: Portrait, hair: Tensor, side: float) -> float:
    """Return the height (head units), between `EARS_TOP` and `SHORT_HAIR`, down to which the photo shows hair beside the head."""
    heights = torch.linspace(EARS_TOP, SHORT_HAIR, STEPS, dtype=torch.float64)
    y, x, z = torch.meshgrid(heights, *(torch.linspace(*span, 6, dtype=torch.float64) for span in BESIDE), indexing="ij")
    beside = InPhoto.of(portrait, torch.stack([side * x, y, z], -1).reshape(-1, 3).float())
    shown = (portrait.matte > 0.5) & (portrait.valid > 0.5)
    found, whole = (beside.values(mask.float()).view(STEPS, -1).sum(-1) for mask in (hair, shown))
    bare = torch.cat([(found < 0.5 * whole) | (whole == 0), torch.ones(1, dtype=torch.bool)])
    return float(heights[min(int(bare.long().argmax()), STEPS - 1)])
