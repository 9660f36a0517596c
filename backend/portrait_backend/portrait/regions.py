"""Where the face is: in the photo, and among points of the head."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.portrait.types import Portrait

Mask = NDArray[np.bool_]

FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Face-mesh indices of the face's outline."""
OVAL_GROWTH = 1.06
FEATHER = 9
"""Pixels of 512 over which the face goes over into what is around it."""
FACE_DEPTH = (0.0, 0.08)
"""World z over which what lies inside the outline turns from not the face to the face."""

EAR_CENTRE, EAR_SIZE = (0.2, -0.04, 0.01), (0.07, 0.13, 0.11)
"""Middle of the left ear and half its box, head units: from 35 synthetic heads, the ears of all of them and a margin."""
EAR_FEATHER = 0.03
"""Head units over which the ear's box goes over into what is around it."""


def filled_polygon(corners: NDArray[np.floating], size: int) -> Mask:
    """Return which pixels (size, size) lie in a polygon (K, 2) px."""
    filled = np.zeros((size, size), np.uint8)
    cv2.fillPoly(filled, [np.round(corners).astype(np.int32)], [1.0])
    return filled.astype(bool)


def face_outline(portrait: Portrait) -> Mask:
    """Return the photo's face (H, W): the landmarks' outline, slightly grown."""
    oval = portrait.landmarks.numpy()[list(FACE_OVAL)]
    return filled_polygon(oval.mean(0) + (oval - oval.mean(0)) * OVAL_GROWTH, portrait.rgba.shape[0])


@dataclass(frozen=True)
class InPhoto:
    """Where N points lie in the photo: at (N, 2), its sides at -1 and 1; depth (N,) along the photo's line of sight, head units."""

    at: Tensor
    depth: Tensor

    @classmethod
    def of(cls, portrait: Portrait, points: Tensor) -> InPhoto:
        """Project points (N, 3) in head units."""
        pixels, depth = portrait.camera.project(points)
        return cls(pixels / portrait.camera.width * 2 - 1, depth)

    def __getitem__(self, index: Tensor) -> InPhoto:
        """Return some of the points."""
        return InPhoto(self.at[index], self.depth[index])

    def values(self, picture: Tensor) -> Tensor:
        """Return what a picture (h, w) of the photo's frame shows there, (N,); 0 beside it."""
        return F.grid_sample(picture[None, None], self.at[None, None], align_corners=False, padding_mode="zeros")[0, 0, 0]

    def within(self, mask: Tensor) -> Tensor:
        """Return whether the nearest pixel is in a mask (h, w) bool of the photo's frame, (N,) bool; beside it none is."""
        found = F.grid_sample(mask.float()[None, None], self.at[None, None], mode="nearest", align_corners=False, padding_mode="zeros")
        return found[0, 0, 0] > 0.5


def face_share(portrait: Portrait, points: Tensor, seen: InPhoto | None = None) -> Tensor:
    """Return how much points (N, 3) in head units, `seen` in the photo, belong to the face: (N,) in [0, 1]."""
    outline = torch.from_numpy(face_outline(portrait)).float()[None, None]
    inside = (seen or InPhoto.of(portrait, points)).values(F.avg_pool2d(outline, FEATHER, 1, FEATHER // 2)[0, 0])
    t = ((points[:, 2] - FACE_DEPTH[0]) / (FACE_DEPTH[1] - FACE_DEPTH[0])).clamp(0, 1)
    return inside * t * t * (3 - 2 * t)


def ear_share(points: Tensor) -> Tensor:
    """Return how much points (N, 3) in head units lie where ears are: (N,) in [0, 1]."""
    mirrored = torch.cat([points[:, :1].abs(), points[:, 1:]], 1)
    inside = points.new_tensor(EAR_SIZE) - (mirrored - points.new_tensor(EAR_CENTRE)).abs()
    return (inside.amin(-1) / EAR_FEATHER).clamp(0, 1)


def detail_share(portrait: Portrait, points: Tensor) -> Tensor:
    """Return how much points (N, 3) in head units belong to what has small forms, the face or an ear: (N,) in [0, 1]."""
    return torch.maximum(face_share(portrait, points), ear_share(points))
