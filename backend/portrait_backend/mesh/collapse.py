"""Quadric edge collapse that keeps a closed mesh closed, whatever the budget.

Garland and Heckbert's error (1997); an edge is only collapsed if its ends have exactly two neighbours in common (the link
condition, Dey et al. 1999: the topology stays) and no face turns over. Each pass collapses edges that don't touch each other,
the cheapest first. Slower than `fast_simplification`, which checks neither and may tear thin parts open.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from portrait_backend.geometry.meshes import compact, face_normals, unique_edges

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CHEAPEST = 0.35
"""Share of the edges that a pass may look at: dear ones wait until their neighbours are gone."""
ROUND = 1e-4
"""Weight of the edge's middle in the best position, relative to the quadric: decides where the surface is flat."""
TURNED = 0.2
"""Least cosine between a face's normals before and after."""


def collapse_edges(vertices: FloatArray, faces: IntArray, budget: int) -> tuple[FloatArray, IntArray]:
    """Return a closed mesh (V, 3), (F, 3) reduced to at most `budget` faces, or to the fewest that keep topology and orientation."""
    while len(faces) > budget:
        edges, _ = unique_edges(faces)
        cost, position = _best_positions(vertices, _quadrics(vertices, faces), edges)
        order = np.argsort(cost, kind="stable")
        wanted = (len(faces) - budget + 1) // 2
        for looked_at in (max(int(CHEAPEST * len(order)), 100), len(order)):
            start, around = _faces_around(faces, len(vertices))
            chosen = _choose(order[:looked_at], edges, position, vertices, faces, start, around, wanted)
            if len(chosen):
                break
        else:
            return vertices, faces
        target = np.arange(len(vertices))
        target[edges[chosen, 1]] = edges[chosen, 0]
        vertices = vertices.copy()
        vertices[edges[chosen, 0]] = position[chosen]
        faces = target[faces]
        faces = faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])]
        vertices, faces = compact(vertices, faces)
    return vertices, faces


def _quadrics(vertices: FloatArray, faces: IntArray) -> FloatArray:
    """Return per vertex the area-weighted sum (V, 4, 4) of the outer products of its faces' planes."""
    normals = face_normals(vertices, faces)
    area = np.linalg.norm(normals, axis=1)
    unit = normals / np.maximum(area, 1e-30)[:, None]
    plane = np.concatenate([unit, -(unit * vertices[faces[:, 0]]).sum(1, keepdims=True)], axis=1)
    products = area[:, None, None] * plane[:, :, None] * plane[:, None, :]
    corner = faces.ravel()
    columns = [np.bincount(corner, weights=np.repeat(products[:, i, j], 3), minlength=len(vertices)) for i in range(4) for j in range(4)]
    return np.stack(columns, axis=1).astype(np.float64).reshape(-1, 4, 4)


def _best_positions(vertices: FloatArray, quadrics: FloatArray, edges: IntArray) -> tuple[FloatArray, FloatArray]:
    """Return the cost (E,) of collapsing each edge and the position (E, 3) of least cost, near its middle where that is open."""
    q = quadrics[edges[:, 0]] + quadrics[edges[:, 1]]
    middle = vertices[edges].mean(1)
    a = q[:, :3, :3]
    spare = ROUND * np.trace(a, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-18 * np.eye(3)
    right = -(q[:, :3, 3] + (a @ middle[:, :, None])[:, :, 0])
    position = middle + np.linalg.solve(a + spare, right[:, :, None])[:, :, 0]
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    far = np.linalg.norm(position - middle, axis=1) > 2 * length
    position[far] = middle[far]
    position = np.clip(position, vertices.min(0), vertices.max(0))
    at = np.concatenate([position, np.ones((len(position), 1))], axis=1)
    # the second term prefers short edges where everything is flat
    return np.einsum("ei,eij,ej->e", at, q, at) + 1e-4 * np.trace(a, axis1=1, axis2=2) * length**2, position


def _faces_around(faces: IntArray, count: int) -> tuple[IntArray, IntArray]:
    """Return for each vertex where its faces start (V + 1,) in the list (3 F,) of face numbers."""
    order = np.argsort(faces.ravel(), kind="stable")
    start = np.zeros(count + 1, np.int64)
    start[1:] = np.cumsum(np.bincount(faces.ravel(), minlength=count))
    return start, (order // 3).astype(np.int64)


@njit(cache=True)
def _choose(
    order: Any, edges: Any, position: Any, vertices: Any, faces: Any, start: Any, around: Any, most: int
) -> Any:  # pragma: no cover - compiled
    """Return the edges, at most `most`, to collapse together, in the given order."""
    count = len(vertices)
    busy = np.zeros(count, np.bool_)
    seen = np.full(count, -1, np.int64)
    chosen = np.empty(min(most, len(order)), np.int64)
    found = 0
    for e in order:
        if found >= len(chosen):
            break
        u, v = edges[e, 0], edges[e, 1]
        if busy[u] or busy[v]:
            continue
        for k in range(start[u], start[u + 1]):
            for c in range(3):
                seen[faces[around[k], c]] = e
        common = -2  # u and v themselves are corners of the faces around v that hold u
        for k in range(start[v], start[v + 1]):
            for c in range(3):
                w = faces[around[k], c]
                if seen[w] == e:
                    common += 1
                    seen[w] = -1 - count
        if (
            common != 2
            or _turns(u, v, position[e], vertices, faces, start, around)
            or _turns(v, u, position[e], vertices, faces, start, around)
        ):
            continue
        for end in (u, v):
            for k in range(start[end], start[end + 1]):
                for c in range(3):
                    busy[faces[around[k], c]] = True
        chosen[found] = e
        found += 1
    return chosen[:found]


@njit(cache=True)
def _turns(moved: int, other: int, place: Any, vertices: Any, faces: Any, start: Any, around: Any) -> bool:  # pragma: no cover - compiled
    """Return whether a face around `moved`, those with `other` apart, turns over when the vertex moves to `place`."""
    for k in range(start[moved], start[moved + 1]):
        f = faces[around[k]]
        if f[0] == other or f[1] == other or f[2] == other:
            continue
        a = place if f[0] == moved else vertices[f[0]]
        b = place if f[1] == moved else vertices[f[1]]
        c = place if f[2] == moved else vertices[f[2]]
        before = np.cross(vertices[f[1]] - vertices[f[0]], vertices[f[2]] - vertices[f[0]])
        after = np.cross(b - a, c - a)
        lengths = np.sqrt((before * before).sum() * (after * after).sum())
        if (before * after).sum() <= TURNED * lengths:
            return True
    return False
