"""Whether ears are bare, by shape and photo, and how far down hair covers them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import pytest
import torch
from torch import Tensor

from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.ears import covered_ears
from portrait_backend.prior.hair_colour import BARE, EARS_TOP, SHORT_HAIR, hair_share
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.field import RadianceField


@dataclass
class Block:
    """A head as wide as hair makes it on its left, and as a bare head is on its right."""

    right: float = 0.21
    left: float = 0.27
    half_extent: float = 0.5
    surface_density: float = 125.0

    def density(self, points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        return 250.0 * ((x < self.left) & (x > -self.right) & (y.abs() < 0.3) & (z.abs() < 0.3))


def hair_down_to(portrait: Portrait, height: float) -> Tensor:
    """Return the pixels beside the face above a height (head units) at x = 0.22."""
    pixel = portrait.camera.project(torch.tensor([[0.22, height, 0.0]]))[0][0, 1]
    return (torch.arange(512)[:, None] < pixel).expand(512, 512)


@pytest.fixture
def wide(portrait: Portrait) -> Portrait:
    """The drawn sitter with a matte that covers everything."""
    return replace(portrait, rgba=torch.cat([portrait.rgba[..., :3], torch.ones(512, 512, 1)], -1))


@pytest.mark.parametrize("height", [0.0, -0.08])
def test_hair_covers_the_ear_as_far_down_as_the_photo_shows_it(wide: Portrait, height: float) -> None:
    right, left = covered_ears(cast(RadianceField, Block()), wide, hair_down_to(wide, height))
    assert right == EARS_TOP, "the shape shows this one bare"
    assert left == pytest.approx(height, abs=0.025)


def test_no_hair_and_nothing_but_hair(wide: Portrait) -> None:
    both = cast(RadianceField, Block(right=0.27))
    assert covered_ears(both, wide, torch.zeros(512, 512, dtype=torch.bool)) == BARE
    assert covered_ears(both, wide, torch.ones(512, 512, dtype=torch.bool)) == pytest.approx((SHORT_HAIR, SHORT_HAIR))


def test_the_side_that_the_photo_does_not_show_is_as_the_other(wide: Portrait) -> None:
    turned = replace(wide, camera=Camera.orbit(40, 0, 512), yaw=40.0)
    right, left = covered_ears(cast(RadianceField, Block()), turned, hair_down_to(turned, 0.0))
    assert right == left < 0.05


def test_a_covered_ear_is_hair_and_the_cheek_before_it_is_not() -> None:
    ear, lobe, cheek = (torch.tensor([[side * 0.22, y, z]]) for side, y, z in ((1, 0.0, 0.0), (1, -0.1, 0.0), (1, 0.0, 0.15)))
    points = torch.cat([ear, -ear, lobe, cheek])
    assert hair_share(points, (EARS_TOP, -0.05)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert hair_share(points).tolist() == [0.0, 0.0, 0.0, 0.0]
