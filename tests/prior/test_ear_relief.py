"""The folds of ears: where a head has a bare ear, as the shipped model knows them, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from portrait_backend.prior.ear_relief import EarRelief, blurred, load_ear_model
from portrait_backend.prior.hair_colour import BARE, EARS_TOP, SHORT_HAIR
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head

SKIN = torch.tensor([[0.8, 0.6, 0.5]]).repeat(100, 1)
WALL, DOWN = 0.16, 0.01


def plain_ear(points: Tensor) -> Tensor:
    """How far from the middle plane a head's side is at points (N, 3): a wall with the usual ear without its folds, `DOWN` too low."""
    model = load_ear_model()
    height = model.height - model.height.median()
    kernel = torch.ones(1, 1, 17, 17) / 289
    smooth = torch.nn.functional.conv2d(torch.nn.functional.pad(height[None, None], (8,) * 4, mode="replicate"), kernel)
    return WALL + _at(smooth[0, 0], points)


@pytest.fixture(scope="module")
def head() -> Head:
    """A head whose lattice says that both sides have such an ear."""
    made = replace(ellipsoid_head((0.27, 0.36, 0.3), channels=8, hidden=16, size=32), _made={})
    n, half = 192, made.half_extent
    at = ((torch.arange(n) + 0.5) / n * 2 - 1) * half
    z, y, x = torch.meshgrid(at, at, at, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    below = plain_ear(points) - points[:, 0].abs()
    density = made.surface_density * (1 + below / (2 * half / n)).clamp(0, 2)
    grid = DensityGrid.from_values(density.view(n, n, n), half)
    object.__setattr__(made, "density_grid", lambda: grid)
    return made


def side_surface(sign: float = 1.0) -> Tensor:
    """Points (N, 3) of the head's side around the ear."""
    y, z = torch.meshgrid(torch.linspace(-0.12, 0.06, 91), torch.linspace(-0.08, 0.1, 91), indexing="ij")
    points = torch.stack([torch.zeros_like(y), y, z], -1).reshape(-1, 3)
    points[:, 0] = sign * plain_ear(points)
    return points


def test_a_plain_ear_gets_folds_and_keeps_its_outline(head: Head) -> None:
    relief = EarRelief(head, BARE, SKIN)
    for sign in (1.0, -1.0):
        before = side_surface(sign)
        after = torch.from_numpy(relief.moved(before.double().numpy())).float()
        out = sign * (after - before)[:, 0]
        assert torch.equal(after[:, 1:], before[:, 1:])
        assert 0.003 < float(out.abs().max()) < 0.03
        rows = [(sign * x[:, 0]).view(91, 91).amax(1) for x in (before, after)]
        assert float((rows[1] - rows[0]).max()) < 0.005, "from the front the ear stands off as before"
        alike = [folds_alike(sign * points[:, 0], _fine_ear(before), _share(before)) for points in (before, after)]
        assert alike[1] > 0.85 and alike[1] > alike[0]


def folds_alike(one: Tensor, other: Tensor, share: Tensor) -> float:
    """Correlation of two surfaces (91^2,) without their broad forms, in the ear's middle."""
    ear = share > 0.9
    details = [(surface.view(91, 91) - blurred(surface.view(91, 91), 8)).reshape(-1)[ear] for surface in (one, other)]
    return float(torch.corrcoef(torch.stack(details))[0, 1])


def _fine_ear(points: Tensor, down: float = DOWN) -> Tensor:
    model = load_ear_model()
    return WALL + _at(model.height - model.height.median(), points, down)


def _share(points: Tensor, down: float = DOWN) -> Tensor:
    return _at(load_ear_model().share, points, down)


def _at(values: Tensor, points: Tensor, down: float = DOWN) -> Tensor:
    model = load_ear_model()
    texel = (model.corner - points[:, 1:] - torch.tensor([down, 0.0])) / model.step
    at = ((texel.flip(-1) + 0.5) / len(values) * 2 - 1)[None, None]
    return torch.nn.functional.grid_sample(values[None, None], at, align_corners=False, padding_mode="border")[0, 0, 0]


def test_colours_are_looked_up_where_the_surface_was(head: Head) -> None:
    relief, before = EarRelief(head, BARE, SKIN), side_surface()
    before[:, 0] -= 0.008  # where the texture reads
    there_and_back = relief.unmoved(torch.from_numpy(relief.moved(before.double().numpy())).float())
    torch.testing.assert_close(there_and_back, before, atol=2e-3, rtol=0)


def test_the_hollow_is_darker_than_the_rim_and_other_places_stay(head: Head) -> None:
    relief, points = EarRelief(head, BARE, SKIN), side_surface()
    points[:, 0] -= 0.008
    factors = relief.factors(points, SKIN[:1].expand(len(points), 3))
    assert float(factors.min()) < 0.75 and 1 < float(factors.max()) < 1.1
    assert float((factors[_share(points) < 1e-3] - 1).abs().max()) < 0.02
    darkest = points[factors.argmin()]
    assert _fine_ear(darkest[None]).item() < WALL + 0.01, "the darkest place is the hollow"
    blue = torch.tensor([0.1, 0.2, 0.8]).expand(len(points), 3)
    assert torch.equal(relief.factors(points, blue), torch.ones(len(points))), "what hangs over an ear is not its skin"
    inner = points - torch.tensor([0.08, 0.0, 0.0])
    assert np.array_equal(relief.moved(inner.double().numpy()), inner.double().numpy())


def test_hair_over_an_ear_hides_its_folds(head: Head) -> None:
    points = side_surface().double().numpy()
    hidden = EarRelief(head, (EARS_TOP, SHORT_HAIR), SKIN)  # the left one
    assert np.array_equal(hidden.moved(points), points)
    mirrored = points * [-1, 1, 1]
    assert not np.array_equal(hidden.moved(mirrored), mirrored)
    half = EarRelief(head, (SHORT_HAIR, -0.03), SKIN)
    change = np.abs(half.moved(points) - points).max(1)
    assert change[points[:, 1] > -0.03].max() < 1e-4 and change[points[:, 1] < -0.06].max() > 1e-3


def test_a_flat_side_gets_the_usual_ear_at_its_usual_place() -> None:
    flat = ellipsoid_head((0.19, 0.36, 0.3), channels=8, hidden=16, size=32)
    points = side_surface()
    points[:, 0] = 0.19 * (1 - (points[:, 1] / 0.36) ** 2 - (points[:, 2] / 0.3) ** 2).sqrt()
    moved = torch.from_numpy(EarRelief(flat, BARE, SKIN).moved(points.double().numpy())).float()
    assert folds_alike(moved[:, 0], _fine_ear(points, 0.0), _share(points, 0.0)) > 0.6
