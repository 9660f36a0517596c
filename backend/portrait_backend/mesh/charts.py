"""Cut a head into few charts: face, sides, back, crown, neck cut.

The seams lie where a head artist would put them: the face and its surroundings are one chart, seams run
behind the temples.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from portrait_backend.geometry.meshes import face_normals, neighbour_mean, normalised, vertex_normals

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DIRECTIONS = np.array([[0, 0.1, 1.0], [1, 0, -0.35], [-1, 0, -0.35], [0, 0, -1.0], [0, 1.0, -0.3], [0, -1.0, 0]])
"""Face, left, right, back, crown, below."""
BIAS = np.array([0.35, 0.0, 0.0, 0.0, 0.05, -0.1])
"""The face chart reaches farther round than the others."""
FACE_CHART, CUT_CHART = 0, len(DIRECTIONS)
SMOOTHING_LENGTH = 0.07
"""Head units over which the normals that decide the chart are averaged: features smaller than an ear don't cut charts."""
RELAXING_LENGTH = 0.04
MOST_PASSES = 300
SMALLEST_CHART = 0.01
"""Charts below this share of all faces are merged into a neighbour."""


def segment(vertices: FloatArray, faces: IntArray) -> IntArray:
    """Return (F,) labels: the index into DIRECTIONS of each face's chart, CUT_CHART for the cut of the neck.

    vertices (V, 3) head units, faces (F, 3) closed.
    """
    mean = neighbour_mean(faces, len(vertices))
    smooth = vertex_normals(relax(vertices, faces), faces)
    for _ in range(passes_for(SMOOTHING_LENGTH, vertices, faces)):
        smooth = mean @ smooth
    centred = normalised(vertices - 0.5 * (vertices.min(0) + vertices.max(0)))
    guide = normalised(smooth) + 0.5 * centred
    score = guide @ normalised(DIRECTIONS).T + BIAS
    for _ in range(10):
        score = mean @ score
    labels = score[faces].mean(1).argmax(1)
    cap = cut_faces(vertices, faces)
    labels = straighten(labels, faces)
    labels[cap] = CUT_CHART
    return merge_small(labels, faces, max(8, int(SMALLEST_CHART * len(faces))), keep=cap)


def relax(vertices: FloatArray, faces: IntArray) -> FloatArray:
    """Return vertices (V, 3) of the smoothed surface, on which folds and pits are gone."""
    mean = neighbour_mean(faces, len(vertices))
    for _ in range(passes_for(RELAXING_LENGTH, vertices, faces)):
        vertices = mean @ vertices
    return vertices


def passes_for(length: float, vertices: FloatArray, faces: IntArray) -> int:
    """Return how many times to average neighbours for a smoothing over `length` (head units)."""
    edge = np.linalg.norm(vertices[faces[:, 0]] - vertices[faces[:, 1]], axis=1).mean()
    return min(MOST_PASSES, int(2 * (length / edge) ** 2) + 1)


def cut_faces(vertices: FloatArray, faces: IntArray) -> NDArray[np.bool_]:
    """Return (F,) bool: the faces of the flat cut where the neck leaves the box (all at the lowest height)."""
    low = (vertices[faces][:, :, 1] < vertices[:, 1].min() + 1e-3).all(1)
    normals = face_normals(vertices, faces)
    return np.asarray(low & (normals[:, 1] < -0.9 * np.linalg.norm(normals, axis=1)))


def straighten(labels: IntArray, faces: IntArray, passes: int = 8) -> IntArray:
    """Return labels after `passes` majority votes among each face and its neighbours: seams without teeth."""
    pairs = dual_graph(faces)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    graph = sparse.csr_array((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(len(faces), len(faces)))
    reach = graph @ graph + graph
    reach.data[:] = 1.0
    for _ in range(passes):
        labels = (reach @ np.eye(len(DIRECTIONS))[labels] + 0.5 * np.eye(len(DIRECTIONS))[labels]).argmax(1)
    return labels


def dual_graph(faces: IntArray) -> IntArray:
    """Return (E, 2) pairs of faces that share an edge."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    keys = edges[:, 0] * (int(faces.max()) + 1) + edges[:, 1]
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    return np.stack([order[:-1][same] // 3, order[1:][same] // 3], axis=1)


def components(labels: IntArray, pairs: IntArray) -> IntArray:
    """Return (F,) piece numbers: faces with equal label that hang together by edges, numbered from 0."""
    inner = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
    graph = sparse.csr_array((np.ones(len(inner)), (inner[:, 0], inner[:, 1])), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def merge_small(labels: IntArray, faces: IntArray, least: int, keep: NDArray[np.bool_]) -> IntArray:
    """Return labels in which pieces of fewer than `least` faces took the label of the neighbour with the longest common border."""
    pairs = dual_graph(faces)
    for _ in range(20):
        piece = components(labels, pairs)
        size = np.bincount(piece)
        small = (size < least) & ~np.isin(np.arange(len(size)), piece[keep])
        border = pairs[piece[pairs[:, 0]] != piece[pairs[:, 1]]]
        border = np.concatenate([border, border[:, ::-1]])
        border = border[small[piece[border[:, 0]]]]
        if not len(border):
            break
        votes = np.zeros((len(size), int(labels.max()) + 1))
        np.add.at(votes, (piece[border[:, 0]], labels[border[:, 1]]), 1)
        votes[:, labels[keep]] = 0
        chosen = np.where(small & (votes.sum(1) > 0), votes.argmax(1), -1)
        labels = np.where(chosen[piece] >= 0, chosen[piece], labels)
    return labels


def halve(vertices: FloatArray, faces: IntArray) -> NDArray[np.bool_]:
    """Return (F,) bool: the faces on one side of the plane through the median, across the longest axis."""
    centres = vertices[faces].mean(1)
    spread = centres - centres.mean(0)
    axis = np.linalg.svd(spread[:: max(1, len(faces) // 2000)], full_matrices=False)[2][0]
    along = spread @ axis
    side = along > np.median(along)
    if side.all() or not side.any():
        side = np.arange(len(faces)) % 2 == 0
    return side
