"""UV unwrap: cut into charts, flatten each without overlap, pack them with xatlas.

xatlas's own charts take a time that grows with the square of the face count (20 s for 60 k faces on a core) and come in
dozens; our charts follow the head, are few, and take a tenth of it. xatlas places them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import xatlas
from numpy.typing import NDArray

from portrait_backend.context import Context
from portrait_backend.geometry.meshes import face_normals
from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.mesh.charts import CUT_CHART, FACE_CHART, components, dual_graph, halve, merge_small, relax, segment
from portrait_backend.mesh.cut import cut_to_disk, is_disk
from portrait_backend.mesh.parametrise import flatten, signed_areas

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MOST_STRETCH, FACE_STRETCH = 12.0, 100.0
"""Ratio of area scales inside a chart above which it is cut: texels 3.5 times as long in places; the face may have more."""
CARVE_RINGS = 4
"""Rings of faces around a fold that go with it into a chart of its own."""
MOST_CARVED = 0.35
SMALLEST_CARVED = 40
CHART_SCALE = {FACE_CHART: 1.3, CUT_CHART: 0.5}
"""Texel density along each axis, relative to the rest: more for the face, less for the cut of the neck."""
PADDING = 4
"""Texels between charts, at least: charts are packed on a lattice this coarse."""
MIN_PACK_SIZE = 128
ARRANGEMENTS = 4
"""Ways to turn the charts that are tried for the tightest packing."""
OVERLAP_SIZE = 512
"""Side of the raster in which overlap inside a chart is looked for."""


@dataclass(frozen=True)
class Unwrapped:
    """A mesh split at the seams.

    source (V',) index of the original vertex of each split vertex; faces (F, 3) into them, in the original
    order; uv (V', 2) in [0, 1], v up; chart (F,) number of each face's chart, the largest first.
    """

    source: IntArray
    faces: IntArray
    uv: NDArray[np.float32]
    chart: IntArray


@dataclass(frozen=True)
class _Chart:
    face_ids: IntArray
    vertex_ids: IntArray
    faces: IntArray
    uv: FloatArray


def unwrap(vertices: FloatArray, faces: IntArray, texture_size: int, context: Context) -> Unwrapped:
    """Unwrap a closed mesh, vertices (V, 3) head units, faces (F, 3), for a texture of `texture_size` texels a side.

    A chart that can't be laid flat without folds gives its folded places away to charts of their own; if they
    are most of it, it is cut in half.
    """
    relaxed = relax(vertices, faces)
    charts: list[_Chart] = []
    pieces = _pieces(segment(vertices, faces), faces)
    while pieces:
        ids, label = pieces.pop()
        context.report(sum(len(chart.face_ids) for chart in charts), len(faces))
        chart, bad = _flatten_piece(vertices, relaxed, faces, ids, FACE_STRETCH if label == FACE_CHART else MOST_STRETCH)
        if chart is not None:
            charts.append(replace(chart, uv=chart.uv * CHART_SCALE.get(label, 1.0)))
        else:
            side = _divide(vertices, faces[ids], bad)
            pieces.extend((ids[part], label) for part, _ in _pieces(side, faces[ids]))
    charts.sort(key=lambda chart: (-len(chart.face_ids), int(chart.face_ids[0])))
    return _pack(charts, len(faces), texture_size)


def _divide(vertices: FloatArray, faces: IntArray, bad: BoolArray) -> IntArray:
    """Return (F,) 0 or 1: the surroundings of the bad faces apart, or, if those are too many or none, two halves."""
    region = bad
    for _ in range(CARVE_RINGS if bad.any() else 0):
        touched = np.zeros(len(vertices), dtype=bool)
        touched[faces[region]] = True
        region = touched[faces].any(1)
    side = region if 0 < region.mean() < MOST_CARVED else halve(vertices, faces)
    parts = merge_small(side.astype(np.int64), faces, max(2, min(len(faces) // 20, SMALLEST_CARVED)), keep=np.zeros(len(faces), dtype=bool))
    if parts.any() and not parts.all():
        return parts
    return np.arange(len(faces)) * 2 // len(faces)


def _pieces(labels: IntArray, faces: IntArray) -> list[tuple[IntArray, int]]:
    """Return (face ids, label) of each connected piece, largest first."""
    piece = components(labels, dual_graph(faces))
    order = np.argsort(piece, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(piece))[:-1])
    return [(ids, int(labels[ids[0]])) for ids in sorted(parts, key=lambda ids: (-len(ids), int(ids[0])))]


def _flatten_piece(
    vertices: FloatArray, relaxed: FloatArray, faces: IntArray, ids: IntArray, most_stretch: float
) -> tuple[_Chart | None, BoolArray]:
    """Cut the piece to a disk and lay it flat: the chart and no bad faces, or None and the fewest bad faces (n,) of all layouts."""
    used, local = np.unique(faces[ids], return_inverse=True)
    source, disk = cut_to_disk(vertices[used], local.reshape(-1, 3).astype(np.int64))
    source = used[source]
    fewest = np.ones(len(ids), dtype=bool)
    if not is_disk(disk):
        return None, fewest
    area = np.linalg.norm(face_normals(vertices[source], disk), axis=1) / 2
    for uv in flatten(vertices[source], disk, relaxed[source]):
        scale = signed_areas(uv, disk) / np.maximum(area, 1e-20)
        bad = scale <= 0
        if not bad.any() and len(ids) > 1:
            bad = _overlapping(uv, disk)
        low, high = np.quantile(scale, (0.03, 0.97))
        even = len(ids) < 8 or high < most_stretch * max(low, 0)
        if len(ids) == 1 or (even and not bad.any()):
            return _Chart(ids, source, disk, uv), np.zeros(len(ids), dtype=bool)
        if even and bad.sum() < fewest.sum():
            fewest = bad
    return None, fewest


def _overlapping(uv: FloatArray, faces: IntArray) -> BoolArray:
    """Return (F,) bool: faces that cover a place twice, or none if that is less than rounding at the edges makes."""
    size = int(np.clip(5 * np.sqrt(len(faces)), 64, OVERLAP_SIZE))
    low, extent = uv.min(0), (uv.max(0) - uv.min(0)).max()
    pixels, triangles = torch.from_numpy((uv - low) / extent * size), torch.from_numpy(faces)
    first = rasterise(pixels, triangles, size, size).face
    found = np.zeros(len(faces), dtype=bool)
    summed = float(signed_areas(pixels.numpy(), faces).sum())
    if summed - int((first >= 0).sum()) > 8 + 0.002 * summed:
        last = rasterise(pixels, triangles.flip(0), size, size).face
        twice = (first >= 0) & (first != len(faces) - 1 - last)
        found[first[twice].numpy()] = True
        found[len(faces) - 1 - last[twice].numpy()] = True
    return found


def _pack(charts: list[_Chart], face_count: int, texture_size: int) -> Unwrapped:
    local = np.concatenate([c.faces + offset for c, offset in zip(charts, _offsets(charts), strict=True)])
    cells = max(MIN_PACK_SIZE, round(texture_size / PADDING))
    best: tuple[float, IntArray, IntArray, FloatArray] | None = None
    for turns in _turns(len(charts)):
        plane = np.concatenate([_turned(c.uv, turn) for c, turn in zip(charts, turns, strict=True)])
        mapping, indices, uv, side = _place(plane, local, cells)
        if best is None or side < best[0]:
            best = (side, mapping, indices, uv)
    if best is None:
        raise RuntimeError("no arrangement of the charts was tried")
    _, mapping, indices, uv = best
    face_ids = np.concatenate([c.face_ids for c in charts])
    number = np.repeat(np.arange(len(charts)), [len(c.face_ids) for c in charts])
    order = np.argsort(face_ids)
    if len(order) != face_count:
        raise RuntimeError(f"the charts hold {len(order)} of {face_count} faces")
    source = np.concatenate([c.vertex_ids for c in charts])[mapping]
    return Unwrapped(source, indices[order], uv.astype(np.float32), number[order])


def _offsets(charts: list[_Chart]) -> IntArray:
    return np.cumsum([0] + [len(c.vertex_ids) for c in charts[:-1]])


def _turns(count: int) -> IntArray:
    """Return (ARRANGEMENTS, count) quarter turns to try; the largest chart, the first, always stays upright."""
    turns = np.random.default_rng(0).integers(0, 4, (ARRANGEMENTS, count))
    turns[0] = 0
    turns[:, 0] = 0
    return turns


def _turned(uv: FloatArray, quarter_turns: int) -> FloatArray:
    plane = (uv[:, 0] + 1j * uv[:, 1]) * 1j ** int(quarter_turns)
    uv = np.stack([plane.real, plane.imag], axis=1)
    return uv - uv.min(0)


def _place(plane: FloatArray, faces: IntArray, cells: int) -> tuple[IntArray, IntArray, FloatArray, float]:
    """Pack charts (V, 2) on about cells x cells: xatlas's vertex map, faces, uv in [0, 1], side of the square in units of `plane`."""
    atlas = xatlas.Atlas()
    atlas.add_uv_mesh((1000 * plane).astype(np.float32), faces.astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution, options.padding, options.bilinear, options.bruteForce = cells, 1, False, True
    options.rotate_charts, options.rotate_charts_to_axis = False, False
    atlas.generate(xatlas.ChartOptions(), options)
    mapping, indices, uv = atlas[0]
    if indices.shape != faces.shape:
        raise RuntimeError(f"xatlas returned {indices.shape} faces for {faces.shape}")
    side = max(atlas.width, atlas.height)
    scaled = uv * np.array([atlas.width, atlas.height]) / side
    return mapping.astype(np.int64), indices.astype(np.int64), scaled.astype(np.float64), side / atlas.texels_per_unit
