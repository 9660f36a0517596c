"""Noise that is carried stays white and of unit variance; gradients cost one render; what agrees is retained."""

from __future__ import annotations

import math

import pytest
import torch

from portrait_backend.radiance.cameras import Camera
from portrait_backend.refinement.noise_resampling import (
    Aggregate,
    anchor_noise,
    consistency,
    image_gradients,
    resample,
    retain,
)
from tests.geometry.spheres import view_of

WIDTH, CHANNELS = 64, 96


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlation(noise: torch.Tensor, where: torch.Tensor) -> float:
    """The larger of the correlations with the right and the lower neighbour over a region (h, w)."""
    pairs = [
        (noise[..., :, 1:], noise[..., :, :-1], where[:, 1:] & where[:, :-1]),
        (noise[..., 1:, :], noise[..., :-1, :], where[1:] & where[:-1]),
    ]
    return max(abs(float((a * b)[..., w].mean())) for a, b, w in pairs)


@pytest.mark.parametrize("azimuth", [10.0, 30.0, 60.0])
def test_carried_noise_is_white_and_of_unit_variance(azimuth: float) -> None:
    (driver, _), (target, _) = view_of(Camera.orbit(0, 0, 256)), view_of(Camera.orbit(azimuth, 0, 256))
    noise = torch.randn(1, CHANNELS, WIDTH, WIDTH, generator=generator())
    anchor = anchor_noise(noise, driver, target, generator(1))
    sphere = target.shrunk(WIDTH).depth[0] > 0
    for region in (sphere, torch.ones_like(sphere)):
        assert abs(float(anchor[..., region].var()) - 1) < 0.02
        assert abs(float(anchor[..., region].mean())) < 0.01
        assert correlation(anchor, region) < 0.02


@pytest.mark.parametrize(("azimuth", "least"), [(10.0, 0.75), (30.0, 0.5)])
def test_carried_noise_is_the_drivers_where_both_see(azimuth: float, least: float) -> None:
    (driver, _), (target, _) = view_of(Camera.orbit(0, 0, 256)), view_of(Camera.orbit(azimuth, 0, 256))
    noise = torch.randn(1, CHANNELS, WIDTH, WIDTH, generator=generator())
    anchors = [anchor_noise(noise, driver, target, generator(seed)) for seed in (1, 2)]
    same = (anchors[0] == anchors[1]).all(1)[0]
    sphere = target.shrunk(WIDTH).depth[0] > 0
    assert float(same[sphere].float().mean()) > least
    assert not same[~sphere].any(), "the voids are fresh"
    # each carried value is a sum of driver values over sqrt(count): look one up where exactly one point fell
    row, column = (int(x) for x in (same & sphere).nonzero()[len((same & sphere).nonzero()) // 2])
    value = anchors[0][0, :, row, column]
    distances = (noise[0] - value[:, None, None]).abs().amax(0)
    pairs = float(distances.min())
    assert pairs < 1e-6 or float((noise[0] * value[:, None, None]).mean(0).max()) > 0.5


def test_composited_noise_would_fail_the_same_test() -> None:
    from portrait_backend.geometry.reprojection import reproject

    (driver, _), (target, _) = view_of(Camera.orbit(0, 0, 256)), view_of(Camera.orbit(30, 0, 256))
    noise = torch.randn(1, CHANNELS, WIDTH, WIDTH, generator=generator())
    warped, mask = reproject(noise, driver, target, method="splat", radius=1.5)
    region = mask[0, 0] > 0
    assert float(warped[..., region].var()) < 0.7 or correlation(warped, region) > 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.9])
def test_resampling_keeps_unit_variance_and_the_share_of_the_anchor(sigma: float) -> None:
    anchor = torch.randn(1, 4, 256, 256, generator=generator())
    noise = resample(anchor, sigma, generator(1))
    assert abs(float(noise.var()) - 1) < 0.01
    assert abs(float((noise * anchor).mean()) - math.sqrt(1 - sigma**2)) < 0.01


def test_resampling_by_nothing_is_the_anchor_and_by_one_is_new() -> None:
    anchor = torch.randn(1, 4, 64, 64, generator=generator())
    assert resample(anchor, 0, generator(1)) is anchor
    assert abs(float((resample(anchor, 1, generator(1)) * anchor).mean())) < 0.03
    with pytest.raises(ValueError, match=r"1\.5"):
        resample(anchor, 1.5, generator())


def test_two_gradients_come_from_one_render_and_are_those_of_the_loss() -> None:
    weights = [torch.randn(5, requires_grad=True), torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)]
    calls = []

    def render() -> torch.Tensor:
        calls.append(1)
        return torch.outer(weights[0].sin(), weights[1]).exp()

    targets = [torch.randn(5, 3, generator=generator(k)) for k in range(2)]
    found = image_gradients(render(), targets, weights)
    assert len(calls) == 1
    for target, gradient in zip(targets, found, strict=True):
        expected = torch.autograd.grad(0.5 * (render() - target).pow(2).mean(), weights[:2])
        for a, b in zip(gradient, expected, strict=False):
            torch.testing.assert_close(a, b)
        assert (gradient[2] == 0).all(), "what the render doesn't reach"


def test_the_cosine_runs_over_all_parameters() -> None:
    a = (torch.tensor([1.0, 0.0]), torch.tensor([2.0]))
    assert consistency(a, a) == pytest.approx(1)
    assert consistency(a, tuple(-x for x in a)) == pytest.approx(-1)
    assert consistency(a, (torch.tensor([0.0, 5.0]), torch.tensor([0.0]))) == 0
    assert consistency(a, (torch.tensor([3.0, 0.0]), torch.tensor([0.0]))) == pytest.approx(1 / math.sqrt(5))
    assert consistency(a, (torch.zeros(2), torch.zeros(1))) == 0


def test_the_gradient_that_agrees_better_with_the_drivers_is_kept() -> None:
    driver = (torch.tensor([1.0, 0.0]),)
    along, across = (torch.tensor([2.0, 0.1]),), (torch.tensor([0.1, 2.0]),)
    kept = retain(along, across, driver)
    assert kept.new and kept.gradient is along and kept.cosine_new > kept.cosine_previous
    kept = retain(across, along, driver)
    assert not kept.new and kept.gradient is along
    assert retain(across, None, driver).new, "nothing to compare with in the first round"


def test_psi_descends_on_the_sum_of_the_gradients() -> None:
    psi = torch.tensor([1.0, 1.0], requires_grad=True)
    total = Aggregate([psi])
    total.add((torch.tensor([1.0, 0.0]),))
    total.add((torch.tensor([0.0, 2.0]),), weight=0.5)
    total.step(torch.optim.SGD([psi], lr=0.25))
    torch.testing.assert_close(psi.detach(), torch.tensor([0.75, 0.75]))
