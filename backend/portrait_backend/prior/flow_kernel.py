"""CPU kernel (numba) that averages noise along the flow of hair; `hair_strands.along_flow` uses it.

The torch path passes over all points some hundred times; here a few points at a time follow their lines. Same results (tested).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from portrait_backend.radiance.grid_kernels import REPEATABLE, blend

LEAST = np.float32(1e-12)
BLOCK = 64
"""Points that are moved together: their arithmetic becomes vector operations."""
INLINED = "958248cde575"
"""Of which `grid_kernels` the functions are that are compiled in here, as numba's cache looks at this file alone: the first digits of its
SHA-256. A test says what they are."""


@njit(inline="always", fastmath=REPEATABLE)
def _unit(x: Any, y: Any, z: Any) -> Any:
    scale = np.float32(1) / max(np.sqrt(x * x + y * y + z * z), LEAST)
    return x * scale, y * scale, z * scale


@njit(inline="always", fastmath=REPEATABLE)
def _on_capsule(x: Any, y: Any, z: Any, centre: Any, radius: Any) -> Any:
    axis = min(y, centre[1])
    ux, uy, uz = _unit(x - centre[0], y - axis, z - centre[2])
    return centre[0] + radius * ux, axis + radius * uy, centre[2] + radius * uz


@njit(inline="always", fastmath=REPEATABLE)
def _flow(x: Any, y: Any, z: Any, centre: Any, pole: Any, down: Any) -> Any:
    ox, oy, oz = _unit(x - centre[0], y - centre[1], z - centre[2])
    along = ox * pole[0] + oy * pole[1] + oz * pole[2]
    ax, ay, az = _unit(along * ox - pole[0], along * oy - pole[1], along * oz - pole[2])
    high = min(max((y - centre[1] - down[1]) / (down[0] - down[1]), np.float32(0)), np.float32(1))
    return _unit(ax * high, ay * high - (np.float32(1) - high), az * high)


@njit(fastmath=REPEATABLE)
def _move(at: Any, pace: Any, centre: Any, radius: Any, pole: Any, down: Any) -> None:
    px, py, pz = at
    for i in range(len(px)):
        fx, fy, fz = _flow(px[i], py[i], pz[i], centre, pole, down)
        px[i], py[i], pz[i] = _on_capsule(px[i] + pace * fx, py[i] + pace * fy, pz[i] + pace * fz, centre, radius)


@njit(inline="always", fastmath=REPEATABLE)
def _wrapped(x: Any, n: Any) -> Any:
    x -= np.float32(n) * np.floor(x * (np.float32(1) / np.float32(n)))
    i = min(int(x), n - 1)
    return i, x - np.float32(i)


@njit(fastmath=REPEATABLE)
def _add_noise(noise: Any, at: Any, per_unit: Any, out: Any) -> None:
    n, (px, py, pz) = noise.shape[0] - 1, at
    for q in range(len(out)):
        (i, x), (j, y), (k, z) = _wrapped(px[q] * per_unit, n), _wrapped(py[q] * per_unit, n), _wrapped(pz[q] * per_unit, n)
        out[q] += blend(noise, i, j, k, x, y, z)


@njit(parallel=True, fastmath=REPEATABLE, cache=True)
def average(
    points: Any, noise: Any, per_unit: Any, step: Any, steps: int, centre: Any, radius: Any, pole: Any, down: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Fill out (N,) with the mean of a `periodic` lattice (n + 1, ...) on `steps` steps to both sides of points (N, 3), and on them.

    step: head units; per_unit: cells per head unit; centre, pole (3,), radius and down (2,): of the capsule and the flow on it.
    """
    for block in prange((len(points) + BLOCK - 1) // BLOCK):
        low = np.int64(block) * BLOCK
        total = out[low : low + BLOCK]
        total[:] = 0
        x, y, z = np.empty(len(total), np.float32), np.empty(len(total), np.float32), np.empty(len(total), np.float32)
        for way in range(2):
            for q in range(len(total)):
                x[q], y[q], z[q] = _on_capsule(points[low + q, 0], points[low + q, 1], points[low + q, 2], centre, radius)
            if way == 0:
                _add_noise(noise, (x, y, z), per_unit, total)
            for _ in range(steps):
                _move((x, y, z), step if way == 0 else -step, centre, radius, pole, down)
                _add_noise(noise, (x, y, z), per_unit, total)
        for q in range(len(total)):
            total[q] /= np.float32(2 * steps + 1)
