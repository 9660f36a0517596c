"""Fit the proxy surface: canonical front and side depth maps as a linear function of landmark coefficients."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from portrait_backend.prior.lift import HALF, MAPS, ProxySurface
from portrait_backend.radiance.cameras import focal_pixels
from portrait_backend.training.head_dataset import HeadDataset, decode_depth

RIDGE = 30.0
"""Ridge weight of the regression, in identities."""
LEAST_DEPTH = -0.05
"""Depth below which a map's pixel counts as unseen, head units."""


def surface_points(data: HeadDataset, identity: int, step: int = 2) -> Tensor:
    """Return the surface points (P, 3) that all views of one identity see."""
    pixels = torch.arange(step // 2, data.size, step)
    z = decode_depth(data.depth[identity][:, pixels][:, :, pixels])
    g = ((pixels + 0.5) / data.size * 2 - 1) / (2 * focal_pixels(1))
    y, x = torch.meshgrid(g, g, indexing="ij")
    d = torch.stack([x, y, torch.ones_like(x)], -1)
    camera = data.cameras[identity]
    local = d[None] * z[..., None] - camera[:, None, None, :, 3]
    world = torch.einsum("vhwc,vcd->vhwd", local, camera[:, :, :3])
    return world[z > 0]


def depth_maps(points: np.ndarray, grid: int) -> np.ndarray:
    """Splat points (P, 3) to the three canonical depth maps (3, grid, grid); NaN where unseen."""
    points = points[(np.abs(points) < HALF).all(1)]
    out = np.full((3, grid, grid), np.nan, np.float32)
    for m, (a, b, c, side) in enumerate(MAPS):
        z = np.full((grid, grid), -9.0, np.float32)
        u, v = ((points[:, [a, b]] / HALF * 0.5 + 0.5) * grid).astype(int).T
        np.maximum.at(z, (v, u), side * points[:, c])
        out[m] = np.where(z < LEAST_DEPTH, np.nan, z)
    return out


def fit_proxy(data: HeadDataset, proxy: ProxySurface, limit: int = 400) -> float:
    """Fill the proxy's buffers from up to `limit` identities; returns the mean absolute error in head units of the face map."""
    grid = proxy.mean.shape[-1]
    first: dict[int, int] = {}
    for row, identity in enumerate(data.input_id.tolist()):
        first.setdefault(identity, row)
    ids = list(first)[:limit]
    maps = np.stack([depth_maps(surface_points(data, i).numpy(), grid) for i in ids])
    coefficients = data.coefficients[[first[i] for i in ids]].numpy().clip(-2.5, 2.5)
    seen = np.isfinite(maps)
    share = seen.mean(0)
    mean = np.where(share > 0.3, np.nanmedian(np.where(share > 0.3, maps, 0.0), 0), np.nan)
    for m in range(3):
        hole = ~np.isfinite(mean[m])
        nearest = ndimage.distance_transform_edt(hole, return_distances=False, return_indices=True)
        filled = mean[m][tuple(nearest)]
        mean[m] = ndimage.gaussian_filter(np.where(hole, np.minimum(filled, 0.1 if m == 0 else 0.05), mean[m]), 0.8)
    offset = np.where(seen, maps - mean, 0.0).clip(-0.08, 0.08)
    x = coefficients - coefficients.mean(0)
    solve = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ offset.reshape(len(ids), -1))
    basis = solve.reshape(-1, 3, grid, grid)
    basis = ndimage.gaussian_filter(basis, (0, 0, 1.0, 1.0)) * (share > 0.5)
    sides = np.array([m[3] for m in MAPS], np.float32)[:, None, None]
    proxy.mean.copy_(torch.from_numpy(mean * sides).float())
    proxy.basis.copy_(torch.from_numpy(basis * sides).float())
    face = share[0] > 0.95
    predicted = mean[0] + np.einsum("nk,khw->nhw", x, basis[:, 0])
    return float(np.nanmean(np.abs(maps[:, 0] - predicted)[:, face]))
