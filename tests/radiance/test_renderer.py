"""The volume renderer against closed forms, against dense sampling, and its derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.renderer import RayOutput, RenderOutput, render, render_dense, render_rays

MakeField = Callable[..., Any]
RADIUS = 0.3


def _psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


def _intersection(camera: Camera, radius: float) -> tuple[Tensor, Tensor]:
    """Z-depth (H, W) of the first point on a sphere at the origin, and whether the ray meets it."""
    o, d = (x.double() for x in camera.rays())
    b, a = d @ o, (d * d).sum(-1)
    root = b * b - a * (o @ o - radius**2)
    t = (-b - root.clamp_min(0).sqrt()) / a
    return t.float().view(camera.height, camera.width), (root > 0).view(camera.height, camera.width)


def _same(a: RenderOutput | RayOutput, b: RenderOutput | RayOutput, tolerance: float = 1e-5) -> None:
    for name in ("rgb", "alpha", "depth", "features", "normals"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if name == "normals" and x is not None:  # differences of almost nothing are noise
            x, y, tolerance = x * a.alpha[..., None], y * b.alpha[..., None], 1e-3
        assert x is None or torch.allclose(x, y, atol=tolerance), name


@pytest.fixture(scope="module")
def sphere_view(make_sphere: MakeField) -> tuple[Camera, RenderOutput]:
    camera = Camera.orbit(40, 20, 96)
    return camera, render(make_sphere(RADIUS), camera)


def test_the_silhouette_of_a_sphere_has_the_tangent_cones_radius(sphere_view: tuple[Camera, RenderOutput]) -> None:
    camera, out = sphere_view
    distance = float(camera.centre.norm())
    expected = float(camera.intrinsics[0, 0]) * RADIUS / math.sqrt(distance**2 - RADIUS**2)
    assert math.sqrt(float(out.alpha.sum()) / math.pi) == pytest.approx(expected, abs=0.25)  # pixels


def test_the_depth_of_a_sphere_is_the_first_intersection(sphere_view: tuple[Camera, RenderOutput]) -> None:
    camera, out = sphere_view
    inner = _intersection(camera, 0.9 * RADIUS)[1]
    error = (out.depth - _intersection(camera, RADIUS)[0])[inner]
    assert error.abs().mean() < 3e-3  # a hard edge is found at the next sample; they are about 5e-3 apart
    assert error.abs().max() < 1e-2
    assert (out.depth[out.alpha == 0] == 0).all()


@pytest.mark.parametrize("sharpness", [100.0, 400.0])
def test_the_normals_of_a_sphere_point_away_from_its_centre(make_sphere: MakeField, sharpness: float) -> None:
    camera = Camera.orbit(40, 20, 64)
    out = render(make_sphere(RADIUS, sharpness=sharpness), camera, normals=True)
    depth, _ = _intersection(camera, RADIUS)
    inner = _intersection(camera, 0.9 * RADIUS)[1].view(-1)
    origin, directions = camera.rays()
    truth = ((origin + directions * depth.view(-1, 1)) / RADIUS)[inner]
    assert out.normals is not None
    cosine = (out.normals.view(-1, 3)[inner] * truth).sum(-1)
    assert cosine.mean() > 0.995
    assert cosine.min() > 0.97


def test_the_colour_is_the_surface_colour_and_off_centre_spheres_stay_there(make_sphere: MakeField) -> None:
    camera, field = Camera.orbit(0, 0, 64), make_sphere(0.15, centre=(0.2, 0.1, 0.0))
    out = render(field, camera)
    pixels, z = camera.project(torch.tensor([[0.2, 0.1, 0.15]]))
    x, y = (int(v) for v in pixels[0])
    assert out.alpha[y, x] > 0.99
    assert torch.allclose(out.rgb[y, x], torch.tensor([0.7, 0.6, 0.65]), atol=0.02)
    assert out.depth[y, x].item() == pytest.approx(z.item(), abs=0.01)
    assert out.alpha[:, :32].sum() < 0.5 * out.alpha.sum()


def test_a_translucent_ball_obeys_beer_lambert(make_sphere: MakeField) -> None:
    radius, density = 0.25, 3.0
    camera = Camera.orbit(0, 0, 65)
    out = render(make_sphere(radius, solid=density, sharpness=1000.0), camera, samples=24)
    assert out.alpha[32, 32].item() == pytest.approx(1 - math.exp(-density * 2 * radius), abs=0.02)


def test_dense_sampling_sees_the_same_sphere(make_sphere: MakeField) -> None:
    camera, soft = Camera.orbit(40, 20, 64), make_sphere(RADIUS, solid=250.0, sharpness=150.0)
    out, dense = render(soft, camera), render_dense(soft, camera)
    assert _psnr(out.alpha, dense.alpha) > 45
    assert _psnr(out.rgb, dense.rgb) > 45
    assert (out.depth - dense.depth)[out.alpha > 0.99].abs().mean() < 1e-3


@pytest.mark.parametrize("azimuth", [0, 90, 200])
def test_few_samples_from_the_lattice_agree_with_dense_sampling(head: Head, azimuth: float) -> None:
    camera = Camera.orbit(azimuth, 15, 64)
    with torch.no_grad():
        fast, dense = head.render(camera, features=True), render_dense(head, camera, features=True)
        assert fast.features is not None and dense.features is not None
        assert _psnr(fast.rgb, dense.rgb) > 50
        assert _psnr(fast.alpha, dense.alpha) > 50
        assert _psnr(fast.features, dense.features) > 45
        assert torch.equal(fast.features[..., :3], fast.rgb)


def test_few_samples_give_the_gradient_of_many(head: Head) -> None:
    camera, gradients = Camera.orbit(30, 10, 32), []
    for draw in (lambda h: render(h, camera, grid=head.density_grid()), lambda h: render_dense(h, camera, coarse=128, fine=128)):
        planes = head.geometry.planes.clone().requires_grad_()
        out = draw(head.with_planes(head.geometry.with_planes(planes)))
        ((out.rgb - 0.5).abs().mean() + out.alpha.mean()).backward()
        gradients.append(planes.grad.flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[0].norm().item() == pytest.approx(gradients[1].norm().item(), rel=0.05)


@pytest.mark.parametrize("stratified", [False, True])
def test_the_memory_budget_does_not_change_the_result(head: Head, stratified: bool) -> None:
    camera, results = Camera.orbit(-50, 0, 24), []
    for budget in (1000.0, 1.0):
        planes = head.geometry.planes.clone().requires_grad_()
        changed = head.with_planes(head.geometry.with_planes(planes))
        generator = torch.Generator().manual_seed(3) if stratified else None
        out = render(changed, camera, grid=head.density_grid(), features=True, normals=True, generator=generator, memory_budget_mb=budget)
        (out.rgb.sum() + out.depth.sum()).backward()
        results.append((out, planes.grad))
    _same(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)
    assert results[0][1].abs().max() > 0.01
    with torch.no_grad():
        _same(render_dense(head, camera, 16), render_dense(head, camera, 16, memory_budget_mb=0.3))


def test_stratified_samples_depend_on_the_generator_alone(head: Head) -> None:
    camera = Camera.orbit(0, 0, 24)
    with torch.no_grad():
        a, b, c = (head.render(camera, samples=4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    _same(a, b, 0)
    assert not torch.equal(a.rgb, c.rgb)
    assert _psnr(a.rgb, c.rgb) > 25


def test_rays_of_several_cameras_render_together(head: Head) -> None:
    cameras = [Camera.orbit(azimuth, 0, 16) for azimuth in (0, 120)]
    rays = [c.rays() for c in cameras]
    with torch.no_grad():
        origins = torch.cat([o.expand_as(d) for o, d in rays])
        together = render_rays(head, origins, torch.cat([d for _, d in rays]), head.density_grid())
        apart = torch.cat([head.render(c).rgb.view(-1, 3) for c in cameras])
    assert torch.allclose(together.rgb, apart, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_every_output_has_the_right_gradient_in_planes_and_decoder(shared: bool) -> None:
    head = ellipsoid_head((0.3, 0.35, 0.3), sharpness=2, channels=4, hidden=8, depth=2, size=5).to(dtype=torch.float64)
    camera = Camera.orbit(20, 10, 3, fov_deg=14).to(torch.device("cpu"), torch.float64)
    grid = DensityGrid.build(head, 16, dtype=torch.float64)
    planes = [head.geometry.planes.clone().requires_grad_() for _ in range(1 if shared else 2)]

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:  # the decoder's weights are perturbed where they are
        geometry = head.geometry.with_planes(inputs[0])
        changed = replace(head, geometry=geometry, appearance=geometry if shared else head.geometry.with_planes(inputs[1]))
        out = render(changed, camera, grid=grid, samples=3, features=True, normals=True)
        assert out.features is not None and out.normals is not None
        return out.rgb, out.alpha, out.depth, out.features[..., ::8], out.normals

    weights = tuple(head.decoder.requires_grad_().parameters())
    assert outputs(*planes)[1].min() > 0.1
    assert torch.autograd.gradcheck(outputs, (*planes, *weights), eps=1e-6, atol=1e-5, fast_mode=True)


def test_an_empty_field_is_transparent_and_finite(make_sphere: MakeField) -> None:
    out = render(make_sphere(solid=0.0), Camera.orbit(0, 0, 16), features=False, normals=True)
    for image in (out.rgb, out.alpha, out.depth, out.normals):
        assert image is not None and (image == 0).all()
    dense = render_dense(make_sphere(solid=0.0), Camera.orbit(0, 0, 16))
    assert (dense.alpha == 0).all() and torch.isfinite(dense.depth).all()


def test_a_camera_inside_the_box_sees_what_is_before_it(make_sphere: MakeField) -> None:
    field = make_sphere(0.1)
    out = render(field, Camera.orbit(0, 0, 17, radius=0.4))
    assert out.alpha[8, 8] > 0.99
    assert out.depth[8, 8].item() == pytest.approx(0.3, abs=0.01)


def test_what_lies_behind_the_camera_is_not_seen(make_sphere: MakeField) -> None:
    away = Camera(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2.0]]), torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]), 16, 16)
    assert render(make_sphere(), away).alpha.max() > 0.99
    turned = replace(away, world_to_camera=away.world_to_camera * torch.tensor([[-1.0], [1], [-1]]))
    assert (render(make_sphere(), turned).alpha == 0).all()
    assert (render_dense(make_sphere(), turned, coarse=8, fine=8).alpha == 0).all()


def test_a_solid_that_leaves_the_box_is_cut_there(make_sphere: MakeField) -> None:
    out = render(make_sphere(0.9), Camera.orbit(0, 0, 33), normals=True)
    assert out.depth[16, 16].item() == pytest.approx(2.7 - 0.5, abs=0.005)
    assert out.normals is not None
    assert torch.allclose(out.normals[16, 16], torch.tensor([0.0, 0.0, 1.0]), atol=0.05)


def test_the_background_fills_what_alpha_leaves(head: Head) -> None:
    camera, background = Camera.orbit(0, 0, 24), torch.tensor([0.2, 0.4, 0.6])
    with torch.no_grad():
        plain, filled = head.render(camera), head.render(camera, background=background)
    assert torch.allclose(filled.rgb, plain.rgb + (1 - plain.alpha[..., None]) * background)
    assert torch.allclose(filled.rgb[0, 0], background)


def test_density_is_cut_at_the_box_of_a_head(head: Head) -> None:
    full = head.with_planes(TriPlane(torch.zeros_like(head.geometry.features), head.geometry.depth))
    points = torch.tensor([[0.49, 0.0, 0.0], [0.51, 0.0, 0.0]])
    assert full.density(points)[0] > 200
    assert full.density(points)[1] == 0
