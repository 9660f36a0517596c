"""Reduce a closed mesh to a face budget by quadric edge collapse, without opening or folding it."""

from __future__ import annotations

import logging

import fast_simplification
import numpy as np
from numpy.typing import NDArray

from portrait_backend.geometry.meshes import compact, face_normals, is_watertight
from portrait_backend.mesh.collapse import collapse_edges

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

AGGRESSIVENESS = (5, 3, 1)
"""Collapse schedules from quick to careful; the next is tried when one opens the mesh."""
UNITS_SCALE = 1000.0
"""The library's tolerances are absolute: it works on head units x 1000."""
FOLD_PASSES = 20
SPARE = 16
"""Faces kept back from the budget for edges that have to be separated."""

log = logging.getLogger(__name__)


def simplify(vertices: FloatArray, faces: IntArray, budget: int) -> tuple[FloatArray, IntArray]:
    """Return the mesh with at most `budget` faces (0 or more than there are: unchanged).

    vertices (V, 3), faces (F, 3) closed. The result is closed too: edges at which a collapse made sheets touch are
    separated, then gentler schedules are tried, at last the slower collapse that can't open a mesh. A budget that even
    this doesn't meet (no closed mesh has fewer than four faces, a torus needs more) is logged as a warning.
    """
    if budget <= 0 or len(faces) <= budget:
        return vertices, faces
    for aggressiveness in AGGRESSIVENESS:
        result = _collapse(vertices, faces, budget, aggressiveness)
        if result is not None:
            return result
    reduced, kept = collapse_edges(vertices, faces, budget)
    if len(kept) > budget:
        log.warning("Fewer than %d faces would open the mesh: the budget of %d is exceeded.", len(kept), budget)
    return reduced, kept


def _collapse(vertices: FloatArray, faces: IntArray, goal: int, aggressiveness: int) -> tuple[FloatArray, IntArray] | None:
    """Return the mesh of at most `goal` faces, closed and without folds; None if the library's collapse opens it."""
    points, triangles = fast_simplification.simplify(
        (vertices * UNITS_SCALE).astype(np.float64), faces.astype(np.int32), target_count=max(goal - SPARE, 4), agg=aggressiveness
    )
    reduced, kept = compact(points.astype(np.float64) / UNITS_SCALE, triangles.astype(np.int64))
    reduced, kept = separate_touching(np.clip(reduced, vertices.min(0), vertices.max(0)), kept)
    if len(kept) > goal or not is_watertight(kept):
        return None
    return unfold(reduced, kept), kept


def separate_touching(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    """Give one of the two sheets that meet at an edge of four faces an edge of its own, by a vertex in its middle.

    Two faces more per such edge, nothing moves; edges with any other number of faces stay as they are.
    """
    while True:
        edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        unique, inverse, count = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
        touching = np.flatnonzero(count == 4)
        if not len(touching):
            return vertices, faces
        a, b = unique[touching[0]]
        around = np.flatnonzero(inverse.reshape(-1, 3).reshape(-1) == touching[0]) // 3
        forward = [f for f in around if any(faces[f, i] == a and faces[f, (i + 1) % 3] == b for i in range(3))]
        backward = [f for f in around if f not in forward]
        if len(forward) != 2:
            return vertices, faces
        normals = face_normals(vertices, faces[[forward[0], *backward]])
        partner = backward[int(np.argmax(normals[1:] @ normals[0]))]
        middle = len(vertices)
        vertices = np.concatenate([vertices, (vertices[a] + vertices[b])[None] / 2])
        halves = []
        for face in (forward[0], partner):
            for end in (a, b):
                halves.append(np.where(faces[face] == end, middle, faces[face]))
        faces = np.concatenate([np.delete(faces, [forward[0], partner], axis=0), np.array(halves)])


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
