"""Painting: the photo's rays are coloured where pictures are, and regression brings a head to the colours that it shall have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from portrait_backend.painting.regression import Targets, photo_rays, regress, seen_points
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head
from tests.drawn_portraits import portrait_of


@pytest.fixture(scope="module")
def head() -> Head:
    return ellipsoid_head(depth=2, size=32)


def test_the_rays_show_what_a_picture_shows(head: Head) -> None:
    portrait = portrait_of(head, 512, azimuth=20)
    rays, pixel = photo_rays(portrait, head.picture_lattice())
    assert len(pixel) > 1000
    assert ((pixel + pixel // 512) % 2 == 0).all(), "every other pixel"
    some = slice(0, None, max(len(pixel) // 2000, 1))
    with torch.no_grad():
        colour = head.values(rays.points[some].reshape(-1, 3)).view(-1, rays.points.shape[1], 3)
    picture = head.picture(portrait.camera)
    torch.testing.assert_close(rays.weight.sum(-1), picture.alpha.flatten()[pixel])
    shown = (colour * rays.weight[some, :, None]).sum(1)
    torch.testing.assert_close(shown, picture.rgb.reshape(-1, 3)[pixel[some]], atol=1e-5, rtol=0)


def test_regression_meets_rays_and_points(head: Head) -> None:
    """The photo turns green in front; what lies behind shall keep its colours."""
    portrait = portrait_of(head, 256)
    green = torch.tensor([0.2, 0.7, 0.3])
    portrait = replace(portrait, rgba=torch.cat([green.expand(256, 256, 3), portrait.rgba[..., 3:]], -1))
    rays, pixel = photo_rays(portrait, head.picture_lattice())
    behind = seen_points(*photo_rays(portrait_of(head, 256, azimuth=180), head.picture_lattice()), portrait, torch.ones(256, 256))
    own = head.colour(behind.position)
    targets = Targets(rays, green * rays.weight.sum(-1)[:, None], behind, own)
    errors: list[float] = []
    painted = regress(head, targets, 100, torch.Generator().manual_seed(0), lambda step, error: errors.append(error))
    assert len(errors) == 100 and errors[-1] < 0.3 * errors[0]
    assert painted.geometry is head.geometry
    seen = seen_points(rays, pixel, portrait, torch.ones(256, 256))
    before, after = (float((h.colour(seen.position) - green).abs().mean()) for h in (head, painted))
    assert after < 0.35 * before and before > 0.1
    assert float((painted.colour(behind.position) - own).abs().mean()) < 0.3 * before
