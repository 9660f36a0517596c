"""The photo fit on the shipped network and a portrait rendered from a known head."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.context import Cancelled, Context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.fit import around, without_floaters
from portrait_backend.prior.starter import StarterPrior, encoder_input, predict_head, starter_network
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_shared.settings import PriorSettings


def context(seed: int = 0, cancel_after: int | None = None) -> Context:
    count = iter(range(10**6))
    stop = None if cancel_after is None else lambda: next(count) >= cancel_after
    return Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(seed), None, stop)


def reference_error(head: object, portrait: Portrait) -> tuple[float, float]:
    out = head.render(portrait.camera, 96)  # type: ignore[attr-defined]
    small = torch.nn.functional.interpolate(portrait.rgba.permute(2, 0, 1)[None], size=96, mode="area")[0].permute(1, 2, 0)
    solid = (small[..., 3] > 0.99) & (out.alpha > 0.9)
    colour = float((out.rgb - small[..., :3]).abs()[solid].mean())
    both, either = ((out.alpha > 0.5) & (small[..., 3] > 0.5)).sum(), ((out.alpha > 0.5) | (small[..., 3] > 0.5)).sum()
    return colour, float(both / either)


def test_the_encoder_input_is_grey_where_there_is_nobody(portrait: Portrait) -> None:
    x = encoder_input(portrait.rgba)
    assert x.shape == (1, 4, 128, 128)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([0.5, 0.5, 0.5, 0.0]))


def test_the_fit_brings_the_reference_view_to_the_photo(portrait: Portrait) -> None:
    with torch.no_grad():
        before = predict_head(starter_network(), portrait)
        colour_before, _ = reference_error(before, portrait)
    fitted = StarterPrior().initialise(portrait, PriorSettings(fit_steps=20), context())
    with torch.no_grad():
        colour, iou = reference_error(fitted, portrait)
    assert colour < 0.75 * colour_before
    assert iou > 0.9


def test_there_is_no_haze_away_from_the_cleaned_shape(portrait: Portrait) -> None:
    with torch.no_grad():
        before = predict_head(starter_network(), portrait)
    after = StarterPrior().initialise(portrait, PriorSettings(fit_steps=2), context())
    assert before.region is None and after.region is not None
    share = (after.density_grid(64).values / (2 * after.surface_density)) > 0.5
    far = ~around(share.float(), 4)
    left, haze = (float(head.density_grid(64).values[far].max()) for head in (after, before))
    assert haze > 1 and left < 1e-6, f"the network alone leaves {haze:g}, the fit {left:g}"


def test_what_floats_beside_the_head_is_left_out() -> None:
    whole = ellipsoid_head(size=32)
    assert without_floaters(whole) is whole
    cells = torch.ones(64, 64, 64, dtype=torch.bool)
    cells[:, :, 38:46] = False  # x from .09 to .22: a gap that parts the ellipsoid's end from the rest
    parted = whole.within(cells)
    kept = without_floaters(parted)
    at = torch.tensor([[0.0, 0.0, 0.0], [0.245, 0.0, 0.0], [-0.245, 0.0, 0.0]])
    before, after = parted.density(at), kept.density(at)
    assert (before > whole.surface_density).all(), "matter in the middle and at both ends"
    assert after[0] == before[0] and after[2] == before[2] and after[1] == 0


def test_the_same_seed_gives_the_same_planes_and_another_does_not(portrait: Portrait) -> None:
    runs = [StarterPrior().initialise(portrait, PriorSettings(fit_steps=3), context(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].geometry.planes, runs[1].geometry.planes) and torch.equal(
        runs[0].appearance.planes, runs[1].appearance.planes
    )
    assert not torch.equal(runs[0].appearance.planes, runs[2].appearance.planes)


def test_the_shape_stays_when_only_colour_is_fitted(portrait: Portrait) -> None:
    with torch.no_grad():
        before = predict_head(starter_network(), portrait)
    after = StarterPrior().initialise(portrait, PriorSettings(fit_steps=3, fit_shape=False), context())
    assert torch.equal(before.geometry.planes, after.geometry.planes)
    assert not torch.equal(before.appearance.planes, after.appearance.planes)


def test_cancel_stops_the_fit(portrait: Portrait) -> None:
    with pytest.raises(Cancelled):
        StarterPrior().initialise(portrait, PriorSettings(fit_steps=50), context(cancel_after=2))
