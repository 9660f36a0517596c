"""Lifting a photo onto the canonical maps, on a proxy whose geometry is known."""

from __future__ import annotations

import math

import torch

from portrait_backend.prior.lift import HALF, ProxySurface, copied_planes, lift, project_normalised, unoccluded
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.triplane import sample_planes


def sphere_proxy(radius: float = 0.3, grid: int = 64) -> ProxySurface:
    """A proxy whose three maps are the halves of a sphere (a flat rim outside)."""
    proxy = ProxySurface(2, grid)
    g = ((torch.arange(grid) + 0.5) / grid * 2 - 1) * HALF
    v, u = torch.meshgrid(g, g, indexing="ij")
    half = (radius**2 - u**2 - v**2).clamp_min(0).sqrt()
    proxy.mean.copy_(torch.stack([half, half, -half]))
    return proxy


def test_points_lie_on_the_sphere_with_outward_normals() -> None:
    points, normals = sphere_proxy()(torch.zeros(1, 2), 64)
    middle = points[0, 0].norm(dim=-1) - 0.3
    rim = points[0, 0, ..., :2].norm(dim=-1)
    assert middle[rim < 0.28].abs().max() < 1e-3
    cosine = (torch.nn.functional.normalize(points[0], dim=-1) * normals[0]).sum(-1)
    for m, axes in enumerate(((0, 1), (2, 1), (2, 1))):
        inner = points[0, m][..., list(axes)].norm(dim=-1) < 0.2
        assert cosine[m][inner].min() > 0.99


def test_projection_agrees_with_the_camera() -> None:
    camera = Camera.orbit(25, -10, 512)
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    pixels, _ = camera.project(points)
    torch.testing.assert_close(project_normalised(camera.world_to_camera[None], points[None])[0], pixels / 256 - 1, atol=1e-4, rtol=0)


def test_lift_reads_the_pixel_that_sees_the_point() -> None:
    camera = Camera.orbit(30, 0, 128)
    ramp = (torch.arange(128) + 0.5) / 64 - 1
    image = ramp.expand(1, 1, 128, 128)
    points, normals = sphere_proxy()(torch.zeros(1, 2), 32)
    maps, weight = lift(image, camera.world_to_camera[None], points, normals)
    uv = project_normalised(camera.world_to_camera[None], points.reshape(1, -1, 3)).view(1, 3, 32, 32, 2)
    inner = uv[0, ..., 0].abs() < 0.95
    torch.testing.assert_close(maps[0, :, 0][inner], uv[0, ..., 0][inner], atol=0.02, rtol=0)
    assert weight.min() >= 0 and weight.max() <= 1


def test_the_far_side_and_hidden_points_have_no_weight() -> None:
    camera = Camera.orbit(60, 0, 128)
    points, normals = sphere_proxy()(torch.zeros(1, 2), 64)
    _, weight = lift(torch.ones(1, 1, 8, 8), camera.world_to_camera[None], points, normals)
    right = points[0, 2]
    on_sphere = right[..., 1:].norm(dim=-1) < 0.25
    assert weight[0, 2, 0][on_sphere & (right[..., 2] < 0)].max() == 0, "the subject's right rear faces away from a camera on the left"
    left = points[0, 1]
    facing = (left[..., 1:].norm(dim=-1) < 0.2) & (left[..., 2] > 0)
    assert weight[0, 1, 0][facing].min() > 0.9


def test_a_wall_in_the_front_map_hides_what_is_behind_it() -> None:
    camera = Camera.orbit(0, 0, 128)
    wall = torch.zeros(1, 3, 64, 64, 3)
    g = ((torch.arange(64) + 0.5) / 64 * 2 - 1) * 0.2
    v, u = torch.meshgrid(g, g, indexing="ij")
    wall[0, 0, ..., 0], wall[0, 0, ..., 1], wall[0, 0, ..., 2] = u, v, 0.4
    wall[0, 1, ..., 0], wall[0, 1, ..., 1] = u * 0.9, v * 0.9
    wall[0, 2, ..., 0], wall[0, 2, ..., 2] = 0.45, 0.45
    seen = unoccluded(camera.world_to_camera[None], wall)
    assert seen[0, 0].all()
    assert not seen[0, 1].any()
    assert seen[0, 2].all(), "what lies beside the wall stays"


def test_copied_colours_come_back_where_they_were_put() -> None:
    maps = torch.zeros(1, 3, 4, 16, 16)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, 2, 2] = 1.0, 1.0, 1.0
    planes = copied_planes(maps, torch.ones(1, 3, 1, 16, 16))
    at = torch.tensor([[[0.0, 0.0, 0.9], [0.9, 0.0, 0.0], [-0.9, 0.0, 0.0], [0.0, 0.0, -0.9]]])
    front, left, right, back = sample_planes(planes, at)[0]
    assert front[0] == 1 and left[1] == 1 and right[2] == 1
    assert back[0] == 0, "nothing of the front map on the back"


def test_basis_moves_the_surface_linearly() -> None:
    proxy = sphere_proxy()
    proxy.basis[1, 0] = 0.01
    flat, _ = proxy(torch.tensor([[0.0, 0.0]]), 64)
    moved, _ = proxy(torch.tensor([[0.0, 2.0]]), 64)
    assert math.isclose(float((moved - flat)[0, 0, 20, 20, 2]), 0.02, abs_tol=1e-6)
