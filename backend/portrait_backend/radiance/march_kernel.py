"""CPU kernel (numba) that marches rays through a lattice of density in small steps; `picture` uses it.

Where the matter is, and how much of it, comes from the lattice alone, which costs a hundredth of asking the field; the field is
asked for colours only, at the few points per ray that this kernel chooses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from portrait_backend.radiance.grid_kernels import REPEATABLE, absorbed_share, block_of, steps_a_cell, steps_left, trilinear

INLINED = "958248cde575"
"""Of which `grid_kernels` the functions are that are compiled in here, as numba's cache looks at this file alone: the first digits of its
SHA-256. A test says what they are."""


@njit(parallel=True, fastmath=REPEATABLE, cache=True)
def march(
    roots: Any,
    clearance: Any,
    scale: Any,
    origin: Any,
    directions: Any,
    near: Any,
    far: Any,
    steps: int,
    opaque: Any,
    alpha: Any,
    depth: Any,
    t: Any,
) -> None:  # pragma: no cover - compiled
    """Fill alpha and depth (N,), and t (N, S): depths that share the ray's weight equally (near where it meets nothing).

    roots (n, n, n), indexed z, y, x: cube roots of the density at the cell centres; clearance (b, b, b): how far the blocks are from
    one that is not empty (see `empty_space`); `scale` = cells per head unit; origin (3,), directions (N, 3) of unit z, near and far
    (N,). The march takes `steps` steps and ends where the transmittance falls below `opaque`.
    """
    count, samples = t.shape
    middle = np.float32(0.5 * roots.shape[0] - 0.5)
    blocks = clearance.shape[0]
    per_cell, cells, top = np.float32(blocks / roots.shape[0]), np.float32(roots.shape[0] / blocks), np.float32(blocks - 0.5)
    for index in prange(count):
        r = np.int64(index)  # prange counts unsigned, which does not mix with int
        step = (far[r] - near[r]) / np.float32(steps)
        alpha[r], depth[r] = 0, 0
        t[r, :] = near[r]
        if not step > 0:
            continue
        weight, place = np.empty(steps, np.float32), np.empty(steps, np.float32)
        found = 0
        x, y, z = (middle + scale * origin[0], middle + scale * origin[1], middle + scale * origin[2])
        ux, uy, uz = scale * directions[r, 0], scale * directions[r, 1], scale * directions[r, 2]
        rx, ry, rz = steps_a_cell(ux * step), steps_a_cell(uy * step), steps_a_cell(uz * step)
        transmittance, total, moment = np.float32(1), np.float32(0), np.float32(0)
        s = 0
        while s < steps and transmittance >= opaque:
            at = near[r] + step * (np.float32(s) + np.float32(0.5))
            px, py, pz = x + ux * at, y + uy * at, z + uz * at
            k, j, i = block_of(pz, per_cell, top), block_of(py, per_cell, top), block_of(px, per_cell, top)
            reach = np.int64(clearance[k, j, i])
            if reach > 0:  # go on where the ray leaves what is empty around, never farther
                left = min(steps_left(px, rx, i, reach, blocks, cells), steps_left(py, ry, j, reach, blocks, cells))
                left = min(min(left, steps_left(pz, rz, k, reach, blocks, cells)) - np.float32(0.05), np.float32(steps))
                s += max(int(left), 1)
                continue
            root = trilinear(roots, px, py, pz)
            here = transmittance * absorbed_share(root * root * root * step)
            transmittance -= here
            total += here
            moment += here * at
            weight[found], place[found] = here, at
            found += 1
            s += 1
        alpha[r] = total
        if total <= 0:
            continue
        depth[r] = moment / total
        n, below = 0, np.float32(0)
        for q in range(samples):
            target = (np.float32(q) + np.float32(0.5)) / np.float32(samples) * total
            while n < found - 1 and below + weight[n] <= target:
                below += weight[n]
                n += 1
            inside = min(max((target - below) / max(weight[n], np.float32(1e-20)), np.float32(0)), np.float32(1))
            t[r, q] = place[n] + step * (inside - np.float32(0.5))
