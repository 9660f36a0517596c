"""Charts, cuts and layouts: inside [0, 1], nothing twice, little stretch, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from portrait_backend.context import cpu_context
from portrait_backend.geometry.meshes import compact
from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.mesh.charts import FACE_CHART
from portrait_backend.mesh.cut import cut_to_disk, is_disk
from portrait_backend.mesh.extract import extract_mesh
from portrait_backend.mesh.parametrise import flatten, signed_areas
from portrait_backend.mesh.simplify import simplify
from portrait_backend.mesh.unwrap import CHART_SCALE, Unwrapped, _divide, unwrap
from tests.mesh.fakes import HeadField

Solid = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def solid() -> Solid:
    return simplify(*extract_mesh(HeadField(), 96, cpu_context()), 6000)


@pytest.fixture(scope="module")
def unwrapped(solid: Solid) -> Unwrapped:
    return unwrap(*solid, 1024, cpu_context())


def test_uv_lies_in_the_unit_square_and_faces_keep_order_and_side(solid: Solid, unwrapped: Unwrapped) -> None:
    assert unwrapped.uv.min() >= 0
    assert unwrapped.uv.max() <= 1
    assert np.array_equal(unwrapped.source[unwrapped.faces], solid[1])
    assert (signed_areas(unwrapped.uv.astype(np.float64), unwrapped.faces) > 0).all()


def test_no_texel_is_hit_twice(unwrapped: Unwrapped) -> None:
    """Drawing with the faces in reverse order gives the same face everywhere but on shared edges."""
    size = 1024
    pixels = torch.from_numpy(unwrapped.uv).double() * size
    faces = torch.from_numpy(unwrapped.faces)
    first = rasterise(pixels, faces, size, size)
    last = rasterise(pixels, faces.flip(0), size, size)
    other = torch.where(last.covered, len(faces) - 1 - last.face, -1)
    assert int((first.face != other).sum()) < 20
    assert float(first.covered.float().mean()) > 0.5


def test_charts_keep_their_distance(unwrapped: Unwrapped) -> None:
    size = 1024
    pixels = torch.from_numpy(unwrapped.uv).double() * size
    face = rasterise(pixels, torch.from_numpy(unwrapped.faces), size, size).face.numpy()
    chart = np.where(face >= 0, unwrapped.chart[face], -1)
    for shift in range(1, 4):
        for a, b in ((chart[shift:], chart[:-shift]), (chart[:, shift:], chart[:, :-shift])):
            assert not ((a != b) & (a >= 0) & (b >= 0)).any()


def test_few_charts_little_stretch_and_a_denser_face(solid: Solid, unwrapped: Unwrapped) -> None:
    assert unwrapped.chart.max() + 1 <= 10
    vertices, faces = solid
    in_space = np.linalg.norm(np.cross(*(vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2))), axis=1) / 2
    density = np.sqrt(signed_areas(unwrapped.uv.astype(np.float64), unwrapped.faces) / in_space)
    low, high = np.quantile(density, (0.05, 0.95))
    assert high / low < 2.2
    nose, back = vertices[faces].mean(1)[:, 2] > 0.25, vertices[faces].mean(1)[:, 2] < -0.2
    assert np.median(density[nose]) / np.median(density[back]) == pytest.approx(CHART_SCALE[FACE_CHART], rel=0.1)
    middle = np.abs(vertices[faces].mean(1) - [0, 0.05, 0.3]).max(1) < 0.08
    assert middle.sum() > 20
    assert len(np.unique(unwrapped.chart[middle])) == 1


def test_unwrap_repeats_exactly(solid: Solid, unwrapped: Unwrapped) -> None:
    again = unwrap(*solid, 1024, cpu_context())
    assert np.array_equal(again.uv, unwrapped.uv)
    assert np.array_equal(again.faces, unwrapped.faces)


@pytest.mark.parametrize("shape", ["disk", "cylinder", "two holes", "handle", "pinched"])
def test_any_chart_is_cut_to_a_disk(shape: str) -> None:
    if shape == "handle":
        mesh = trimesh.creation.torus(1.0, 0.4, major_sections=24, minor_sections=12)
        vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)[3:]
    else:
        mesh = trimesh.creation.icosphere(3)
        vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
        height = vertices[faces].mean(1)
        keep = height[:, 1] < 0.8
        if shape in ("cylinder", "two holes"):
            keep &= height[:, 1] > -0.8
        if shape == "two holes":
            keep &= height[:, 0] < 0.9
        faces = faces[keep]
        if shape == "pinched":
            faces = faces[~(faces == faces[len(faces) // 2, 0]).any(1) | (np.arange(len(faces)) % 2 == 0)]
            label = trimesh.graph.connected_component_labels(trimesh.Trimesh(vertices, faces, process=False).face_adjacency, len(faces))
            faces = faces[label == np.bincount(label).argmax()]
    vertices, faces = compact(vertices, faces)
    assert is_disk(faces) == (shape == "disk")
    source, opened = cut_to_disk(vertices, faces)
    assert is_disk(opened)
    assert np.array_equal(source[opened], faces)
    assert len(opened) == len(faces)


def test_flat_chart_is_laid_out_without_distortion() -> None:
    """A tilted plane is developable: lengths survive, and world up is up."""
    x, y = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 2, 17), indexing="ij")
    vertices = np.stack([x, 0.8 * y, 0.6 * y], -1).reshape(-1, 3)
    grid = np.arange(9 * 17).reshape(9, 17)
    a, b, c, d = grid[:-1, :-1].ravel(), grid[1:, :-1].ravel(), grid[1:, 1:].ravel(), grid[:-1, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    uv = next(flatten(vertices, faces, vertices))
    assert np.linalg.norm(uv[grid[-1, -1]] - uv[grid[0, 0]]) == pytest.approx(5**0.5, rel=1e-6)
    up = uv[grid[0, -1]] - uv[grid[0, 0]]
    assert up == pytest.approx([0, 2], abs=1e-6)


def test_folds_get_charts_of_their_own_and_the_face_stays_whole() -> None:
    """A crumpled head with a loop of hair: layouts without flips all the same, most of it in few charts."""

    class Crumpled(HeadField):
        def distance(self, points: torch.Tensor) -> torch.Tensor:
            waves = torch.sin(points @ torch.tensor([70.0, 20, 10])) + torch.sin(points @ torch.tensor([-30.0, 90, 40]))
            hair = torch.sigmoid(60 * torch.maximum(points[:, 1] - 0.22, -0.08 - points[:, 2]))
            q = points - torch.tensor([0.0, 0.40, -0.1])
            loop = torch.stack([q[:, :2].norm(dim=-1) - 0.07, q[:, 2]], -1).norm(dim=-1) - 0.02
            return torch.minimum(super().distance(points) - 0.015 * hair * waves, loop)

    vertices, faces = simplify(*extract_mesh(Crumpled(), 96, cpu_context()), 8000)
    assert trimesh.Trimesh(vertices, faces, process=False).euler_number <= 0
    unwrapped = unwrap(vertices, faces, 1024, cpu_context())
    assert (signed_areas(unwrapped.uv.astype(np.float64), unwrapped.faces) > 0).all()
    assert np.sort(np.bincount(unwrapped.chart))[-8:].sum() > 0.9 * len(faces)
    middle = np.abs(vertices[faces].mean(1) - [0, 0.05, 0.3]).max(1) < 0.08
    assert len(np.unique(unwrapped.chart[middle])) == 1


def test_carving_takes_the_surroundings_of_the_fold() -> None:
    mesh = trimesh.creation.icosphere(3)
    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    bad = np.zeros(len(faces), dtype=bool)
    bad[7] = True
    side = _divide(vertices, faces, bad)
    assert side[7] == 1
    assert 20 < side.sum() < 0.35 * len(faces)
    everything = _divide(vertices, faces, np.ones(len(faces), dtype=bool))
    assert 0.4 < everything.mean() < 0.6
