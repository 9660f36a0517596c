"""Reprojection of spheres whose images are known: identity, rotation, occlusion, and no leak of the back through the front."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.geometry.reprojection import Method, carried, find_warp, reproject
from portrait_backend.geometry.surface_views import Culling, SurfaceView, lift_depth, normals_of_depth, ray_distance_to_z
from portrait_backend.radiance.cameras import Camera
from tests.geometry.spheres import HEAD, Ball, view_of

SIZE = 128
METHODS: tuple[Method, ...] = ("pull", "splat")


def at(azimuth: float, pitch: float = 0.0, size: int = SIZE) -> Camera:
    return Camera.orbit(azimuth, pitch, size)


def error(shown: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """Mean and largest difference where the mask is 1."""
    known = mask[:, 0] > 0
    difference = (shown - truth).abs().mean(1)[known]
    return float(difference.mean()), float(difference.max())


@pytest.mark.parametrize("method", METHODS)
def test_the_identity_warp_is_exact(method: Method) -> None:
    surface, image = view_of(at(20, 10))
    shown, mask = reproject(image, surface, surface, method=method)
    assert torch.equal(mask[:, 0] > 0, surface.solid(Culling()))
    assert error(shown, image, mask)[1] < 1e-5
    assert (shown[(mask == 0).expand_as(shown)] == 0).all()


@pytest.mark.parametrize(("method", "mean"), [("pull", 0.005), ("splat", 0.04)])
@pytest.mark.parametrize("azimuth", [15.0, -30.0, 60.0])
def test_a_textured_sphere_turns_as_it_should(method: Method, mean: float, azimuth: float) -> None:
    (driver, image), (target, truth) = view_of(at(0)), view_of(at(azimuth, 5))
    shown, mask = reproject(image, driver, target, method=method)
    assert error(shown, truth, mask)[0] < mean
    # what both see of the sphere: the facing limit in either view, little else may be lost
    both = (target.facing() >= 0.15) & (target.depth > 0)
    points = target.points()
    to_driver = torch.nn.functional.normalize(driver.centre[:, None] - points, dim=-1)
    both &= ((target.normals.flatten(1, 2) * to_driver).sum(-1) >= 0.15).view(both.shape)
    assert float(mask.sum()) > 0.85 * float(both.sum())
    assert float((mask[:, 0] * ~both).sum()) < 0.02 * float(both.sum())


@pytest.mark.parametrize("method", METHODS)
def test_what_a_nearer_sphere_hides_does_not_arrive(method: Method) -> None:
    nose: Ball = ((0.0, 0.0, 0.5), 0.12)
    (driver, image), (target, truth) = view_of(at(-35), (HEAD, nose)), view_of(at(0), (HEAD, nose))
    shown, mask = reproject(image, driver, target, method=method)
    middle = torch.zeros_like(mask, dtype=torch.bool)
    middle[..., SIZE // 2 - 8 : SIZE // 2 + 8, SIZE // 2 - 8 : SIZE // 2 + 8] = True
    assert error(shown, truth, mask * middle)[0] < 0.05, "the nose shows its own texture"
    assert error(shown, truth, mask)[0] < 0.05
    # the part of the head that the nose hides from the driver must stay unknown
    points = target.points()
    pixels, z = driver.project(points)
    cell = pixels.floor().long().clamp(0, SIZE - 1)
    seen = driver.depth[0, cell[0, :, 1], cell[0, :, 0]]
    hidden = (target.depth.flatten() > 0) & (z[0] > seen + 0.1)
    assert hidden.sum() > 100
    assert float(mask.flatten()[hidden].mean()) < 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [128, 64, 32, 16])
def test_the_back_never_leaks_through_the_front(method: Method, size: int) -> None:
    (back, image), (front, _) = view_of(at(180)), view_of(at(0))
    _, mask = reproject(torch.nn.functional.avg_pool2d(image, SIZE // size), back, front, method=method)
    assert float(mask.sum()) == 0


def test_the_targets_own_depth_culls_what_lies_behind_it() -> None:
    """Without normals' help: an open shell seen from behind, in front of which the target sees a wall."""
    (driver, _), (target, _) = view_of(at(0)), view_of(at(30))
    wall = SurfaceView(torch.full_like(target.depth, 1.5), torch.ones_like(target.alpha), target.normals, target.pose, target.intrinsics)
    assert carried(driver, target, Culling())[2].any()
    assert not carried(driver, wall, Culling())[2].any()


def test_low_opacity_depth_edges_and_the_silhouette_are_not_carried() -> None:
    surface, _ = view_of(at(0))
    thin = SurfaceView(surface.depth, surface.alpha * 0.8, surface.normals, surface.pose, surface.intrinsics)
    assert not thin.solid(Culling()).any()
    step = surface.depth.clone()
    step[:, :, SIZE // 2 :] += 0.1 * (step[:, :, SIZE // 2 :] > 0)
    stepped = SurfaceView(step, surface.alpha, surface.normals, surface.pose, surface.intrinsics)
    column = stepped.solid(Culling())[0, SIZE // 2, SIZE // 2 - 3 : SIZE // 2 + 3]
    assert column.tolist() == [True, True, False, False, True, True]
    whole, eroded = (surface.solid(Culling(erode=e, reference=SIZE)).sum() for e in (0, 3))
    assert eroded < whole


def test_cells_take_the_nearest_depth_never_the_average() -> None:
    surface, _ = view_of(at(0))
    small = surface.shrunk(32)
    cells = surface.depth.view(1, 32, 4, 32, 4).transpose(2, 3).reshape(1, 32, 32, 16)
    expected = torch.where(cells > 0, cells, float("inf")).min(-1).values.nan_to_num(posinf=0.0)
    assert torch.equal(small.depth, expected)
    torch.testing.assert_close(small.intrinsics[0, 0, 0], surface.intrinsics[0, 0, 0] / 4)
    torch.testing.assert_close(small.normals.norm(dim=-1), (expected > 0).float())
    with pytest.raises(ValueError, match="48 px"):
        surface.shrunk(48)


@pytest.mark.parametrize("size", [64, 32, 16])
def test_features_are_carried_at_their_own_resolution(size: int) -> None:
    (driver, image), (target, truth) = view_of(at(0)), view_of(at(20))
    pool = torch.nn.functional.avg_pool2d
    shown, mask = reproject(pool(image, SIZE // size), driver, target)
    assert shown.shape == (1, 3, size, size)
    assert mask.mean() > 0.3
    still = error(pool(image, SIZE // size), pool(truth, SIZE // size), mask)[0]
    assert error(shown, pool(truth, SIZE // size), mask)[0] < 0.6 * still


def test_a_batch_is_its_views_one_by_one() -> None:
    drivers, targets = [view_of(at(a))[0] for a in (0, 40)], [view_of(at(a))[0] for a in (20, 90)]
    images = torch.cat([view_of(at(a))[1] for a in (0, 40)])

    def stack(views: list[SurfaceView]) -> SurfaceView:
        names = ("depth", "alpha", "normals", "pose", "intrinsics")
        return SurfaceView(*(torch.cat([getattr(v, n) for v in views]) for n in names))

    for method in METHODS:
        together, mask = reproject(images, stack(drivers), stack(targets), method=method)
        for k in range(2):
            alone, alone_mask = reproject(images[k : k + 1], drivers[k], targets[k], method=method)
            torch.testing.assert_close(together[k : k + 1], alone)
            assert torch.equal(mask[k : k + 1], alone_mask)


def test_a_warp_serves_both_halves_of_guidance_and_passes_gradients() -> None:
    (driver, image), (target, _) = view_of(at(0)), view_of(at(25))
    for method in METHODS:
        warp = find_warp(driver, target, size=64, method=method)
        small = torch.nn.functional.avg_pool2d(image, 2).requires_grad_()
        once = warp.apply(small)
        twice = warp.repeated(2).apply(torch.cat([small, small]))
        assert torch.equal(twice, torch.cat([once, once]))
        once.sum().backward()
        assert small.grad is not None and small.grad.abs().sum() > 0


def test_normals_of_a_depth_map_are_the_spheres() -> None:
    surface, _ = view_of(at(15, -10))
    found = normals_of_depth(surface.depth, surface.pose, surface.intrinsics)
    inner = surface.solid(Culling(facing=0.4))
    assert ((found * surface.normals).sum(-1)[inner] > 0.995).all()


def test_distance_along_the_ray_is_not_depth() -> None:
    surface, _ = view_of(at(0))
    points = surface.points()
    distance = (points - surface.centre[:, None]).norm(dim=-1).view(surface.depth.shape)
    hit = surface.depth > 0
    assert (distance - surface.depth)[hit].max() > 1e-3
    torch.testing.assert_close(ray_distance_to_z(distance, surface.intrinsics)[hit], surface.depth[hit])
    lifted = lift_depth(surface.depth, surface.pose, surface.intrinsics)
    torch.testing.assert_close(lifted[0, hit.flatten()].norm(dim=-1), torch.full((int(hit.sum()),), 0.35), atol=1e-5, rtol=0)


def test_unknown_methods_and_misshapen_views_are_named() -> None:
    surface, image = view_of(at(0))
    with pytest.raises(ValueError, match="'push'"):
        reproject(image, surface, surface, method="push")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"alpha \(B, H, W\)"):
        SurfaceView(surface.depth, surface.alpha[:, :5], surface.normals, surface.pose, surface.intrinsics)
