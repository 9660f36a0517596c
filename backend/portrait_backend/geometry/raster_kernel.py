"""CPU kernel (numba) of the mesh rasteriser; `rasterise.rasterise` chooses it. The torch path finds the same fragments (tested)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

BANDS = 16
"""Strips of rows that are worked on at the same time; every strip sees the triangles in order, so the result is that of one."""


@njit(parallel=True, cache=True)
def fill(
    planes: Any, low: Any, extent: Any, corner_depth: Any, perspective: bool, slack: float, face: Any, barycentric: Any, depth: Any
) -> None:  # pragma: no cover - compiled
    """Write the nearest triangle's number, corner weights and depth into face (H, W), barycentric (H, W, 3), depth (H, W, +inf before).

    planes (n, 4, 3): barycentrics and (inverse) depth as affine functions of the pixel; low, extent (n, 2): box of pixels;
    corner_depth (n, 3): camera z of the corners. Equal depths go to the lower number.
    """
    height, width = face.shape
    for band in prange(BANDS):
        top, bottom = height * band // BANDS, height * (band + 1) // BANDS
        for n in range(len(planes)):
            first, end = max(low[n, 1], top), min(low[n, 1] + extent[n, 1], bottom)
            for row in range(first, end):
                y = row + 0.5
                for column in range(low[n, 0], low[n, 0] + extent[n, 0]):
                    x = column + 0.5
                    a = planes[n, 0, 0] * x + planes[n, 0, 1] * y + planes[n, 0, 2]
                    b = planes[n, 1, 0] * x + planes[n, 1, 1] * y + planes[n, 1, 2]
                    c = planes[n, 2, 0] * x + planes[n, 2, 1] * y + planes[n, 2, 2]
                    if a < -slack or b < -slack or c < -slack:
                        continue
                    z = planes[n, 3, 0] * x + planes[n, 3, 1] * y + planes[n, 3, 2]
                    z = np.float32(1 / z if perspective else z)
                    if z < depth[row, column]:
                        depth[row, column], face[row, column] = z, n
        for row in range(top, bottom):
            for column in range(width):
                n = face[row, column]
                if n < 0:
                    continue
                total = 0.0
                for i in range(3):
                    w = max(planes[n, i, 0] * (column + 0.5) + planes[n, i, 1] * (row + 0.5) + planes[n, i, 2], 0.0)
                    if perspective:
                        w /= corner_depth[n, i]
                    total += w
                for i in range(3):
                    w = max(planes[n, i, 0] * (column + 0.5) + planes[n, i, 1] * (row + 0.5) + planes[n, i, 2], 0.0)
                    if perspective:
                        w /= corner_depth[n, i]
                    barycentric[row, column, i] = w / total
