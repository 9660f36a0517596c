"""A collar that stands before the jaw: what the photo shows there is clothes, though the head's own surface lies behind it.

No shape of ours has a collar of its own, so its colours would stick to the jaw and the cheek and be carried on around the head.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.parts import LUMINANCE, at_skin_spots, body_pixels, hair_pixels, joined
from portrait_backend.portrait.regions import InPhoto, face_outline
from portrait_backend.portrait.types import Portrait

CHIN, JAW_ANGLES, MOUTH = 152, (172, 397), 13
"""Face-mesh indices: the chin's lowest point, the jaw where it turns up to the ear, the middle of the upper lip."""
HUE_SHARE, HUE_RANGE = 0.5, (0.15, 0.3)
"""Distance of hues from which something is not skin: a share of skin's own distance from grey, within this range."""
DARK, BLUR = 0.02, 5
"""Brightness below which there is no hue; pixels over which noise is averaged."""
RISE = (-0.075, -0.055)
"""Height over the jaw's plane (head units) over which neck turns into head: below the plane is the jaw's own underside."""
BEHIND = -0.1
"""Depth (z, head units) behind which the jaw's plane rises no more: the nape's hairline is lower."""


def clothes_pixels(portrait: Portrait, hair: Tensor) -> Tensor:
    """Return which pixels (512, 512) are clothes: joined to what the photo's lower end shows of them, not of skin's hue; bool.

    hair (512, 512): what is hair. Shade takes from all channels alike, so a neck in shadow stays skin; in black and white a shirt does too.
    """
    hue, skin = _hues(portrait)
    tolerance = np.clip(HUE_SHARE * np.linalg.norm(skin - 1), *HUE_RANGE)
    unlike = np.linalg.norm(hue - skin, axis=-1) > tolerance
    body = body_pixels(portrait, hair).numpy() & unlike
    rows = np.nonzero(body.any(1))[0]
    if not len(rows):
        return torch.from_numpy(body)
    lowest = body & (np.arange(len(body))[:, None] >= rows.mean())
    around = (portrait.matte > 0.9) & (portrait.valid > 0.5) & ~hair & ~torch.from_numpy(face_outline(portrait))
    around &= torch.arange(len(body))[:, None] > portrait.landmarks[MOUTH, 1]
    return torch.from_numpy(joined(around.numpy() & unlike, lowest))


def _hues(portrait: Portrait) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the photo's colours (512, 512, 3) as multiples of their brightness, a little blurred, and the skin's (3,)."""
    blurred = cv2.blur(portrait.rgba[..., :3].contiguous().numpy(), (BLUR, BLUR))
    hue = blurred / np.maximum(blurred @ np.array(LUMINANCE, np.float32), DARK)[..., None]
    return hue, np.median(at_skin_spots(portrait, hue), axis=0)


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
        if not bool(self.clothes.any()):
            return points.new_zeros(len(points))
        seen = InPhoto.of(self.portrait, points)
        return seen.values(self.clothes.float()) * above_jaw(self.portrait, points)
