"""Face budget on meshes whose sheets come to touch."""

from __future__ import annotations

import numpy as np
import trimesh

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


def test_a_budget_that_would_open_the_mesh_is_exceeded_rather_than_the_mesh_opened() -> None:
    wire = trimesh.creation.torus(0.4, 0.02, major_sections=256, minor_sections=24)
    vertices, faces = simplify(np.asarray(wire.vertices, float), np.asarray(wire.faces, np.int64), 400)
    assert len(faces) < len(wire.faces) / 2, "a larger budget is tried before giving up"
    assert trimesh.Trimesh(vertices, faces, process=False).is_watertight
