"""What the prior's shape is meant to be: a solid without haze, shreds and holes, inside the photo's silhouette.

Where the network doubts (shoulders, loose hair, the nape) its density is a mist of half-occupied cells, which renders as
haze and meshes as icicles. On a lattice such places are decided: smoothed, cut by the matte, opened, closed, made one piece.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

from portrait_backend.painting.surface import smoothstep
from portrait_backend.portrait.parts import hair_pixels
from portrait_backend.portrait.regions import InPhoto, face_share
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.ears import bare_ears
from portrait_backend.prior.face_front import before_face
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.field import RadianceField

Mask = NDArray[np.bool_]
Array = NDArray[np.float32]

RESOLUTION = 128
SMOOTHING, FACE_SMOOTHING = 1.6, 0.6
"""Standard deviation in cells, elsewhere and in the face and where ears are."""
BODY_SMOOTHING, BODY = 4.5, (-0.25, -0.33)
"""The same of shoulders and clothes, and the heights (head units) over which it sets in."""
THIN, THIN_BELOW, BELOW = 1, 2, -0.14
"""Radius in cells of what is too thin to be kept: on the head (ears stay), and below this height (neck and shoulders)."""
GAP = 3
"""Radius in cells of gaps that are closed."""
SHARPEN = 3.0
"""Factor on the log-odds: what is doubtful becomes empty or solid."""
LOCK, THICK, FARTHEST = 1.2, 0.012, 0.15
"""Distance from the solid up to which a missing pixel is filled: in distances from its silhouette, what is added to that, and at most
(head units)."""
HARDLY, SHOULDERS = 0.03, 0.1
"""The same of clothes and neck, after and before they are smoothed (head units)."""
TWO_CELLS: Mask = ndimage.iterate_structure(ndimage.generate_binary_structure(3, 1), 2)
"""What lies within two steps from cell to cell."""
DECIDED = 1.5
"""Least log-odds of what was decided, and of what is more than two cells from the surface."""
OUTSIDE_PX = 3
"""Pixels of 512 outside the matte from which there is nothing."""


@torch.no_grad()
def clean_occupancy(head: RadianceField, portrait: Portrait, grid: DensityGrid | None = None) -> Tensor:
    """Return the share of a solid's density (n, n, n), indexed z, y, x at cell centres as in `DensityGrid`, that the head should have."""
    grid = grid or DensityGrid.build(head, RESOLUTION)
    share = (grid.values / (2 * head.surface_density)).clamp(0, 1).numpy()
    axis = ((torch.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1) * head.half_extent
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    seen, hair = InPhoto.of(portrait, points), hair_pixels(portrait)
    masks = face_share(portrait, points, seen), shown_empty(portrait, seen) | before_face(portrait, hair, seen), seen.within(hair)
    face, empty, on_hair = (values.view(share.shape).numpy() for values in masks)
    ears = bare_ears(points, share > 0.5)
    smooth = ndimage.gaussian_filter(share, SMOOTHING, mode="nearest")
    fine = ndimage.gaussian_filter(share, FACE_SMOOTHING, mode="nearest")
    below, cell = y.numpy() < BELOW, 2 * head.half_extent / RESOLUTION
    bare, cloth = (face > 0) & below, below & ~on_hair
    wide = np.where(grown(share > 0.5, portrait, points, cell, bare, cloth, SHOULDERS) & cloth, 1, share)
    broad = ndimage.gaussian_filter(wide, BODY_SMOOTHING, mode="nearest")
    broad = 2 * broad - ndimage.gaussian_filter(broad, BODY_SMOOTHING, mode="nearest")  # as far out as before: no shoulder is lost
    smooth = smooth + smoothstep(y, *BODY).numpy() * (broad - smooth)
    share = np.where(empty, 0, smooth + np.maximum(face, ears) * (fine - smooth))
    solid = share > 0.5
    clean = _decided(solid, face > 0.5, ears > 0.5, below)
    clean |= grown(clean, portrait, points, cell, bare, cloth)
    clean |= _closed(clean) & ~(ears > 0.5) & ~below  # hair that was grown hangs together with the head
    odds = SHARPEN * np.log(np.clip(share, 1e-3, 1 - 1e-3) / np.clip(1 - share, 1e-3, 1 - 1e-3))
    inside, outside = eroded(clean, TWO_CELLS, outside=True), ~dilated(clean, TWO_CELLS)
    odds = np.where(clean, np.maximum(odds, np.where(inside, DECIDED, 0)), np.minimum(odds, np.where(outside, -DECIDED, 0)))
    odds = np.where(clean == solid, odds, np.where(clean, DECIDED, -DECIDED))
    return torch.from_numpy((1 / (1 + np.exp(-odds))).astype(np.float32))


def shown_empty(portrait: Portrait, seen: InPhoto) -> Tensor:
    """Return at which points the photo shows that there is nothing: (N,) bool."""
    something = F.max_pool2d((portrait.matte > 0.05).float()[None, None], 2 * OUTSIDE_PX + 1, 1, OUTSIDE_PX)
    nothing = (something < 0.5) & (portrait.valid > 0.5)
    return seen.within(nothing[0, 0])


def grown(
    solid: Mask,
    portrait: Portrait,
    points: Tensor,
    cell: float,
    bare: Mask | None = None,
    cloth: Mask | None = None,
    hardly: float = HARDLY,
) -> Mask:
    """Return the cells (n, n, n), centred at points (n^3, 3), that fill the photo's matte where the solid's silhouette doesn't.

    A pixel at a distance from the silhouette is filled by what is hardly farther from the solid itself: hair that stands off
    the head becomes a lock there, not a wall along the line of sight. bare (n, n, n): where nothing grows from, a jaw beside a collar;
    cloth (n, n, n): what grows by `hardly` only, shoulders and collars, of which bulbs would come.
    """
    size = len(solid)
    camera = portrait.camera.resized(size)
    pixel = float(camera.centre.norm()) / float(camera.intrinsics[0, 0])
    at = camera.project(points)[0].long()
    inside = ((at >= 0) & (at < size)).all(-1).numpy()
    column, row = at.numpy().clip(0, size - 1).T
    shown = np.zeros((size, size), bool)
    shown[row[solid.ravel() & inside], column[solid.ravel() & inside]] = True
    shown = ndimage.binary_dilation(ndimage.binary_closing(shown))  # cells are wider than their centres
    matte, valid = F.interpolate(torch.stack([portrait.matte, portrait.valid])[None], size=shown.shape, mode="area")[0].numpy()
    missing = (matte > 0.5) & (valid > 0.5) & ~shown
    away = ndimage.distance_transform_edt(~shown) * pixel
    reach = np.minimum(LOCK * away + THICK, FARTHEST)[row, column].reshape(solid.shape)
    asked = (missing[row, column] & inside).reshape(solid.shape) & ~solid
    source = solid if bare is None else solid & ~bare
    cloth = np.zeros_like(solid) if cloth is None else cloth & source
    near = distance_at(source & ~cloth, asked, float(reach[asked].max(initial=0)) / cell) * cell <= reach
    return asked & (near | (distance_at(cloth, asked & ~near, hardly / cell) * cell <= np.minimum(reach, hardly)))


def distance_at(solid: Mask, asked: Mask, farthest: float) -> Array:
    """Return the distance in cells (n, n, n) to a solid (n, n, n) at the asked cells (n, n, n) outside it.

    Infinite beyond `farthest` and elsewhere. It looks for the nearest cell of the solid's surface, there only.
    """
    distance = np.full(solid.shape, np.inf)
    surface = np.argwhere(solid & ~eroded(solid, ndimage.generate_binary_structure(3, 1), outside=True))
    if len(surface) and asked.any():
        tree, threads = cKDTree(surface), torch.get_num_threads()
        distance[asked], _ = tree.query(np.argwhere(asked), distance_upper_bound=farthest + 1e-6, workers=threads)
    return distance


def _decided(solid: Mask, face: Mask, ears: Mask, below: Mask) -> Mask:
    """Return the solid (n, n, n) without thin pieces, with gaps closed, cavities filled, as one piece.

    Face and ears keep what is thin, ears also the gap behind them.
    """
    on_head, on_body = (_opened(solid, radius) for radius in (THIN, THIN_BELOW))
    opened = np.where(below, on_body, on_head) | (solid & (face | ears))
    if not opened.any():
        return solid
    one = largest_piece(opened)
    return np.asarray(ndimage.binary_fill_holes((_closed(one) & ~ears) | one))


def largest_piece(cells: Mask) -> Mask:
    """Return the largest connected piece of the cells (n, n, n), none of none."""
    labels, _ = ndimage.label(cells)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(cells & (labels == sizes.argmax()))


def _opened(solid: Mask, radius: int) -> Mask:
    """Return the solid (n, n, n) without what is thinner than a ball; where the box cuts it, it goes on."""
    padded = np.pad(solid, 2 * radius, mode="edge")
    return dilated(eroded(padded, _ball(radius)), _ball(radius))[(slice(2 * radius, -2 * radius),) * 3]


def _closed(solid: Mask) -> Mask:
    """Return the solid (n, n, n) with gaps closed."""
    padded = np.pad(solid, GAP, mode="edge")  # the box's floor cuts the shoulders: without it a closing would eat into them
    return eroded(dilated(padded, _ball(GAP)), _ball(GAP))[GAP:-GAP, GAP:-GAP, GAP:-GAP]


def dilated(cells: Mask, shape: Mask, outside: bool = False) -> Mask:
    """Return the cells (n, n, n) widened by a shape (2 r + 1, ...) that is the same from all sides; beyond the lattice lies `outside`.

    The same as scipy's ``binary_dilation``, layer by layer with OpenCV: ten times as fast.
    """
    radius, (rows, columns, layers) = len(shape) // 2, cells.shape
    padded = np.pad(cells, radius, constant_values=outside).view(np.uint8)
    result = np.zeros(cells.shape, np.uint8)
    for layer in range(len(shape)):
        part = np.ascontiguousarray(padded[:, :, layer : layer + layers])  # OpenCV takes the last axis for channels
        widened = cv2.dilate(part, shape[..., layer].astype(np.uint8))[radius : radius + rows, radius : radius + columns]
        np.maximum(result, widened, out=result)
    return np.asarray(result.view(np.bool_))


def eroded(cells: Mask, shape: Mask, outside: bool = False) -> Mask:
    """Return the cells (n, n, n) of which the shape around has none that is not solid; see `dilated`."""
    return ~dilated(~cells, shape, not outside)


def _ball(radius: int) -> Mask:
    z, y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y + z * z <= radius * radius + 1)
