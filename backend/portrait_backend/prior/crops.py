"""A photo as the network may be shown it: whole, closer, farther, higher, lower. Its answers agree on what it knows."""

from __future__ import annotations

from torch import Tensor

from portrait_backend.portrait.crop import sample_straight
from portrait_backend.radiance.cameras import focal_pixels

CROPS = ((1.0, 0.0), (1.08, 0.0), (0.92, 0.0), (1.0, 0.06), (1.0, -0.06))
"""What a crop shows: its extent in extents of the photo, and how far below the photo's centre its own lies in half extents.

The median of the planes, before any fit, 48 validation heads: foreground PSNR -.02, +.07, +.09, +.10 dB at front, 45, 90 and 180 degrees,
mask IoU +.001, +.003, +.003, +.001, chamfer distance 4.00 -> 3.92 mm. The mean costs .15 dB in front; crops that are turned or moved
sideways bring nothing more."""


def cropped(rgba: Tensor, pose: Tensor, extent: float, below: float) -> tuple[Tensor, Tensor]:
    """Return a crop (H, W, 4) of a straight rgba image (H, W, 4), empty beyond its edges, and the pose (3, 4) that sees it.

    pose (3, 4): world-to-camera of the photo, of the reference intrinsics. The pose moves as a camera would: back, and up or down.
    """
    if extent == 1 and below == 0:
        return rgba, pose
    crop, _ = sample_straight(rgba, rgba.new_tensor([[extent, 0, 0], [0, extent, below]]), len(rgba))
    moved = pose.clone()
    moved[1, 3] -= below * pose[2, 3] / (2 * focal_pixels(1))
    moved[2, 3] *= extent
    return crop, moved
