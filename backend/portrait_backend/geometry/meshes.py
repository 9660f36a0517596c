"""Small pure functions on indexed triangle meshes: vertices (V, 3), faces (F, 3), counter-clockwise from outside."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

TAUBIN_SHRINK, TAUBIN_INFLATE = 0.5, -0.53
"""Alternating steps whose pass band leaves the volume in place (Taubin 1995)."""


def face_normals(vertices: Floats, faces: Ints) -> NDArray[np.float64]:
    """Return (F, 3) face normals whose length is twice the face's area."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: Floats, faces: Ints) -> NDArray[np.float64]:
    """Return (V, 3) unit normals, the area-weighted mean of the faces around; +y where a vertex has no face."""
    normals = face_normals(vertices, faces)
    columns = [np.bincount(faces.ravel(), weights=np.repeat(normals[:, k], 3), minlength=len(vertices)) for k in range(3)]
    summed: Floats = np.stack(columns, axis=1)
    return normalised(summed)


def normalised(vectors: Floats) -> NDArray[np.float64]:
    """Return (N, 3) unit vectors; +y in place of null vectors."""
    vectors = vectors.astype(np.float64)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-20, vectors / np.maximum(length, 1e-20), np.array([0.0, 1.0, 0.0]))


def signed_volume(vertices: Floats, faces: Ints) -> float:
    """Return the enclosed volume, positive if the faces wind outward."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def unique_edges(faces: Ints) -> tuple[Ints, Ints]:
    """Return the undirected edges (E, 2), sorted, and how many faces use each (E,)."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    span = int(faces.max()) + 1 if len(faces) else 1
    keys, counts = np.unique(edges[:, 0] * span + edges[:, 1], return_counts=True)
    return np.stack([keys // span, keys % span], axis=1), counts


def is_watertight(faces: Ints) -> bool:
    """Return True if every edge joins exactly two faces that run along it in opposite directions."""
    if not len(faces):
        return False
    span = int(faces.max()) + 1
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    forward, backward = directed[:, 0] * span + directed[:, 1], directed[:, 1] * span + directed[:, 0]
    keys = np.unique(forward)
    return len(keys) == len(forward) and bool(np.isin(backward, keys).all())


def adjacency(faces: Ints, count: int) -> sparse.csr_array:
    """Return the symmetric (count, count) 0/1 vertex adjacency."""
    edges, _ = unique_edges(faces)
    ones = np.ones(2 * len(edges))
    rows, columns = np.concatenate([edges[:, 0], edges[:, 1]]), np.concatenate([edges[:, 1], edges[:, 0]])
    return sparse.csr_array((ones, (rows, columns)), shape=(count, count))


def neighbour_mean(faces: Ints, count: int) -> sparse.csr_array:
    """Return the (count, count) matrix that replaces each vertex value by the mean of its neighbours'."""
    graph = adjacency(faces, count)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(degree, 1)) @ graph)


def taubin_smooth(vertices: Floats, faces: Ints, passes: int, pinned: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return vertices after `passes` shrink-and-inflate steps; `pinned` (V,) bool vertices stay."""
    moved = vertices.astype(np.float64)
    if passes <= 0:
        return moved
    mean = neighbour_mean(faces, len(vertices))
    free = np.ones((len(vertices), 1)) if pinned is None else (~pinned)[:, None].astype(np.float64)
    for _ in range(passes):
        for step in (TAUBIN_SHRINK, TAUBIN_INFLATE):
            moved = moved + step * free * (mean @ moved - moved)
    return moved


def largest_component(vertices: Floats, faces: Ints) -> tuple[NDArray[np.float64], Ints]:
    """Return the connected piece with the most faces, without unused vertices."""
    _, label = connected_components(adjacency(faces, len(vertices)), directed=False)
    face_label = label[faces[:, 0]]
    return compact(vertices, faces[face_label == np.bincount(face_label).argmax()])


def compact(vertices: Floats, faces: Ints) -> tuple[NDArray[np.float64], Ints]:
    """Drop vertices that no face uses."""
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used].astype(np.float64), renumbered.reshape(-1, 3).astype(np.int64)
