"""A collar that stands before the jaw: what the photo shows there is clothes, though the head's own surface lies behind it.

No shape of ours has a collar of its own, so its colours would stick to the jaw and the cheek and be carried on around the head.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.parts import SKIN_LIKE, body_pixels, hair_pixels, joined, lab_and_skin
from portrait_backend.portrait.regions import InPhoto, face_outline
from portrait_backend.portrait.types import Portrait

CHIN, JAW_ANGLES, MOUTH = 152, (172, 397), 13
"""Face-mesh indices: the chin's lowest point, the jaw where it turns up to the ear, the middle of the upper lip."""
RISE = (-0.075, -0.055)
"""Height over the jaw's plane (head units) over which neck turns into head: below the plane is the jaw's own underside."""
BEHIND = -0.1
"""Depth (z, head units) behind which the jaw's plane rises no more: the nape's hairline is lower."""


def clothes_pixels(portrait: Portrait, hair: Tensor) -> Tensor:
    """Return which pixels (512, 512) are clothes, as far as they hang together from below: not hair (512, 512), not like skin; bool."""
    lab, skin = lab_and_skin(portrait)
    unlike = np.linalg.norm(lab - skin, axis=-1) > SKIN_LIKE
    body = body_pixels(portrait, hair)
    below = torch.arange(len(body))[:, None] > portrait.landmarks[MOUTH, 1]
    around = (portrait.matte > 0.9) & (portrait.valid > 0.5) & below & ~hair & ~torch.from_numpy(face_outline(portrait))
    lowest = np.zeros_like(unlike)
    rows = body.any(1).nonzero()[:, 0]
    if len(rows):
        lowest[int(rows[0] + rows[-1]) // 2 :] = True
    return torch.from_numpy(joined(around.numpy() & unlike, body.numpy() & unlike & lowest))


def above_jaw(portrait: Portrait, points: Tensor) -> Tensor:
    """Return how surely points (N, 3) in head units lie above the plane through chin and jaw angles, on the head: (N,) in [0, 1]."""
    marks = load_landmark_model().shape(portrait.coefficients.double()).float()
    chin, angle = marks[CHIN], marks[list(JAW_ANGLES)].mean(0)
    slope = (angle[1] - chin[1]) / (angle[2] - chin[2])
    height = points[:, 1] - angle[1] - slope * (points[:, 2].clamp_min(BEHIND) - angle[2])
    t = ((height - RISE[0]) / (RISE[1] - RISE[0])).clamp(0, 1)
    return t * t * (3 - 2 * t)


class Collar:
    """Tells where the photo shows clothes in place of the head."""

    def __init__(self, portrait: Portrait) -> None:
        self.portrait, self.clothes = portrait, clothes_pixels(portrait, hair_pixels(portrait))

    def hides(self, points: Tensor) -> Tensor:
        """Return how surely the photo shows clothes, not the head, at points (N, 3) of the head's surface: (N,) in [0, 1]."""
        seen = InPhoto.of(self.portrait, points)
        return seen.values(self.clothes.float()) * above_jaw(self.portrait, points)
