"""Figures of rendered geometry: depth, normals and surfaces against the truth, and whether neighbouring views show the same thing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_backend.radiance.renderer import RenderOutput

SOLID = 0.95
"""Alpha from which a pixel is surface: below it, depth and colour float between figure and ground."""
VISIBLE = 0.015
"""How far, in head units, a warped point may lie from the surface that the other view sees there (1.5 % of the box)."""
STEEP = 4.0
"""Slope of the depth around a pixel (76 degrees) from which it is an outline or a grazing surface and is left out."""


def depth_error_mm(depth: Tensor, truth: Tensor, where: Tensor) -> float | None:
    """Return the mean absolute error of z-depth (H, W), head units, over the mask `where`, in millimetres; None if that is empty."""
    return float((depth - truth).abs()[where].mean() * METRES_PER_UNIT * 1000) if bool(where.any()) else None


def normal_error_degrees(normals: Tensor, truth: Tensor, where: Tensor) -> float | None:
    """Return the mean angle between normals (H, W, 3) over the mask `where`, in degrees; None if that is empty.

    Neither need be of unit length. The angle comes from sine and cosine, so that it is exact near 0.
    """
    if not bool(where.any()):
        return None
    a, b = normals[where].double(), truth[where].double()
    angle = torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))
    return float(torch.rad2deg(angle).mean())


def back_project(depth: Tensor, camera: Camera) -> NDArray[np.float32]:
    """Return the surface points (P, 3) of a depth map (H, W), head units."""
    origin, directions = camera.rays()
    z = depth.reshape(-1, 1)
    return (origin + directions * z)[z[:, 0] > 0].numpy()


def chamfer_mm(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return the mean of the two mean nearest distances between point sets (N, 3), head units to millimetres."""
    both = [cKDTree(y).query(x)[0].mean() for x, y in ((a, b), (b, a))]
    return float(np.mean(both) * METRES_PER_UNIT * 1000)


def consistency(target: RenderOutput, target_camera: Camera, source: RenderOutput, source_camera: Camera) -> tuple[float | None, float]:
    """Warp `source` into `target` with the depth of both views.

    Returns the mean absolute colour error, in [0, 1], over the target pixels that the source sees too, and their share of
    the target's surface. The error is None where nothing is seen twice. Colours are compared without their transparency.
    """
    solid = (target.alpha > SOLID) & ~_steep(target, target_camera)
    origin, directions = target_camera.rays()
    points = origin + directions * target.depth.reshape(-1, 1)
    pixels, z = source_camera.project(points[solid.reshape(-1)])
    size = torch.tensor([source_camera.width, source_camera.height], dtype=pixels.dtype, device=pixels.device)
    grid = (pixels / size * 2 - 1)[None, None]
    inside = (grid[0, 0].abs() < 1).all(-1)
    usable = ((source.alpha > SOLID) & ~_steep(source, source_camera)).float()
    known = F.grid_sample(torch.stack([usable, source.depth])[None], grid, mode="nearest", align_corners=False)[0, :, 0]
    seen = inside & (known[0] > 0.5) & (z > 0) & ((known[1] - z).abs() < VISIBLE)
    warped = F.grid_sample(_straight(source).permute(2, 0, 1)[None], grid, align_corners=False)[0, :, 0].T
    error = (warped - _straight(target)[solid]).abs().mean(-1)[seen]
    share = float(seen.sum()) / max(int((target.alpha > SOLID).sum()), 1)
    return (float(error.mean()) if len(error) else None), share


def _straight(view: RenderOutput) -> Tensor:
    return view.rgb / view.alpha.clamp_min(1e-6)[..., None]


def _steep(view: RenderOutput, camera: Camera) -> Tensor:
    """Return (H, W) bool: pixels at an outline or on a grazing surface; beyond a hole the depth is infinite."""
    far = torch.where(view.alpha > SOLID, view.depth, 1e3)[None, None]
    nearest, farthest = -F.max_pool2d(-far, 3, 1, 1), F.max_pool2d(far, 3, 1, 1)
    across = 2 * view.depth / camera.intrinsics[0, 0]  # the width of two pixels at that depth
    return (farthest - nearest)[0, 0] > STEEP * across
