"""Point splatting in torch: which points cover each pixel, nearest first, and what they look like together.

Every point proposes itself to the pixels of a small window around it. All proposals of a batch form one list, which one sort
orders by pixel and depth; there is no loop over points or pixels, and equal depths go to the lower index, so the result is deterministic.
PyTorch3D's points rasteriser takes over where it is installed; both find the same points.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from portrait_backend.geometry.rasterise import sortable_bits

Backend = Literal["auto", "torch", "pytorch3d"]
Compositing = Literal["nearest", "alpha"]

LARGEST_RADIUS = 64.0
"""Pixels; a window beyond this is a mistake in units rather than a wish."""
DEPTH_BITS = 32
LEAST_WEIGHT = 1e-4
"""A point on the rim of its disc is rounding, not coverage."""


@dataclass(frozen=True)
class Splats:
    """The points that cover each pixel, nearest first.

    index (B, H, W, K) int64 into the N points, -1 where fewer than K cover the pixel; depth (B, H, W, K) of those points, +inf
    where none; weight (B, H, W, K) = 1 - d^2 / r^2 for a point at d of its radius r from the pixel's centre, 0 where none.
    """

    index: Tensor
    depth: Tensor
    weight: Tensor

    @property
    def covered(self) -> Tensor:
        """Return (B, H, W) bool: True where a point was found."""
        return self.index[..., 0] >= 0

    def composite(self, features: Tensor, mode: Compositing = "alpha") -> Tensor:
        """Return (B, C, H, W) of point features (B, N, C), 0 where nothing is; differentiable in the features (and positions).

        "nearest" takes the nearest point as it is. "alpha" lays up to K points over each other, each as opaque as its weight,
        and divides by the joint opacity: a pixel shows what covers it at full strength.
        """
        if mode == "nearest":
            index = self.index[..., :1]
            share = (index >= 0).to(features.dtype)
        elif mode == "alpha":
            index, alpha = self.index, self.weight.to(features.dtype)
            through = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha[..., :-1]], -1), -1)
            share = alpha * through
            share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
        else:
            raise ValueError(f"unknown compositing {mode!r}; known: nearest, alpha")
        batch, height, width, k = index.shape
        flat = index.clamp_min(0).reshape(batch, -1, 1).expand(-1, -1, features.shape[-1])
        gathered = features.gather(1, flat).view(batch, height, width, k, -1)
        return (share[..., None] * gathered).sum(3).permute(0, 3, 1, 2)


def has_pytorch3d() -> bool:
    """Return whether PyTorch3D can be imported here."""
    return importlib.util.find_spec("pytorch3d") is not None


def world_radius_px(radius: float, focal: Tensor, depth: Tensor) -> Tensor:
    """Return the radius in pixels (B, N) of `radius` head units at depths (B, N); focal (B,) in pixels."""
    return radius * focal[:, None] / depth.clamp_min(1e-6)


def splat_points(
    pixels: Tensor,
    depth: Tensor,
    keep: Tensor,
    height: int,
    width: int,
    *,
    radius: float | Tensor = 1.0,
    k: int = 1,
    backend: Backend = "auto",
) -> Splats:
    """Find the `k` nearest points within `radius` of each pixel's centre.

    pixels (B, N, 2) x right, y down, centres at +0.5; depth (B, N) camera z; keep (B, N) bool: the others (and those with
    z <= 0) don't take part. radius: pixels, one for all or (B, N); `world_radius_px` makes it from head units.
    """
    _check(pixels, depth, keep, radius, k)
    keep = keep & (depth > 0) & torch.isfinite(pixels).all(-1)
    if not isinstance(radius, Tensor):
        radius = torch.full_like(depth, radius)
    with torch.no_grad():
        if backend == "pytorch3d" or (backend == "auto" and has_pytorch3d()):
            index = _nearest_pytorch3d(pixels, depth, keep, height, width, radius, k)
        elif backend in ("auto", "torch"):
            index = _nearest_torch(pixels, depth, keep, height, width, radius, k)
        else:
            raise ValueError(f"unknown backend {backend!r}; known: auto, torch, pytorch3d")
    return _splats(index, pixels, depth, radius, height, width)


def _check(pixels: Tensor, depth: Tensor, keep: Tensor, radius: float | Tensor, k: int) -> None:
    if pixels.ndim != 3 or pixels.shape[-1] != 2 or depth.shape != pixels.shape[:2] or keep.shape != depth.shape:
        raise ValueError(
            "splat_points needs pixels (B, N, 2), depth (B, N) and keep (B, N), "
            f"got {tuple(pixels.shape)}, {tuple(depth.shape)} and {tuple(keep.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    largest = float(radius.max()) if isinstance(radius, Tensor) and radius.numel() else radius
    if not isinstance(largest, Tensor) and not 0 < largest <= LARGEST_RADIUS:
        raise ValueError(f"the radius must be above 0 and at most {LARGEST_RADIUS:g} px, got {largest}")


def _nearest_torch(pixels: Tensor, depth: Tensor, keep: Tensor, height: int, width: int, radius: Tensor, k: int) -> Tensor:
    """Return (B * H * W, k) point indices of the nearest points, -1 for none."""
    batch = len(depth)
    found = pixels.new_full((batch * height * width, k), -1, dtype=torch.int64)
    image, point = keep.nonzero(as_tuple=True)
    if not len(point):
        return found
    at, reach = pixels[image, point], radius[image, point]
    side = 2 * int(torch.ceil(reach.max() - 0.5).clamp_min(0)) + 1
    steps = torch.arange(side, device=pixels.device) - side // 2
    x, y = (at[:, 0].floor().long()[:, None] + steps)[:, None, :], (at[:, 1].floor().long()[:, None] + steps)[:, :, None]
    distance = (x + 0.5 - at[:, 0, None, None]) ** 2 + (y + 0.5 - at[:, 1, None, None]) ** 2
    near = (distance < (1 - LEAST_WEIGHT) * reach[:, None, None] ** 2) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    candidate, row, column = near.nonzero(as_tuple=True)
    cell = (image[candidate] * height + y[candidate, row, 0]) * width + x[candidate, 0, column]
    key = (cell << DEPTH_BITS) | (sortable_bits(depth[image, point].float()) & 0xFFFFFFFF)[candidate]
    key, order = key.sort(stable=True)
    cell, source = key >> DEPTH_BITS, point[candidate[order]]
    rank = torch.arange(len(cell), device=cell.device) - torch.searchsorted(cell, cell)
    first = rank < k
    found[cell[first], rank[first]] = source[first]
    return found


def _nearest_pytorch3d(pixels: Tensor, depth: Tensor, keep: Tensor, height: int, width: int, radius: Tensor, k: int) -> Tensor:
    """The same through PyTorch3D: its NDC is +x left, +y up, the shorter side spans [-1, 1]; points with z < 0 are left out."""
    from pytorch3d.renderer.points import rasterize_points
    from pytorch3d.structures import Pointclouds

    batch, count = depth.shape
    to_ndc = 2 / min(height, width)
    x, y = (width / 2 - pixels[..., 0]) * to_ndc, (height / 2 - pixels[..., 1]) * to_ndc
    clouds: Any = Pointclouds(torch.stack([x, y, torch.where(keep, depth, -1.0)], -1).float())
    index, _, _ = rasterize_points(clouds, (height, width), (radius * to_ndc).float(), k)
    offset = (torch.arange(batch, device=depth.device) * count).view(-1, 1, 1, 1)
    return torch.where(index >= 0, index.long() - offset, -1).view(-1, k)


def _splats(index: Tensor, pixels: Tensor, depth: Tensor, radius: Tensor, height: int, width: int) -> Splats:
    """Look the found points up again, so that positions and depths keep their derivatives."""
    batch = len(depth)
    index = index.view(batch, height, width, -1)
    flat, none = index.clamp_min(0).view(batch, -1), index < 0
    at = pixels.gather(1, flat[..., None].expand(-1, -1, 2)).view(*index.shape, 2)
    x = torch.arange(width, device=pixels.device, dtype=pixels.dtype) + 0.5
    y = torch.arange(height, device=pixels.device, dtype=pixels.dtype) + 0.5
    distance = (at[..., 0] - x.view(1, 1, -1, 1)) ** 2 + (at[..., 1] - y.view(1, -1, 1, 1)) ** 2
    weight = (1 - distance / radius.gather(1, flat).view(index.shape) ** 2).clamp(0, 1)
    z = depth.gather(1, flat).view(index.shape)
    return Splats(index, z.masked_fill(none, float("inf")), weight.masked_fill(none, 0.0))
