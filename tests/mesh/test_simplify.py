"""Face budget on meshes whose sheets come to touch."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import trimesh

from portrait_backend.mesh.collapse import collapse_edges
from portrait_backend.mesh.simplify import separate_touching, simplify


def two_touching_tetrahedra() -> tuple[np.ndarray, np.ndarray]:
    """Two closed tetrahedra that share the edge 0-1, on opposite sides of it."""
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0.5], [1, 1, 0.5], [-1, 0, 0.5], [-1, -1, 0.5]], float)
    faces = []
    for corners in ([0, 1, 2, 3], [0, 1, 4, 5]):
        hull = trimesh.Trimesh(vertices[corners], [[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]], process=False)
        if hull.volume < 0:
            hull.invert()
        faces.append(np.array(corners)[hull.faces])
    return vertices, np.concatenate(faces)


def test_sheets_that_touch_at_an_edge_are_separated() -> None:
    vertices, faces = two_touching_tetrahedra()
    before = trimesh.Trimesh(vertices, faces, process=False)
    assert not before.is_watertight
    moved, separate = separate_touching(vertices, faces)
    after = trimesh.Trimesh(moved, separate, process=False)
    assert after.is_watertight and after.is_winding_consistent
    assert len(separate) == len(faces) + 2
    assert np.isclose(after.volume, before.volume) and np.isclose(after.area, before.area)
    np.testing.assert_array_equal(moved[: len(vertices)], vertices)


def test_the_budget_is_met_and_the_mesh_stays_closed() -> None:
    ball = trimesh.creation.icosphere(5, 0.4)
    vertices, faces = simplify(np.asarray(ball.vertices, float), np.asarray(ball.faces, np.int64), 3000)
    assert len(faces) <= 3000
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_thin_handles_meet_the_budget_closed_and_stay_handles() -> None:
    wire = trimesh.creation.torus(0.4, 0.02, major_sections=256, minor_sections=24)
    for budget in (2000, 400):
        vertices, faces = simplify(np.asarray(wire.vertices, float), np.asarray(wire.faces, np.int64), budget)
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        assert len(faces) <= budget
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 0


def test_a_budget_below_what_the_topology_needs_is_exceeded_and_said(caplog: pytest.LogCaptureFixture) -> None:
    wire = trimesh.creation.torus(0.4, 0.1, major_sections=24, minor_sections=12)
    with caplog.at_level(logging.WARNING):
        vertices, faces = simplify(np.asarray(wire.vertices, float), np.asarray(wire.faces, np.int64), 4)
    assert 14 <= len(faces) < 200  # no torus has fewer than 14 triangles
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    assert "budget of 4 is exceeded" in caplog.text


def test_collapse_keeps_a_ball_round_and_a_box_sharp() -> None:
    ball = trimesh.creation.icosphere(5, 0.4)
    vertices, faces = collapse_edges(np.asarray(ball.vertices, float), np.asarray(ball.faces, np.int64), 2000)
    assert len(faces) <= 2000
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.4).max() < 0.004
    box = trimesh.creation.box((0.6, 0.4, 0.5)).subdivide().subdivide().subdivide().subdivide()
    box.merge_vertices()
    vertices, faces = collapse_edges(np.asarray(box.vertices, float), np.asarray(box.faces, np.int64), 60)
    reduced = trimesh.Trimesh(vertices, faces, process=False)
    assert len(faces) <= 60 and reduced.is_watertight
    assert np.isclose(reduced.volume, 0.6 * 0.4 * 0.5, rtol=1e-3)


def test_collapse_turns_no_face_over() -> None:
    """On a plate whose faces all look up or down before, they still do after."""
    plate = trimesh.creation.box((1, 1, 0.02)).subdivide().subdivide().subdivide().subdivide()
    plate.merge_vertices()
    vertices, faces = collapse_edges(np.asarray(plate.vertices, float), np.asarray(plate.faces, np.int64), 200)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and len(faces) <= 200
    assert np.isclose(mesh.volume, 0.02, rtol=1e-3)
