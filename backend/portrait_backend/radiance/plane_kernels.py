"""CPU kernels (numba) that gather and scatter tri-plane features; `triplane.sample_planes` chooses them.

Each point reads 3 planes x D depth slices x 4 corners of C contiguous channels, which the stock
operators do several times slower. The kernels give the same results as the torch path (tested).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange


@njit(inline="always")
def _cell(value: float, size: int) -> Any:
    q = min(max((value * 0.5 + 0.5) * size - 0.5, 0.0), size - 1.0)
    i = min(int(q), size - 2)
    return i, np.float32(q - i)


@njit(inline="always", fastmath=True)
def _add(target: Any, weight: Any, row: Any) -> None:  # a slice per corner: only then does the loop vectorise
    for c in range(row.shape[0]):
        target[c] += weight * row[c]


@njit(fastmath={"reassoc", "nsz"})
def _is_zero(row: Any) -> Any:  # with flags of its own: a gradient that is no number must not pass for none
    total = np.float32(0)
    for c in range(row.shape[0]):
        total += abs(row[c])
    return total == 0


@njit(parallel=True, fastmath=True, cache=True)
def gather(planes: Any, points: Any, axes: Any, out: Any) -> None:  # pragma: no cover - compiled
    """out[b, p] = sum over planes of the trilinear sample; planes (B, 3, D, H, W, C), points (B, P, 3), axes (3, 3), out (B, P, C)."""
    batch, count, depth, height, width, channels = (
        points.shape[0],
        points.shape[1],
        planes.shape[2],
        planes.shape[3],
        planes.shape[4],
        planes.shape[5],
    )
    for n in prange(batch * count):
        b, p = n // count, n % count
        row = out[b, p]
        row[:] = 0.0
        for k in range(3):
            i, fx = _cell(points[b, p, axes[k, 0]], width)
            j, fy = _cell(points[b, p, axes[k, 1]], height)
            m, fz = 0, np.float32(0.0)
            if depth > 1:
                m, fz = _cell(points[b, p, axes[k, 2]], depth)
            for s in range(2 if depth > 1 else 1):
                wz = fz if s else np.float32(1.0) - fz
                if wz == 0.0:
                    continue
                w00, w01 = wz * (1 - fx) * (1 - fy), wz * fx * (1 - fy)
                w10, w11 = wz * (1 - fx) * fy, wz * fx * fy
                below, above = planes[b, k, m + s, j], planes[b, k, m + s, j + 1]
                r00, r01, r10, r11 = below[i], below[i + 1], above[i], above[i + 1]
                for c in range(channels):
                    row[c] += w00 * r00[c] + w01 * r01[c] + w10 * r10[c] + w11 * r11[c]


@njit(parallel=True, fastmath=True, cache=True)
def scatter(grad: Any, points: Any, axes: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Transpose of `gather`: adds grad (B, P, C) into out (B, 3, D, H, W, C), the planes in parallel."""
    batch, count, _ = grad.shape
    depth, height, width = out.shape[2], out.shape[3], out.shape[4]
    for n in prange(batch * 3):
        b, k = n // 3, n % 3
        for p in range(count):
            row = grad[b, p]
            if _is_zero(row):  # samples without weight have none
                continue
            i, fx = _cell(points[b, p, axes[k, 0]], width)
            j, fy = _cell(points[b, p, axes[k, 1]], height)
            m, fz = 0, np.float32(0.0)
            if depth > 1:
                m, fz = _cell(points[b, p, axes[k, 2]], depth)
            for s in range(2 if depth > 1 else 1):
                wz = fz if s else np.float32(1.0) - fz
                if wz == 0.0:
                    continue
                w00, w01 = wz * (1 - fx) * (1 - fy), wz * fx * (1 - fy)
                w10, w11 = wz * (1 - fx) * fy, wz * fx * fy
                below, above = out[b, k, m + s, j], out[b, k, m + s, j + 1]
                _add(below[i], w00, row)
                _add(below[i + 1], w01, row)
                _add(above[i], w10, row)
                _add(above[i + 1], w11, row)
