"""Reduce a closed mesh to a face budget by quadric edge collapse, without opening or folding it."""

from __future__ import annotations

import logging

import fast_simplification
import numpy as np
from numpy.typing import NDArray

from portrait_backend.geometry.meshes import compact, face_normals, is_watertight

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

AGGRESSIVENESS = (5, 3, 1)
"""Collapse schedules from quick to careful; the next is tried when one opens the mesh."""
UNITS_SCALE = 1000.0
"""The library's tolerances are absolute: it works on head units x 1000."""
FOLD_PASSES = 20

log = logging.getLogger(__name__)


def simplify(vertices: FloatArray, faces: IntArray, budget: int) -> tuple[FloatArray, IntArray]:
    """Return the mesh with about `budget` faces at most (0 or more than there are: unchanged).

    vertices (V, 3), faces (F, 3) closed. The result is closed too: if the collapse opens the mesh, gentler
    schedules are tried, and when all fail the mesh stays as it is and a warning is logged.
    """
    if budget <= 0 or len(faces) <= budget:
        return vertices, faces
    for aggressiveness in AGGRESSIVENESS:
        points, triangles = fast_simplification.simplify(
            (vertices * UNITS_SCALE).astype(np.float64), faces.astype(np.int32), target_count=budget, agg=aggressiveness
        )
        reduced, kept = compact(points.astype(np.float64) / UNITS_SCALE, triangles.astype(np.int64))
        reduced = np.clip(reduced, vertices.min(0), vertices.max(0))
        if is_watertight(kept):
            return unfold(reduced, kept), kept
    log.warning("Mesh simplification to %d faces would open the mesh: keeping %d faces.", budget, len(faces))
    return vertices, faces


def unfold(vertices: FloatArray, faces: IntArray) -> FloatArray:
    """Return vertices with folded-over faces relaxed: their corners move to the mean of their neighbours.

    A face counts as folded if it points away from each of the faces across its edges.
    """
    opposite = _faces_across(faces)
    moved = vertices.copy()
    for _ in range(FOLD_PASSES):
        normals = face_normals(moved, faces)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
        folded = ((normals[:, None] * normals[opposite]).sum(2) < -0.5).sum(1) >= 2
        if not folded.any():
            break
        corners = np.unique(faces[folded])
        total, count = np.zeros_like(moved), np.zeros(len(moved))
        for i, j in ((0, 1), (1, 2), (2, 0)):
            for a, b in ((i, j), (j, i)):
                np.add.at(total, faces[:, a], moved[faces[:, b]])
                np.add.at(count, faces[:, a], 1)
        moved[corners] = total[corners] / count[corners, None]
    return moved


def _faces_across(faces: IntArray) -> IntArray:
    """Return (F, 3) indices of the faces across the edges 01, 12, 20 of a closed mesh."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    low, high = edges.min(1), edges.max(1)
    order = np.lexsort((high, low))
    partner = np.empty(len(edges), dtype=np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return (partner // 3).reshape(-1, 3)
