"""How far a ray may jump through the empty blocks of a lattice: the distance of each block to the nearest one that holds something."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

BLOCK = 4
"""Cells per side of a block."""
MOST = 255
"""Largest distance that is told apart."""


def blocks_near(cells: Tensor, block: int = BLOCK) -> Tensor:
    """Return which blocks (n / b, n / b, n / b) have one of the cells (n, n, n), bool, in them or next to them.

    b is `block`, or 1 if n is not a multiple of it.
    """
    block = block if len(cells) % block == 0 else 1
    for axis in range(3):
        parts = cells.unflatten(axis, (-1, block))
        near, first, last = parts.any(axis + 1), parts.select(axis + 1, 0), parts.select(axis + 1, -1)
        others = near.shape[axis] - 1
        near.narrow(axis, 0, others).logical_or_(first.narrow(axis, 1, others))
        near.narrow(axis, 1, others).logical_or_(last.narrow(axis, 0, others))
        cells = near
    return cells


def clearance(occupied: Tensor) -> Tensor:
    """Return the distance (b, b, b) uint8, in blocks along the axis where it is largest, to the nearest occupied (b, b, b) bool block.

    0 where the block is occupied itself; the cube of blocks nearer than the distance is empty. On the CPU.
    """
    empty = ~occupied.cpu().numpy()
    if empty.all():
        return torch.full(occupied.shape, MOST, dtype=torch.uint8)
    return torch.from_numpy(distance_transform_cdt(empty, "chessboard").clip(0, MOST).astype(np.uint8))
