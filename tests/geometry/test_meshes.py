"""Mesh measures against a cube and an octahedron."""

from __future__ import annotations

import numpy as np

from portrait_backend.geometry.meshes import (
    compact,
    is_watertight,
    largest_component,
    signed_volume,
    taubin_smooth,
    unique_edges,
    vertex_normals,
)

POINTS = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


def test_octahedron() -> None:
    assert np.isclose(signed_volume(POINTS, FACES), 4 / 3)
    assert np.isclose(signed_volume(POINTS, FACES[:, ::-1]), -4 / 3)
    assert np.allclose(vertex_normals(POINTS, FACES), POINTS)
    edges, counts = unique_edges(FACES)
    assert len(edges) == 12
    assert (counts == 2).all()


def test_watertight_needs_every_face_and_one_winding() -> None:
    assert is_watertight(FACES)
    assert not is_watertight(FACES[1:])
    turned = FACES.copy()
    turned[0] = turned[0, ::-1]
    assert not is_watertight(turned)


def test_largest_component_and_compact_renumber() -> None:
    triangle = np.array([[6, 7, 8]])
    points = np.concatenate([POINTS, POINTS[:3] + 5])
    kept, faces = largest_component(points[::-1], 8 - np.concatenate([triangle, FACES]))
    assert len(kept) == 6
    assert np.isclose(signed_volume(kept, faces), 4 / 3)
    kept, faces = compact(points, triangle)
    assert np.allclose(kept[faces[0]], POINTS[:3] + 5)


def test_taubin_flattens_noise_keeps_volume_and_pins() -> None:
    n = 24
    u, v = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    angle = 2 * np.pi / n
    torus = np.stack(
        [(2 + np.cos(v * angle)) * np.cos(u * angle), np.sin(v * angle), (2 + np.cos(v * angle)) * np.sin(u * angle)], -1
    ).reshape(-1, 3)
    a, b, c, d = (((u + i) % n) * n + (v + j) % n for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    noisy = torus + np.random.default_rng(0).normal(0, 0.05, torus.shape)
    pinned = np.zeros(len(torus), dtype=bool)
    pinned[:50] = True
    smooth = taubin_smooth(noisy, faces, 5, pinned)
    assert np.array_equal(smooth[:50], noisy[:50])
    assert np.abs(smooth - torus)[50:].mean() < 0.7 * np.abs(noisy - torus)[50:].mean()
    assert abs(signed_volume(smooth, faces) / signed_volume(torus, faces) - 1) < 0.02
