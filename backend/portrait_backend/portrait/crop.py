"""Sample a turned, scaled square crop of a photo without aliasing.

Continuous coordinates put pixel centres at +0.5 in the photo and in the crop.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

MAX_OVERSAMPLING = 8
SHARP, PADDED, ZERO = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT


def crop_to_photo(similarity: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return (2, 3): continuous crop px -> photo px, of a similarity (2, 3) on normalised (u, v, 1), u, v in [-1, 1]."""
    k = 2 / size
    return np.concatenate([similarity[:, :2] * k, (similarity[:, 2] - similarity[:, :2].sum(1))[:, None]], 1)


def transform(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points (N, 2) by an affine matrix (2, 3)."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert an affine matrix (2, 3)."""
    return np.asarray(cv2.invertAffineTransform(matrix))


def sample(
    image: NDArray[np.uint8] | NDArray[np.floating], to_photo: NDArray[np.float64], size: int, border: int = PADDED
) -> NDArray[np.float32]:
    """Sample image (H, W[, C]) at the crop (size, size) that to_photo (2, 3) places: cubic when enlarging, averaged when shrinking."""
    scale = float(np.hypot(to_photo[0, 0], to_photo[1, 0]))
    factor = min(max(1, math.ceil(scale - 1e-6)), MAX_OVERSAMPLING)
    linear = to_photo[:, :2] / factor
    # cv2 counts from pixel centres: half a pixel less on both sides
    indices = np.concatenate([linear, (to_photo[:, 2] + linear.sum(1) / 2 - 0.5)[:, None]], 1)
    way = SHARP if scale < 1 and border == PADDED else cv2.INTER_LINEAR
    source = image if image.dtype == np.uint8 else image.astype(np.float32)
    out = cv2.warpAffine(source, indices, (size * factor, size * factor), flags=way | cv2.WARP_INVERSE_MAP, borderMode=border)
    if factor > 1:
        out = cv2.resize(out.astype(np.float32) if size * factor <= 2048 else out, (size, size), interpolation=cv2.INTER_AREA)
    result: NDArray[np.float32] = out.astype(np.float32)
    return result


def sample_straight(rgba: Tensor, similarity: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sample a straight rgba image (H, W, 4) at the crop (size, size) of a similarity (2, 3) on normalised (u, v, 1): linear, empty beyond.

    Returns straight rgba (size, size, 4) and which of its pixels lie in the image, (size, size) bool.
    """
    pixels = rgba.permute(2, 0, 1)[None]
    premultiplied = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)
    grid = F.affine_grid(similarity[None], [1, 4, size, size], align_corners=False)
    crop = F.grid_sample(premultiplied, grid, align_corners=False)[0].permute(1, 2, 0)
    matte = crop[..., 3:]
    return torch.cat([(crop[..., :3] / matte.clamp_min(1e-3)).clamp(0, 1), matte], -1), (grid[0].abs() <= 1).all(-1)
