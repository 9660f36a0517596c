"""Flatten one disk-shaped chart: conformal first (LSCM), then as rigid as possible (ARAP) for even texel density.

References: Levy et al. 2002, "Least Squares Conformal Maps"; Liu et al. 2008, "A Local/Global Approach to Mesh
Parameterization".
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from portrait_backend.geometry.meshes import face_normals

FloatArray = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
IntArray = NDArray[np.int64]

ARAP_ITERATIONS = (1, 3, 10)
"""States of the descent from the conformal map that are tried, the last first.

The more iterations, the more even the texels; the fewer, the less a chart winds over itself.
"""
MOST_FLIPS = 0.003
"""Share of flipped faces above which untangling isn't tried: they get charts of their own."""
UNTANGLE_ATTEMPTS = 8
LEAST_COTANGENT, MOST_COTANGENT = 0.02, 20.0
"""Bounds of the edge weights: obtuse corners would otherwise pull the wrong way and flip faces."""


def flatten(vertices: FloatArray, faces: IntArray, relaxed: FloatArray) -> Iterator[FloatArray]:
    """Yield layouts uv (V, 2) of a disk-shaped chart (V, 3), (F, 3) in units of `vertices`, the least distorted first.

    relaxed (V, 3): the vertices on a smoothed surface, whose layouts come second: they know nothing of folds and
    pits. World +y points to +v where it can. A layout may hold flipped faces or wind over itself.
    """
    area = 0.5 * np.linalg.norm(face_normals(vertices, faces), axis=1).sum()
    for plane in _states(vertices, faces, relaxed):
        plane = _untangled(plane, faces)
        if np.isfinite(plane).all():
            yield _upright(plane * np.sqrt(area / max(signed_areas(plane, faces).sum(), 1e-6 * area)), vertices)


def _states(vertices: FloatArray, faces: IntArray, relaxed: FloatArray) -> Iterator[ComplexArray]:
    for surface in (vertices, relaxed):
        triangles = _local_triangles(surface, faces)
        yield from reversed(_arap(_lscm(surface, faces, triangles), faces, triangles))


def _untangled(plane: ComplexArray, faces: IntArray) -> ComplexArray:
    """Return the plane with few flipped faces relaxed: their vertices, and a growing ring around, move to their neighbours' mean.

    Vertices on the rim move only when moving the inner ones was not enough.
    """
    count = len(plane)
    if (signed_areas(plane, faces) <= 0).sum() > MOST_FLIPS * len(faces):
        return plane
    tails, heads = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    directed = sparse.csr_array((np.ones(len(tails)), (tails, heads)), shape=(count, count))
    graph = sparse.csr_array(directed + directed.T)
    rim = np.asarray((graph == 1).sum(axis=1)).ravel() > 0
    graph.data[:] = 1
    mean = sparse.csr_array(sparse.diags_array(1 / np.maximum(np.asarray(graph.sum(axis=1)).ravel(), 1)) @ graph)
    moved = plane.copy()
    for attempt in range(UNTANGLE_ATTEMPTS):
        flipped = signed_areas(moved, faces) <= 0
        if not flipped.any():
            break
        region = np.zeros(count)
        region[faces[flipped]] = 1
        for _ in range(attempt // 2):
            region = graph @ region + region
        inner = np.flatnonzero((region > 0) & (~rim | (attempt >= UNTANGLE_ATTEMPTS // 2)))
        rows = mean[inner]
        for _ in range(8 * (attempt // 2 + 1)):
            moved[inner] = rows @ moved
    return moved


def signed_areas(uv: FloatArray | ComplexArray, faces: IntArray) -> FloatArray:
    """Return (F,) signed areas in the plane, positive if counter-clockwise; uv (V, 2) or (V,) complex."""
    plane = uv if np.iscomplexobj(uv) else uv[:, 0] + 1j * uv[:, 1]
    a, b, c = (plane[faces[:, i]] for i in range(3))
    return 0.5 * (np.conj(b - a) * (c - a)).imag


def _local_triangles(vertices: FloatArray, faces: IntArray) -> ComplexArray:
    """Return (F, 3) complex: each triangle laid into its own plane without distortion."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    length = np.maximum(np.linalg.norm(b - a, axis=1), 1e-12)
    x = ((c - a) * (b - a)).sum(1) / length
    y = np.maximum(np.linalg.norm(face_normals(vertices, faces), axis=1) / length, 1e-3 * length)
    return np.stack([np.zeros_like(x) + 0j, length + 0j, x + 1j * y], axis=1)


def _lscm(vertices: FloatArray, faces: IntArray, triangles: ComplexArray) -> ComplexArray:
    count = len(vertices)
    area = 0.5 * triangles[:, 1].real * triangles[:, 2].imag
    weights = (np.roll(triangles, -2, axis=1) - np.roll(triangles, -1, axis=1)) / np.sqrt(2 * area)[:, None]
    rows = np.repeat(np.arange(len(faces)), 3)
    system = sparse.csc_array((weights.ravel(), (rows, faces.ravel())), shape=(len(faces), count))
    spread = vertices - vertices.mean(0)
    along = spread @ np.linalg.svd(spread[:: max(1, count // 2000)], full_matrices=False)[2][0]
    pins = np.array([along.argmin(), along.argmax()])
    free = np.setdiff1d(np.arange(count), pins)
    plane = np.zeros(count, dtype=np.complex128)
    plane[pins[1]] = np.linalg.norm(vertices[pins[1]] - vertices[pins[0]])
    if len(free):
        inner = system[:, free]
        normal = sparse.csc_array(inner.conj().T @ inner)
        normal = normal + 1e-12 * float(normal.diagonal().real.mean()) * sparse.eye_array(len(free), format="csc")
        plane[free] = splu(sparse.csc_matrix(normal), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).solve(
            -(inner.conj().T @ (system @ plane))
        )
    flat_area = signed_areas(plane, faces).sum()
    return plane * np.sqrt(area.sum() / max(abs(flat_area), 1e-12))


def _arap(start: ComplexArray, faces: IntArray, triangles: ComplexArray) -> list[ComplexArray]:
    count = len(start)
    edges = np.roll(triangles, -2, axis=1) - np.roll(triangles, -1, axis=1)
    before, after = np.roll(edges, -1, axis=1), np.roll(edges, -2, axis=1)
    corner = -np.conj(before) * after
    cotangent = np.clip(corner.real / np.maximum(np.abs(corner.imag), 1e-20), LEAST_COTANGENT, MOST_COTANGENT)
    tail, head = np.roll(faces, -1, axis=1), np.roll(faces, -2, axis=1)
    i, j, w = tail.ravel(), head.ravel(), cotangent.ravel()
    laplacian = sparse.csc_array(
        (np.concatenate([w, w, -w, -w]), (np.concatenate([i, j, i, j]), np.concatenate([i, j, j, i]))), shape=(count, count)
    )
    solver = splu(sparse.csc_matrix(laplacian[1:, 1:]), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    plane = start.copy()
    states = []
    for iteration in range(1, max(ARAP_ITERATIONS) + 1):
        turn = (cotangent * (plane[head] - plane[tail]) * np.conj(edges)).sum(1)
        turn /= np.maximum(np.abs(turn), 1e-20)
        pull = (cotangent * edges * turn[:, None]).ravel()
        right = np.zeros(count, dtype=np.complex128)
        right.real = np.bincount(j, pull.real, count) - np.bincount(i, pull.real, count)
        right.imag = np.bincount(j, pull.imag, count) - np.bincount(i, pull.imag, count)
        plane[0] = 0
        plane[1:] = solver.solve(right[1:].real) + 1j * solver.solve(right[1:].imag)
        if iteration in ARAP_ITERATIONS:
            states.append(plane.copy())
    return states


def _upright(plane: ComplexArray, vertices: FloatArray) -> FloatArray:
    centred = plane - plane.mean()
    up = (centred * (vertices[:, 1] - vertices[:, 1].mean())).sum()
    if np.abs(up) > 1e-9 * np.abs(centred).sum():
        centred = centred * 1j * np.conj(up) / np.abs(up)
    return np.stack([centred.real, centred.imag], axis=1)
