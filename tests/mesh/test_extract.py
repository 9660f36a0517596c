"""Extraction and simplification against spheres and the analytic head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from portrait_backend.context import Cancelled, Context, cpu_context
from portrait_backend.geometry.meshes import face_normals, is_watertight, signed_volume
from portrait_backend.mesh import simplify as simplify_module
from portrait_backend.mesh.extract import extract_mesh, keep_one_solid
from portrait_backend.mesh.lattice import STRIDE, compress_density, sample_lattice
from portrait_backend.mesh.simplify import simplify, unfold
from portrait_shared.errors import PortraitDiffusionError
from tests.mesh.fakes import HeadField, SphereField


@pytest.mark.parametrize(("steepness", "cells"), [(60.0, 0.05), (200.0, 0.05), (3000.0, 0.4)])
def test_sphere_volume_area_and_position(steepness: float, cells: float) -> None:
    """Within a twentieth of a cell; where the density jumps inside a cell, still without half-cell stair steps."""
    vertices, faces = extract_mesh(SphereField(0.3, steepness), 64, cpu_context())
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.01)
    assert mesh.area == pytest.approx(4 * np.pi * 0.3**2, rel=0.01)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.3).max() < cells / 64


def test_the_field_says_at_which_level_it_is_cut() -> None:
    """Log-odds of -1 lie 1 / 60 farther out where they fall by 60 a unit."""
    field = SphereField(0.3, 60.0)
    field.mesh_level = -1.0
    vertices, _ = extract_mesh(field, 64, cpu_context())
    assert np.linalg.norm(vertices, axis=1) == pytest.approx(0.3 + 1 / 60, abs=0.001)


def test_volume_smaller_than_the_coarse_cells_apart_is_followed_along_the_surface() -> None:
    """A thin bar that the coarse lattice misses hangs on a ball that it sees."""

    class Lollipop(SphereField):
        def distance(self, points: torch.Tensor) -> torch.Tensor:
            ball = (points - torch.tensor([0.0, 0.2, 0.0])).norm(dim=-1) - 0.2
            bar = torch.maximum((points[:, [0, 2]] - 0.5 / 64 * 2).norm(dim=-1) - 0.02, (points[:, 1] + 0.15).abs() - 0.3)
            return torch.minimum(ball, bar)

    vertices, _ = extract_mesh(Lollipop(), 64, cpu_context(), smoothing=0)
    assert vertices[:, 1].min() == pytest.approx(-0.45, abs=0.01)


def test_lattice_holds_exact_values_near_the_surface_only() -> None:
    class Counting(HeadField):
        count = 0

        def density(self, points: torch.Tensor) -> torch.Tensor:
            self.count += len(points)
            return super().density(points)

    field = Counting(floater=False)
    volume = sample_lattice(field, 94, cpu_context())
    side = 96 + 1
    assert volume.shape == (side, side, side)
    assert STRIDE == 4
    assert field.count < 0.35 * side**3
    axis = torch.linspace(-0.5, 0.5, side)
    exact = compress_density(HeadField(floater=False).density(torch.cartesian_prod(axis, axis, axis)), 125.0).reshape(side, side, side)
    near = exact.abs() < 2
    assert int(near.sum()) > 5000
    assert torch.equal(volume[near], exact[near])
    assert ((volume > 0) == (exact > 0)).all()


def test_head_is_one_closed_piece_without_floater_and_cavity() -> None:
    field = HeadField(floater=True, cavity=True)
    vertices, faces = extract_mesh(field, 96, cpu_context())
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.body_count == 1
    assert vertices[:, 2].max() == pytest.approx(0.34, abs=0.01)  # the nose; the floater reaches 0.42
    solid = extract_mesh(HeadField(floater=False, cavity=False), 96, cpu_context())
    assert signed_volume(vertices, faces) == pytest.approx(signed_volume(*solid), rel=1e-3)
    assert (np.linalg.norm(vertices - [0, 0.1, -0.05], axis=1) > 0.1).all()


def test_neck_is_closed_by_a_flat_cap_on_the_box() -> None:
    vertices, faces = extract_mesh(HeadField(), 96, cpu_context())
    low = vertices[:, 1] < -0.5 + 0.5 / 96
    assert np.array_equal(vertices[low, 1], np.full(low.sum(), -0.5))
    cap = (vertices[faces][:, :, 1] == -0.5).all(1)
    area = -0.5 * face_normals(vertices, faces[cap])[:, 1]
    assert (area > 0).all()
    assert area.sum() == pytest.approx(np.pi * 0.14**2, rel=0.02)


def test_cavity_that_opens_only_through_the_cut_is_filled() -> None:
    n = 24
    volume = np.full((n, n, n), -3.0, dtype=np.float32)
    volume[4:20, :18, 4:20] = 3.0
    volume[8:16, :12, 8:16] = -3.0
    solid = keep_one_solid(volume) > 0
    assert solid.sum() == 16 * 18 * 16


def test_empty_field_is_an_error_with_a_hint() -> None:
    with pytest.raises(PortraitDiffusionError) as error:
        extract_mesh(SphereField(0.02), 48, cpu_context())
    assert error.value.code == "empty-mesh"


def test_extraction_can_be_cancelled() -> None:
    context = Context(torch.device("cpu"), torch.float32, torch.Generator(), cancelled=lambda: True)
    with pytest.raises(Cancelled):
        extract_mesh(SphereField(), 32, context)


def test_simplify_meets_the_budget_closed_and_in_place() -> None:
    vertices, faces = extract_mesh(HeadField(), 96, cpu_context())
    reduced, kept = simplify(vertices, faces, 5000)
    assert 4900 <= len(kept) <= 5000
    assert is_watertight(kept)
    assert signed_volume(reduced, kept) == pytest.approx(signed_volume(vertices, faces), rel=0.005)
    mesh = trimesh.Trimesh(reduced, kept, process=False)
    normals, pairs = mesh.face_normals, mesh.face_adjacency
    assert (normals[pairs[:, 0]] * normals[pairs[:, 1]]).sum(1).min() > -0.7
    assert reduced[:, 1].min() == -0.5


def test_no_budget_and_a_large_budget_change_nothing() -> None:
    vertices, faces = extract_mesh(SphereField(), 32, cpu_context())
    for budget in (0, len(faces)):
        assert simplify(vertices, faces, budget)[1] is faces


def test_where_the_quick_collapse_opens_the_mesh_the_careful_one_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = extract_mesh(SphereField(), 32, cpu_context())
    monkeypatch.setattr(simplify_module.fast_simplification, "simplify", lambda points, triangles, **_: (points, triangles[1:]))
    reduced, kept = simplify(vertices, faces, 300)
    assert len(kept) <= 300 and is_watertight(kept)
    assert signed_volume(reduced, kept) == pytest.approx(signed_volume(vertices, faces), rel=0.02)


def test_shreds_stay_only_where_detail_is_wanted() -> None:
    """A ball with two thin needles: the one in the region of detail stays, the other goes, the ball keeps its place."""

    class Hedgehog(SphereField):
        def distance(self, points: torch.Tensor) -> torch.Tensor:
            needle = torch.maximum(points[:, [1, 2]].norm(dim=-1) - 0.008, points[:, 0].abs() - 0.42)
            return torch.minimum(super().distance(points), needle)

    vertices, faces = extract_mesh(Hedgehog(), 128, cpu_context(), detail=lambda points: (points[:, 0] > 0).float())
    assert vertices[:, 0].max() > 0.38
    assert vertices[:, 0].min() == pytest.approx(-0.3, abs=0.02)
    assert trimesh.Trimesh(vertices, faces, process=False).volume == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.02)


def test_unfold_turns_a_folded_vertex_back() -> None:
    vertices, faces = extract_mesh(SphereField(0.3), 32, cpu_context())
    folded = vertices.copy()
    vertex = int(vertices[:, 2].argmax())
    across = faces[(faces == vertex).any(1)]
    far = across[across != vertex]
    folded[vertex] = 3 * vertices[far[0]] - 2 * vertices[vertex]
    normals = face_normals(unfold(folded, faces), faces)
    assert (face_normals(folded, faces)[:, 2][(faces == vertex).any(1)] < 0).any()
    assert (normals[:, 2][(faces == vertex).any(1)] > 0).all()
