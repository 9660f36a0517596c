"""CPU kernels (numba) that gather and scatter tri-plane features; `triplane.sample_planes` chooses them.

Each point reads 3 planes x D depth slices x 4 corners of C contiguous channels, which the stock
operators do several times slower. The kernels give the same results as the torch path (tested).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

USUAL = 32
"""Channels of a texel that the kernels are compiled for in particular: half as long again as fast, or twice."""


@njit(inline="always")
def _cell(value: float, size: int) -> Any:
    q = min(max((value * 0.5 + 0.5) * size - 0.5, 0.0), size - 1.0)
    i = min(int(q), size - 2)
    return i, np.float32(q - i)


@njit(fastmath={"reassoc", "nsz"})
def _is_zero(row: Any) -> Any:  # with flags of its own: a gradient that is no number must not pass for none
    total = np.float32(0)
    for c in range(row.shape[0]):
        total += abs(row[c])
    return total == 0


@njit(inline="always", fastmath=True)
def _blend(row: Any, r0: Any, r1: Any, q0: Any, q1: Any, a: Any, b: Any, c: Any, d: Any, near: Any, far: Any, channels: int) -> None:
    """Add eight weighted corners to row (C,): r0, r1, q0, q1 are two neighbouring texels each (2 C,), of the near and the far slice."""
    for i in range(channels):
        below = a * r0[i] + b * r0[i + channels] + c * r1[i] + d * r1[i + channels]
        above = a * q0[i] + b * q0[i + channels] + c * q1[i] + d * q1[i + channels]
        row[i] += near * below + far * above


@njit(inline="always", fastmath=True)
def _spread(row: Any, r0: Any, r1: Any, a: Any, b: Any, c: Any, d: Any, channels: int) -> None:
    """Add row (C,), weighted, to four corners: r0, r1 are two neighbouring texels each (2 C,)."""
    for i in range(channels):
        value = row[i]
        r0[i] += a * value
        r0[i + channels] += b * value
        r1[i] += c * value
        r1[i + channels] += d * value


@njit(parallel=True, fastmath=True, cache=True)
def gather(planes: Any, depth: int, height: int, width: int, points: Any, axes: Any, out: Any) -> None:  # pragma: no cover - compiled
    """out[b, p] = sum over planes of the trilinear sample; points (B, P, 3), axes (3, 3), out (B, P, C).

    planes: the memory of planes (B, 3, depth, height, width, C), flat.
    """
    batch, count, channels = out.shape
    one = np.float32(1)
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
            gx, gy, gz = one - fx, one - fy, one - fz
            o0 = ((((b * 3 + k) * depth + m) * height + j) * width + i) * channels
            o1, next_slice = o0 + width * channels, (height * width * channels if depth > 1 else 0)
            e0, e1, two = o0 + next_slice, o1 + next_slice, 2 * channels
            r0, r1, q0, q1 = planes[o0 : o0 + two], planes[o1 : o1 + two], planes[e0 : e0 + two], planes[e1 : e1 + two]
            if channels == USUAL:  # a number that the compiler knows: the loop becomes a few vector operations
                _blend(row, r0, r1, q0, q1, gx * gy, fx * gy, gx * fy, fx * fy, gz, fz, USUAL)
            else:
                _blend(row, r0, r1, q0, q1, gx * gy, fx * gy, gx * fy, fx * fy, gz, fz, channels)


@njit(parallel=True, fastmath=True, cache=True)
def scatter(grad: Any, points: Any, axes: Any, out: Any) -> None:  # pragma: no cover - compiled
    """Transpose of `gather`: adds grad (B, P, C) into out (B, 3, D, H, W, C), the planes in parallel."""
    batch, count, channels = grad.shape
    depth, height, width = out.shape[2], out.shape[3], out.shape[4]
    one, flat, two = np.float32(1), out.reshape(-1), 2 * channels
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
            gx, gy = one - fx, one - fy
            for s in range(2 if depth > 1 else 1):
                w = fz if s else one - fz
                if w == 0.0:
                    continue
                o0 = ((((b * 3 + k) * depth + m + s) * height + j) * width + i) * channels
                o1 = o0 + width * channels
                r0, r1 = flat[o0 : o0 + two], flat[o1 : o1 + two]
                if channels == USUAL:
                    _spread(row, r0, r1, w * gx * gy, w * fx * gy, w * gx * fy, w * fx * fy, USUAL)
                else:
                    _spread(row, r0, r1, w * gx * gy, w * fx * gy, w * gx * fy, w * fx * fy, channels)
