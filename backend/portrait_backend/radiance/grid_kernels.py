"""CPU kernel (numba) that places importance samples along rays; `density_grid.propose` chooses it.

One pass per ray over a lattice in cache, with early stop; the torch path gives the same samples (tested).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

NOTHING = np.float32(1e-5)
"""Optical depth of a step that counts as none: below it rounding would decide."""
REPEATABLE = {"nnan", "ninf", "nsz", "arcp", "contract"}
"""Liberties of arithmetic, without reordered sums and approximate functions: with those a kernel that was just compiled and the same one
from numba's cache differ in the last bit, and the first head after an installation from the second."""


@njit(inline="always", fastmath=REPEATABLE)
def blend(lattice: Any, i: Any, j: Any, k: Any, x: Any, y: Any, z: Any) -> Any:
    """Mix the eight values of a lattice (indexed z, y, x) around cell i, j, k >= 0 by the shares x, y, z in [0, 1] of their neighbours."""
    i, j, k, one = np.uint64(i), np.uint64(j), np.uint64(k), np.uint64(1)  # a signed index is checked for counting from the end
    a = lattice[k, j, i] + x * (lattice[k, j, i + one] - lattice[k, j, i])
    b = lattice[k, j + one, i] + x * (lattice[k, j + one, i + one] - lattice[k, j + one, i])
    c = lattice[k + one, j, i] + x * (lattice[k + one, j, i + one] - lattice[k + one, j, i])
    d = lattice[k + one, j + one, i] + x * (lattice[k + one, j + one, i + one] - lattice[k + one, j + one, i])
    a, c = a + y * (b - a), c + y * (d - c)
    return a + z * (c - a)


@njit(inline="always", fastmath=REPEATABLE)
def trilinear(lattice: Any, x: Any, y: Any, z: Any) -> Any:
    """Lattice (n, n, n) indexed z, y, x at fractional indices, clamped at the border."""
    n = lattice.shape[0]
    top = np.float32(n - 1)
    x, y, z = min(max(x, np.float32(0)), top), min(max(y, np.float32(0)), top), min(max(z, np.float32(0)), top)
    i, j, k = min(int(x), n - 2), min(int(y), n - 2), min(int(z), n - 2)
    # a float32 less an int would be of double precision
    return blend(lattice, i, j, k, x - np.float32(i), y - np.float32(j), z - np.float32(k))


@njit(inline="always", fastmath=REPEATABLE)
def block_of(x: Any, per_cell: Any, top: Any) -> Any:
    """Index of the block that holds the fractional cell index x along one axis."""
    return int(min(max((x + np.float32(0.5)) * per_cell, np.float32(0)), top))


@njit(inline="always", fastmath=REPEATABLE)
def steps_a_cell(pace: Any) -> Any:
    """1 / pace, the steps that a ray of `pace` cells a step takes for a cell along an axis; 0 if it hardly moves along it."""
    return np.float32(1) / pace if abs(pace) > np.float32(1e-6) else np.float32(0)


@njit(inline="always", fastmath=REPEATABLE)
def steps_left(x: Any, steps: Any, block: int, reach: int, blocks: int, cells: Any) -> Any:
    """Steps until x comes into a block that is `reach` away along this axis; the outermost blocks reach to infinity.

    steps: `steps_a_cell`; cells: of a block.
    """
    if steps > 0 and block + reach < blocks:
        return ((np.float32(block + reach) * cells - np.float32(0.5)) - x) * steps
    if steps < 0 and block + 1 > reach:
        return ((np.float32(block + 1 - reach) * cells - np.float32(0.5)) - x) * steps
    return np.float32(1e6)


@njit(inline="always", fastmath=REPEATABLE)
def absorbed_share(x: Any) -> Any:
    """1 - exp(-x) for an optical depth x >= 0; for thin matter by its series, which is quicker and loses no digits."""
    if x < np.float32(0.03):
        return x * (np.float32(1) - x * (np.float32(1 / 2) - x * (np.float32(1 / 6) - x * np.float32(1 / 24))))
    return np.float32(1) - np.exp(-x)


@njit(parallel=True, fastmath=REPEATABLE, cache=True)
def place_samples(
    lattice: Any,
    clearance: Any,
    scale: Any,
    origins: Any,
    directions: Any,
    near: Any,
    far: Any,
    steps: int,
    opaque: Any,
    flatten: Any,
    u: Any,
    t: Any,
    gap: Any,
    mass: Any,
) -> None:  # pragma: no cover - compiled
    """Fill t (N, S) with quantiles u (N or 1, S) of the flattened weights that the lattice gives each ray.

    gap (N, S): the length of matter that each sample stands for; mass (N,): the sum of the weights. origins (N or 1, 3) and directions
    (N, 3) in head units, `scale` = cells per head unit, near / far (N,); the march takes `steps` steps and ends where the
    transmittance falls below `opaque`. clearance (n / b, n / b, n / b): see `empty_space`, of blocks in or next to which the lattice is not
    all zero.
    """
    count, samples = t.shape
    middle = np.float32(0.5 * lattice.shape[0] - 0.5)
    blocks = clearance.shape[0]
    per_cell, cells, top = np.float32(blocks / lattice.shape[0]), np.float32(lattice.shape[0] / blocks), np.float32(blocks - 0.5)
    for index in prange(count):
        r = np.int64(index)  # prange counts unsigned, which does not mix with int
        weight = np.zeros(steps, np.float32)
        step = (far[r] - near[r]) / np.float32(steps)
        o = origins[min(r, origins.shape[0] - 1)]
        transmittance, total, last = np.float32(1), np.float32(0), 0
        if step > 0:
            dx, dy, dz = (
                steps_a_cell(scale * step * directions[r, 0]),
                steps_a_cell(scale * step * directions[r, 1]),
                steps_a_cell(scale * step * directions[r, 2]),
            )
            s = 0
            while s < steps:
                at = near[r] + step * (np.float32(s) + np.float32(0.5))
                x = middle + scale * (o[0] + directions[r, 0] * at)
                y = middle + scale * (o[1] + directions[r, 1] * at)
                z = middle + scale * (o[2] + directions[r, 2] * at)
                k, j, i = block_of(z, per_cell, top), block_of(y, per_cell, top), block_of(x, per_cell, top)
                reach = np.int64(clearance[k, j, i])
                if reach > 0:  # go on where the ray leaves what is empty around, never farther
                    left = min(steps_left(x, dx, i, reach, blocks, cells), steps_left(y, dy, j, reach, blocks, cells))
                    left = min(min(left, steps_left(z, dz, k, reach, blocks, cells)) - np.float32(0.05), np.float32(steps))
                    s += max(int(left), 1)
                    last = min(s, steps)
                    continue
                last = s + 1
                absorbed = trilinear(lattice, x, y, z) * step
                if absorbed > NOTHING:
                    here = transmittance * absorbed_share(absorbed)
                    transmittance -= here
                    total += here
                    weight[s] = here**flatten
                if transmittance < opaque:
                    break
                s += 1
        mass[r] = total
        if total <= 0:
            continue
        # widen by one step each way: the lattice knows the surface to about a cell
        whole, before, end = np.float32(0), np.float32(0), 0
        for s in range(min(last + 1, steps)):
            here = weight[s]
            after = weight[s + 1] if s + 1 < steps else np.float32(0)
            weight[s] = max(before, max(here, after))
            before = here
            whole += weight[s]
            if weight[s] > 0:
                end = s + 1
        quantile = u[min(r, u.shape[0] - 1)]
        s, below, empty, edge = 0, np.float32(0), 0, np.float32(0)
        for q in range(2 * samples):  # a sample, then the edge between it and the next
            share = (q + 1) // 2 / np.float32(samples) if q % 2 else quantile[q // 2]
            target = np.float32(share) * whole
            while s < end - 1 and below + weight[s] <= target:
                below += weight[s]
                if weight[s] == 0:
                    empty += 1
                s += 1
            inside = min(max((target - below) / max(weight[s], np.float32(1e-20)), np.float32(0)), np.float32(1))
            if q % 2:
                matter = step * (np.float32(s - empty) + inside)
                gap[r, q // 2] = matter - edge
                edge = matter
            else:
                t[r, q // 2] = near[r] + step * (np.float32(s) + inside)
