"""Radiance field -> closed triangle mesh: marching cubes on the density, one piece, no cavities, flat cut at the box."""

from __future__ import annotations

from collections.abc import Callable

import mcubes
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.geometry.meshes import largest_component, signed_volume, taubin_smooth
from portrait_backend.mesh.lattice import CLIP, sample_lattice
from portrait_backend.mesh.types import Field
from portrait_shared.errors import PortraitDiffusionError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Detail = Callable[[Tensor], Tensor]
"""Points (N, 3) in head units to shares (N,) in [0, 1]."""

ANTI_RIPPLE = 0.7
"""Least standard deviation, in cells, of the smoothing: removes stair steps of a density steeper than a cell."""
FIELD_RIPPLE = 0.005
"""Least standard deviation in head units (2 mm): removes the texels of the field's planes, keeps lips and ears."""
COARSE_RIPPLE = 0.011
"""The same where no detail is wanted (4 mm): hair and clothes, where the field doubts and frays."""
DETAIL_SIZE = 48
"""Lattice points along a side at which the wish for detail is asked."""
LEAST_VALUE = 0.01 * CLIP
"""Samples keep this distance from the level, so that no vertex falls on a lattice point and no triangle degenerates."""
SMALLEST_SHARE = 0.005
"""A head fills at least this share of its box; less is an empty field."""


def extract_mesh(
    field: Field, resolution: int, context: Context, smoothing: int = 2, detail: Detail | None = None
) -> tuple[FloatArray, IntArray]:
    """Return the surface of `field` as one watertight mesh.

    resolution: cells along the box side; smoothing: Taubin passes; detail: how much of the field's detail is kept at points,
    None for all of it. Returns vertices (V, 3) float64 in head units and faces (F, 3), counter-clockwise from outside.
    Where the solid leaves the box it is closed by a flat cap. Raises `empty-mesh` if the field holds no solid.
    """
    half_extent = field.half_extent
    volume = sample_lattice(field, resolution, context).numpy()
    cell = 2 * half_extent / (volume.shape[0] - 1)
    volume = keep_one_solid(_smoothed(volume, half_extent, detail))
    vertices, faces = mcubes.marching_cubes(np.pad(volume, 1, constant_values=-CLIP), 0.0)
    vertices = np.clip((vertices - 1) * cell - half_extent, -half_extent, half_extent)
    vertices, faces = largest_component(vertices, faces.astype(np.int64))
    if signed_volume(vertices, faces) < 0:
        faces = faces[:, ::-1].copy()
    context.report(1, 1)
    on_box = (np.abs(vertices) >= half_extent * (1 - 1e-9)).any(1)
    return taubin_smooth(vertices, faces, smoothing, pinned=on_box), faces


def _smoothed(volume: NDArray[np.float32], half_extent: float, detail: Detail | None) -> NDArray[np.float32]:
    """Return the lattice (n, n, n) without ripples, and where there is no detail to keep without shreds and thin holes."""
    cell = 2 * half_extent / (volume.shape[0] - 1)
    fine = ndimage.gaussian_filter(volume, max(ANTI_RIPPLE, FIELD_RIPPLE / cell), mode="nearest", truncate=3.0)
    if detail is None:
        return np.asarray(fine)
    coarse = ndimage.gaussian_filter(volume, max(ANTI_RIPPLE, COARSE_RIPPLE / cell), mode="nearest", truncate=2.5)
    axis = torch.linspace(-half_extent, half_extent, DETAIL_SIZE)
    wanted = detail(torch.cartesian_prod(axis, axis, axis)).view(1, 1, *3 * (DETAIL_SIZE,))
    share = F.interpolate(wanted, size=volume.shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    return np.asarray(coarse + share * (fine - coarse))


def keep_one_solid(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the compressed density (n, n, n) with floaters emptied and cavities filled.

    A cavity is empty space that cannot be reached from outside the box; space that opens only through the
    cut of the solid at a box face counts as a cavity too. Raises `empty-mesh` if nothing is left.
    """
    inside = volume > 0
    labels, count = ndimage.label(inside)
    sizes = np.bincount(labels[inside], minlength=count + 1)
    if count == 0 or sizes.max() < SMALLEST_SHARE * volume.size:
        raise PortraitDiffusionError(
            "empty-mesh",
            f"the field holds no head: its largest solid fills {100 * sizes.max() / volume.size:.2f} % of the box",
            "Run the earlier stages again, with another photo or the default settings",
        )
    solid = labels == sizes.argmax()
    volume = np.maximum(np.abs(volume), LEAST_VALUE)
    return np.negative(volume, out=volume, where=~(solid | _cavities(solid)))


def _cavities(solid: BoolArray) -> BoolArray:
    sealed = np.pad(solid, 1)
    for axis in range(3):
        for side in (0, -1):
            outer: list[slice | int] = [slice(1, -1)] * 3
            outer[axis] = side
            sealed[tuple(outer)] = ndimage.binary_fill_holes(np.take(solid, side, axis))
    around = _around(sealed)  # all beyond is outside
    labels, count = ndimage.label(~sealed[around], structure=np.ones((3, 3, 3)))
    known = np.zeros(count + 1, dtype=bool)
    known[0] = True
    for axis in range(3):
        for side in (0, -1):
            known[np.take(labels, side, axis)] = True
    cavities = np.zeros_like(sealed)
    cavities[around] = ~known[labels]
    return cavities[1:-1, 1:-1, 1:-1]


def _around(cells: BoolArray) -> tuple[slice, ...]:
    """Return the box of the cells (n, n, n) that are True, with one layer more where there is one."""
    spans = (np.flatnonzero(cells.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    return tuple(slice(max(int(span[0]) - 1, 0), int(span[-1]) + 2) for span in spans)
