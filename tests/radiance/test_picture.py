"""Pictures from the density lattice: they agree with dense sampling, and show nothing where nothing is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.picture import PictureLattice, draw
from portrait_backend.radiance.renderer import render_dense


@pytest.fixture(scope="module")
def head() -> Head:
    return ellipsoid_head((0.27, 0.36, 0.3), size=64)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


@pytest.mark.parametrize("view", [(0, 0), (35, 10), (180, 15), (0, 60)])
def test_agrees_with_dense_sampling(head: Head, view: tuple[float, float]) -> None:
    camera = Camera.orbit(*view, 48)
    ours = head.picture(camera, normals=True)
    with torch.no_grad():
        dense = render_dense(head, camera, coarse=96, fine=96)
    assert psnr(ours.rgb, dense.rgb) > 45 and psnr(ours.alpha, dense.alpha) > 45
    solid = dense.alpha > 0.98
    assert float((ours.depth - dense.depth)[solid].abs().max()) < 0.004
    assert ours.normals is not None and torch.allclose(ours.normals[solid].norm(dim=-1), torch.ones(int(solid.sum())), atol=1e-4)


def test_a_ball_has_its_silhouette_and_depth() -> None:
    ball = ellipsoid_head((0.3, 0.3, 0.3), sharpness=30.0, size=64)
    camera = Camera.orbit(20, -10, 65)
    found = ball.picture(camera)
    assert abs(float(found.depth[32, 32]) - (float(camera.centre.norm()) - 0.3)) < 0.008  # a mean free path at the surface
    centre, focal = float(camera.centre.norm()), float(camera.intrinsics[0, 0])
    radius = focal * 0.3 / math.sqrt(centre**2 - 0.3**2)
    assert float((found.alpha > 0.5).sum()) == pytest.approx(math.pi * radius**2, rel=0.03)


def test_nothing_shows_nothing() -> None:
    empty = PictureLattice.of(DensityGrid.from_values(torch.zeros(16, 16, 16), 0.5))
    found = draw(ellipsoid_head(size=16), Camera.orbit(0, 0, 16), empty, normals=True)
    assert float(found.alpha.abs().max()) == float(found.rgb.abs().max()) == float(found.depth.abs().max()) == 0
    assert found.normals is not None and not bool(found.normals.any())


def test_a_camera_inside_the_head_and_one_that_looks_away(head: Head) -> None:
    inside = head.picture(Camera.orbit(0, 0, 16, radius=0.1))
    assert float(inside.alpha.min()) > 0.99 and bool(torch.isfinite(inside.rgb).all())
    away = Camera.orbit(0, 0, 16)
    turned = Camera(torch.diag(torch.tensor([-1.0, 1.0, -1.0])) @ away.world_to_camera, away.intrinsics, 16, 16)
    assert float(head.picture(turned).alpha.max()) == 0


def test_the_same_picture_twice(head: Head) -> None:
    camera = Camera.orbit(10, 5, 32)
    assert torch.equal(head.picture(camera).rgb, head.picture(camera).rgb)
