"""What the cleaning of the prior's shape keeps and what it takes away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.clean_shape import RESOLUTION, TWO_CELLS, _ball, bare_ears, clean_occupancy, dilated, distance_at, eroded
from portrait_backend.radiance.field import RadianceField

EAR, FIN = ((0.16, 0.23), (-0.09, 0.01), (0.0, 0.012)), ((-0.006, 0.006), (0.0, 0.1), (-0.34, -0.26))
"""Boxes: an ear, a centimetre long but half as thin, and a fin as thin behind the head."""


@dataclass
class Lump:
    """A head with an ear and a fin."""

    half_extent: float = 0.5
    surface_density: float = 125.0

    def density(self, points: Tensor) -> Tensor:
        solid = (points / points.new_tensor([0.17, 0.3, 0.28])).norm(dim=-1) < 1
        for box in (EAR, FIN):
            low, high = points.new_tensor(box).T
            solid |= ((points >= low) & (points <= high)).all(-1)
        return 250.0 * solid


def test_an_ear_stays_where_a_fin_as_thin_goes(portrait: Portrait) -> None:
    everything = torch.ones(512, 512)
    photo = replace(portrait, rgba=torch.cat([portrait.rgba[..., :3], everything[..., None]], -1))
    kept = clean_occupancy(cast(RadianceField, Lump()), photo) > 0.5

    def share(box: tuple[tuple[float, float], ...]) -> float:
        cells = [slice(round((low + 0.5) * RESOLUTION), round((high + 0.5) * RESOLUTION)) for low, high in box]
        return float(kept[cells[2], cells[1], cells[0]].float().mean())

    assert share(((0.185, 0.215), (-0.08, 0.0), (0.002, 0.01))) > 0.9
    assert share(((-0.004, 0.004), (0.02, 0.08), (-0.33, -0.3))) < 0.1


class Bulbs(Lump):
    """A wide body with a bulb of three centimetres at its back, and the same at the back of the head."""

    def density(self, points: Tensor) -> Tensor:
        solid = (points[:, :2].abs() < points.new_tensor([0.3, 0.5])).all(-1) & (points[:, 2].abs() < 0.2)
        for height in (0.1, -0.42):
            solid |= (points - points.new_tensor([0.0, height, -0.2])).norm(dim=-1) < 0.04
        return 250.0 * solid


def test_clothes_have_no_bulbs(portrait: Portrait) -> None:
    everything = torch.ones(512, 512)
    photo = replace(portrait, rgba=torch.cat([portrait.rgba[..., :3], everything[..., None]], -1))
    kept = clean_occupancy(cast(RadianceField, Bulbs()), photo) > 0.5
    middle = round(0.5 * RESOLUTION)

    def stands_off(height: float) -> float:
        column = kept[:middle, round((height + 0.5) * RESOLUTION), middle]
        return -0.2 - ((float(column.int().argmax()) + 0.5) / RESOLUTION - 0.5)

    assert stands_off(0.1) > 0.025 and stands_off(-0.42) < 0.5 * stands_off(0.1)
    assert abs(stands_off(-0.3)) < 0.02, "the body itself stays"


class Bust(Lump):
    """Shoulders that slope down to where the box cuts them, like a wedge."""

    def density(self, points: Tensor) -> Tensor:
        return 250.0 * ((points[:, 1] < -0.34 - 0.3 * points[:, 0].abs()) & (points[:, 2].abs() < 0.15))


def test_shoulders_go_on_to_the_edge_of_the_box(portrait: Portrait) -> None:
    everything = torch.ones(512, 512)
    photo = replace(portrait, rgba=torch.cat([portrait.rgba[..., :3], everything[..., None]], -1), valid=torch.zeros(512, 512))
    kept = clean_occupancy(cast(RadianceField, Bust()), photo)[RESOLUTION // 2] > 0.5
    width = kept[0].nonzero()[:, 0]
    assert float(width.max() - width.min() + 1) / RESOLUTION > 0.93, "at the floor"
    assert (float(kept[:, RESOLUTION // 2].sum()) / RESOLUTION) == pytest.approx(0.16, abs=0.02), "in the middle"


def test_ears_under_hair_are_none() -> None:
    axis = ((torch.arange(64) + 0.5) / 64 * 2 - 1) * 0.5
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    wide = (x.abs() < torch.where(x > 0, 0.27, 0.21)) & (y.abs() < 0.3) & (z.abs() < 0.3)
    ears = bare_ears(points, wide.numpy())
    at = ((torch.tensor([0.2, -0.04, 0.0]) + 0.5) * 64).long()
    assert ears[at[2], at[1], at[0]] == 0 and ears[at[2], at[1], 63 - at[0]] == 1


@pytest.mark.parametrize("shape", [_ball(1), _ball(3), TWO_CELLS], ids=["ball 1", "ball 3", "two cells"])
@pytest.mark.parametrize("outside", [False, True])
def test_widening_and_thinning_are_those_of_scipy(shape: np.ndarray, outside: bool) -> None:
    cells = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 24, 18)), 1.5) > 0.05
    assert 0.05 < cells.mean() < 0.95
    assert (dilated(cells, shape, outside) == ndimage.binary_dilation(cells, shape, border_value=outside)).all()
    assert (eroded(cells, shape, outside) == ndimage.binary_erosion(cells, shape, border_value=outside)).all()


def test_distances_to_a_solid_are_those_of_scipy_where_they_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    solid = ndimage.gaussian_filter(rng.normal(size=(20, 24, 18)), 2.0) > 0.15
    asked = ~solid & (rng.random(solid.shape) < 0.3)
    known = ndimage.distance_transform_edt(~solid)
    reach = float(np.quantile(known[asked], 0.7))
    found = distance_at(solid, asked, reach)
    near = asked & (known <= reach)
    assert 0.5 < near.sum() / asked.sum() < 0.9
    np.testing.assert_allclose(found[near], known[near])
    assert np.isinf(found[~near]).all()
    assert np.isinf(distance_at(np.zeros_like(solid), asked, reach)).all()
