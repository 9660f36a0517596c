"""The rasteriser against areas, planes and a sphere whose images are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from portrait_backend.geometry import rasterise as module
from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.radiance.cameras import Camera

SQUARE = torch.tensor([[0, 1, 2], [0, 2, 3]])


def square(low: float, high: float, depth: float = 1.0) -> torch.Tensor:
    return torch.tensor([[low, low, depth], [high, low, depth], [high, high, depth], [low, high, depth]])


def sphere(radius: float, steps: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    theta = torch.linspace(0, math.pi, steps + 1)
    phi = torch.arange(2 * steps) * (math.pi / steps)
    t, p = torch.meshgrid(theta, phi, indexing="ij")
    points = radius * torch.stack([t.sin() * p.cos(), t.cos(), t.sin() * p.sin()], -1).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(steps), torch.arange(2 * steps), indexing="ij")
    a, b = row * 2 * steps + column, row * 2 * steps + (column + 1) % (2 * steps)
    faces = torch.stack([torch.stack([a, b, a + 2 * steps], -1), torch.stack([b, b + 2 * steps, a + 2 * steps], -1)]).reshape(-1, 3)
    return points, faces


def test_square_covers_exactly_the_pixel_centres_inside() -> None:
    fragments = rasterise(square(2.0, 7.0), SQUARE, 10, 12)
    expected = torch.zeros(10, 12, dtype=torch.bool)
    expected[2:7, 2:7] = True
    assert torch.equal(fragments.covered, expected)
    assert torch.isinf(fragments.depth[~expected]).all()
    assert torch.allclose(fragments.barycentric[expected].sum(1), torch.ones(25))


def test_no_gap_along_shared_edges_of_a_fan() -> None:
    angle = torch.arange(37) * (2 * math.pi / 37)
    rim = torch.stack([32.1 + 30 * angle.cos(), 31.7 + 30 * angle.sin(), torch.ones(37)], 1)
    vertices = torch.cat([torch.tensor([[32.5, 32.5, 1.0]]), rim])
    faces = torch.tensor([[0, 1 + i, 1 + (i + 1) % 37] for i in range(37)])
    covered = rasterise(vertices, faces, 64, 64).covered
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    assert covered[(x - 32.1).hypot(y - 31.7) < 29.8].all()


def test_the_nearer_face_wins_and_ties_go_to_the_lower_index() -> None:
    vertices = torch.cat([square(0, 8, 2.0), square(2, 6, 1.0), square(2, 6, 1.0)])
    fragments = rasterise(vertices, torch.cat([SQUARE, SQUARE + 8, SQUARE + 4]), 8, 8)
    assert set(fragments.face[2:6, 2:6].unique().tolist()) == {2, 3}
    assert torch.equal(fragments.depth[2:6, 2:6], torch.ones(4, 4))
    assert fragments.depth[0, 0] == 2


def test_interpolation_is_perspective_correct() -> None:
    """On a slanted plane, world x at a pixel follows from intersecting its ray with the plane."""
    camera = Camera.orbit(0, 0, 64)
    corners = torch.tensor([[-0.4, -0.4, -0.5], [0.4, -0.4, 0.6], [0.4, 0.4, 0.6], [-0.4, 0.4, -0.5]])
    pixels, z = camera.project(corners)
    fragments = rasterise(torch.cat([pixels, z[:, None]], 1), SQUARE, 64, 64)
    origin, directions = camera.rays()
    normal = torch.tensor([-1.1, 0.0, 0.8])
    t = ((corners[0] - origin) @ normal / (directions @ normal)).reshape(64, 64)
    hit = fragments.covered
    assert int(hit.sum()) > 300
    assert torch.allclose(fragments.depth[hit], t[hit], atol=1e-5)
    points = (origin + t.reshape(-1, 1) * directions).reshape(64, 64, 3)
    assert torch.allclose(fragments.gather(SQUARE, corners), points[hit], atol=1e-5)
    affine = rasterise(torch.cat([pixels, z[:, None]], 1), SQUARE, 64, 64, perspective=False)
    assert (affine.depth[hit] - t[hit]).abs().max() > 0.02


def test_sphere_depth_matches_the_ray_intersection() -> None:
    camera = Camera.orbit(30, 20, 96)
    points, faces = sphere(0.4)
    pixels, z = camera.project(points)
    fragments = rasterise(torch.cat([pixels, z[:, None]], 1), faces, 96, 96)
    origin, directions = camera.rays()
    a, b, c = (directions**2).sum(1), directions @ origin, origin @ origin - 0.16
    root = (b * b - a * c).clamp_min(0).sqrt()
    expected, discriminant = ((-b - root) / a).reshape(96, 96), (b * b - a * c).reshape(96, 96)
    inner = discriminant > 0.02
    assert fragments.covered[inner].all()
    assert (fragments.depth[inner] - expected[inner]).abs().max() < 0.003
    assert not fragments.covered[discriminant < -1e-3].any()


def test_chunks_do_not_change_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera.orbit(10, 0, 80)
    points, faces = sphere(0.4, 16)
    pixels, z = camera.project(points)
    vertices = torch.cat([pixels, z[:, None]], 1)
    whole = rasterise(vertices, faces, 80, 80, compiled=False)
    monkeypatch.setattr(module, "CANDIDATES_PER_CHUNK", 501)
    pieces = rasterise(vertices, faces, 80, 80, compiled=False)
    assert torch.equal(whole.face, pieces.face)
    assert torch.equal(whole.depth, pieces.depth)


@pytest.mark.parametrize("perspective", [True, False])
def test_the_compiled_loop_finds_the_same_fragments(perspective: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    vertices = torch.rand(300, 3, generator=generator) * torch.tensor([90.0, 70.0, 2.0]) + torch.tensor([-10.0, -5.0, 0.1])
    faces = torch.randint(0, 300, (400, 3), generator=generator)
    faces = torch.cat([faces, faces[:50]])  # equal depths
    kernel, plain = (rasterise(vertices, faces, 60, 80, perspective, compiled=compiled) for compiled in (True, False))
    assert torch.equal(kernel.face, plain.face)
    assert torch.equal(kernel.depth, plain.depth)
    torch.testing.assert_close(kernel.barycentric, plain.barycentric, rtol=0, atol=1e-6)


def test_faces_behind_the_camera_and_degenerate_faces_are_skipped() -> None:
    vertices = torch.cat([square(0, 8, -1.0), torch.tensor([[1.0, 1, 1], [2, 2, 1], [3, 3, 1]])])
    assert not rasterise(vertices, torch.cat([SQUARE, torch.tensor([[4, 5, 6]])]), 8, 8).covered.any()
    assert not rasterise(vertices, torch.zeros(0, 3, dtype=torch.int64), 8, 8).covered.any()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        rasterise(torch.zeros(4, 5), SQUARE, 8, 8)
