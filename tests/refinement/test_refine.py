"""Stage 3 as a whole on an analytic head with tiny real networks: what it changes, and that it can be cancelled and continued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from portrait_backend.context import Cancelled, Context, Progress
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.triplane import resize_planes
from portrait_backend.refinement import refine as module
from portrait_backend.refinement.noise_resampling import image_gradients
from portrait_backend.refinement.psi import LayeredPlane, Psi
from portrait_backend.refinement.refine import RefinedHead, refine
from portrait_backend.refinement.sampling import Refiner, detail_on, feathered, project_photo
from portrait_backend.refinement.view_ring import between, outward, view_ring
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import RefinementSettings

QUICK = RefinementSettings(
    views=5, image_size=64, texture_views=96, iterations=2, steps=1, between_views=1, settle_steps=3, learning_rate=0.02
)


def context(seed: int = 0, on_progress: Callable[[Progress], None] | None = None, stop_after: int | None = None) -> Context:
    count = iter(range(10**6))
    stop = None if stop_after is None else lambda: next(count) >= stop_after
    return Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(seed), on_progress, stop)


def stripe(head: Head, azimuth: float) -> float:
    """How red the stripe's place is in a view of the head."""
    with torch.no_grad():
        rgb = head.render(Camera.orbit(azimuth, 0, 64)).rgb
    middle = rgb[31:33, 28:36].mean((0, 1))
    return float(middle[0] - middle[1])


def planes(result: RefinedHead) -> torch.Tensor:
    return result.head.appearance.planes


def test_a_residual_beside_the_planes_is_the_one_that_the_finished_head_holds(head: Head) -> None:
    psi = Psi(head, replace(QUICK, shape_rate=0.01))
    assert psi.shape is not None
    with torch.no_grad():
        for residual in psi.parameters:  # as smooth as an optimiser's
            coarse = torch.randn(1, 3, *residual.shape[2:3], 4, 4, residual.shape[5], generator=torch.Generator().manual_seed(1))
            residual.copy_(resize_planes(0.2 * coarse, residual.shape[3]))
    points = torch.rand(3000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    live, finished = psi.head(), psi.finished()
    for name in ("geometry", "appearance"):
        before, now, merged = (getattr(h, name).sample(points).detach() for h in (head, live, finished))
        assert float((now - before).abs().mean()) > 0.05
        assert float((now - merged).abs().mean()) < 0.02 * float((now - before).abs().mean()), name
        assert not isinstance(getattr(finished, name), LayeredPlane) and not getattr(finished, name).planes.requires_grad
    live.values(points).sum().backward()
    assert psi.colour.grad is not None and float(psi.colour.grad.abs().max()) > 0 and psi.shape.grad is None
    assert head.appearance.planes.grad is None


def test_the_ring_starts_at_the_photo_and_is_driven_outward() -> None:
    reference = Camera.orbit(12, 3, 512)
    ring = view_ring(13, (5.0, -5.0), reference, 12.0, 3.0, 256)
    assert len(ring) == 13 and ring[0].camera.width == 256 and ring[0].azimuth == 12
    steps = sorted((v.azimuth - 12) % 360 for v in ring)
    assert steps == pytest.approx([k * 360 / 13 for k in range(13)])
    assert [v.driver for v in ring] == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    for view in ring[1:]:
        turn = abs((view.azimuth - ring[view.driver].azimuth + 180) % 360 - 180)
        assert turn == pytest.approx(360 / 13)
        assert view.order == ring[view.driver].order + 1
    assert {v.elevation for v in ring[1:3]} == {5.0} and {v.elevation for v in ring[3:5]} == {-5.0}
    order = outward(ring)
    assert sorted(order) == list(range(13))
    assert all(order.index(v.driver) < order.index(n) for n, v in enumerate(ring) if n)
    with pytest.raises(ValueError, match="got 0"):
        view_ring(0, (0.0,), reference, 0, 0, 64)


def test_random_views_lie_between_and_are_driven_by_the_nearest() -> None:
    ring = view_ring(13, (0.0,), Camera.orbit(0, 0, 512), 0, 0, 64)
    generator = torch.Generator().manual_seed(0)
    for view in (between(ring, 64, 15.0, generator) for _ in range(50)):
        distances = [abs((view.azimuth - v.azimuth + 180) % 360 - 180) for v in ring]
        assert distances[view.driver] == min(distances)
        assert abs(view.elevation) <= 15


@pytest.mark.parametrize("method", ["transport", "diffusion"])
def test_the_stage_runs_end_to_end_and_gives_views_for_the_bake(method: str, head: Head, portrait: Portrait, refiner: Refiner) -> None:
    reports: list[Progress] = []
    settings = replace(QUICK, method=method)
    before = head.appearance.planes.clone()
    result = refine(head, portrait, settings, context(on_progress=reports.append), refiner if method == "diffusion" else None)
    assert torch.equal(head.appearance.planes, before), "the given head stays as it was"
    assert torch.equal(result.head.geometry.planes, head.geometry.planes), "no shape rate, no new shape"
    assert torch.isfinite(planes(result)).all() and not planes(result).requires_grad
    assert not torch.equal(planes(result), before)
    assert len(result.views) == 4
    for view in result.views:
        assert view.image.shape == (96, 96, 3) and view.matte.shape == view.valid.shape == (96, 96)
        assert view.image.min() >= 0 and view.image.max() <= 1
        assert view.camera.width == 96
    assert [r.steps for r in reports] == [2 * 6 + 3] * len(reports)
    assert [r.step for r in reports] == sorted(r.step for r in reports) and reports[-1].step == reports[-1].steps
    assert any(r.preview is not None and r.preview.shape == (64, 64, 3) for r in reports)


def test_transport_brings_the_photo_to_the_sides_and_not_to_the_back(head: Head, portrait: Portrait) -> None:
    settings = replace(QUICK, method="transport", iterations=1, between_views=0, settle_steps=150, views=9)
    result = refine(head, portrait, settings, context())
    for azimuth in (10, 50, -30):
        assert stripe(result.head, azimuth) > stripe(head, azimuth) + 0.3
    assert abs(stripe(result.head, 190) - stripe(head, 190)) < 0.15


def test_the_same_seed_gives_the_same_head_and_another_does_not(head: Head, portrait: Portrait, refiner: Refiner) -> None:
    quick = replace(QUICK, iterations=1)
    runs = [planes(refine(head, portrait, quick, context(seed), refiner)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_cancelling_stops_it(head: Head, portrait: Portrait, refiner: Refiner) -> None:
    with pytest.raises(Cancelled):
        refine(head, portrait, QUICK, context(stop_after=3), refiner)


def test_a_killed_run_continues_to_the_same_head(head: Head, portrait: Portrait, refiner: Refiner, tmp_path: Path) -> None:
    settings, state = replace(QUICK, iterations=3), tmp_path / "refinement.safetensors"
    whole = refine(head, portrait, settings, context(), refiner)
    with pytest.raises(Cancelled):
        refine(head, portrait, settings, context(stop_after=9), refiner, state)
    assert state.is_file()
    reports: list[Progress] = []
    resumed = refine(head, portrait, settings, context(99, reports.append), refiner, state)
    assert reports[0].step == 6, "the finished round is not done again"
    torch.testing.assert_close(planes(resumed), planes(whole), atol=1e-5, rtol=1e-5)
    for one, two in zip(resumed.views, whole.views, strict=True):
        torch.testing.assert_close(one.image, two.image, atol=1e-4, rtol=0)


@pytest.mark.parametrize("damage", ["settings", "photo", "file"])
def test_a_state_of_other_work_is_not_taken(damage: str, head: Head, portrait: Portrait, tmp_path: Path) -> None:
    settings, state = replace(QUICK, method="transport", iterations=1), tmp_path / "refinement.safetensors"
    refine(head, portrait, settings, context(), None, state)
    other, photo = settings, portrait
    if damage == "settings":
        other = replace(settings, noise_sigma=0.6)
    elif damage == "photo":
        photo = replace(portrait, sha256="1" * 64)
    else:
        state.write_bytes(b"broken")
    reports: list[Progress] = []
    refine(head, photo, other, context(on_progress=reports.append), None, state)
    assert reports[0].step == 0


def test_one_render_serves_two_gradients_per_view(
    head: Head, portrait: Portrait, refiner: Refiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"renders": 0, "two": 0}
    render, gradients = module.render_view, image_gradients

    def counting_render(*args: object) -> object:
        counts["renders"] += torch.is_grad_enabled()
        return render(*args)  # type: ignore[arg-type]

    def counting_gradients(image: torch.Tensor, targets: list[torch.Tensor], parameters: list[torch.Tensor]) -> object:
        counts["two"] += len(targets) == 2
        return gradients(image, targets, parameters)

    monkeypatch.setattr(module, "render_view", counting_render)
    monkeypatch.setattr(module, "image_gradients", counting_gradients)
    refine(head, portrait, replace(QUICK, between_views=0, settle_steps=0), context(), refiner)
    assert counts == {"renders": 2 * 5, "two": 4}, "the first round has no previous image to compare with"


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "fixed"},
        {"noise": "random", "explicit_scale": 0.2},
        {"geometry_condition": False, "implicit_branch": False},
        {"implicit_branch": False},
        {"literal_implicit": True},
        {"warp": "splat"},
        {"tones": "denoiser", "keep_photo": False},
        {"shape_rate": 0.001, "swing": 10.0},
    ],
)
def test_every_ablation_runs(changes: dict[str, object], head: Head, portrait: Portrait, refiner: Refiner) -> None:
    result = refine(head, portrait, replace(QUICK, iterations=1, views=3, settle_steps=0, **changes), context(), refiner)
    assert torch.isfinite(planes(result)).all()
    assert torch.equal(result.head.geometry.planes, head.geometry.planes) == ("shape_rate" not in changes)


def test_without_optimisation_the_images_are_brought_in_at_the_end_only(head: Head, portrait: Portrait, refiner: Refiner) -> None:
    result = refine(head, portrait, replace(QUICK, optimise=False, settle_steps=0), context(), refiner)
    assert torch.equal(planes(result), head.appearance.planes) and len(result.views) == 4
    settled = refine(head, portrait, replace(QUICK, optimise=False), context(), refiner)
    assert not torch.equal(planes(settled), head.appearance.planes)
    nothing = refine(head, portrait, replace(QUICK, iterations=0), context(), None)
    assert torch.equal(planes(nothing), head.appearance.planes) and not nothing.views


def test_missing_weights_are_said(head: Head, portrait: Portrait, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("portrait_backend.models.STARTER", tmp_path)
    with pytest.raises(PortraitDiffusionError) as caught:
        refine(head, portrait, QUICK, context())
    assert caught.value.code == "weights-missing"


def test_the_photo_reaches_a_view_in_one_step_and_counts_less_where_it_looks_askew(head: Head, portrait: Portrait) -> None:
    work = module._Refinement(head, portrait, replace(QUICK, image_size=128, views=13), context(), None, None)
    work._reference()
    assert work.front is not None
    with torch.no_grad():
        near, far = (work._render(work.ring[number]) for number in (1, 11))
    (pixels, share), (_, nothing) = project_photo(work.front, near), project_photo(work.front, far)
    assert float(nothing.max()) == 0, "at 166 degrees the photo shows nothing squarely"
    middle, solid = share[0, 0, 64], near.alpha[0, 0, 64] > 0.9
    assert bool((middle[30:70] > 0.99).all()), "what both look at squarely counts whole"
    assert bool((middle[90:] == 0).all()) and bool(solid[90:100].all()), "what the photo saw askew doesn't, although the view sees it"
    assert float(share[0, 0, 0].max()) == 0
    row = int(pixels[0, 0].sub(pixels[0, 1]).mul(share[0, 0]).sum(1).argmax())
    assert abs(row - 64) < 3, "the stripe stays at its height"


def test_detail_keeps_the_heads_tones() -> None:
    generator = torch.Generator().manual_seed(0)
    rendered = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    alpha = torch.ones(1, 1, 64, 64)
    fine = 0.1 * ((torch.arange(64) // 2 % 2) * 2.0 - 1).expand(1, 3, 64, 64)
    tint = torch.tensor([0.2, -0.1, 0.1]).view(1, 3, 1, 1)
    result = detail_on(rendered, rendered + fine + tint, alpha)
    torch.testing.assert_close(result.mean((2, 3)), rendered.mean((2, 3)), atol=0.01, rtol=0)
    torch.testing.assert_close(result[:, 0] / result[:, 1], rendered[:, 0] / rendered[:, 1], atol=1e-3, rtol=0)
    assert float(result.mean(1).std()) > 0.08, "the stripes are there"
    assert torch.allclose(detail_on(rendered, rendered + tint, alpha), rendered, atol=1e-5), "a change of tone alone is no detail"
    assert torch.isfinite(detail_on(torch.rand(1, 3, 64, 64, generator=generator), rendered, 0 * alpha)).all()
    crisp = rendered + fine
    torch.testing.assert_close(detail_on(crisp, rendered + tint, alpha), crisp, atol=1e-5, rtol=0, msg="what the denoiser blurs stays")


def test_a_mask_loses_its_border_and_its_specks() -> None:
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 40:200, 40:200] = 1
    mask[..., 220:223, 220:223] = 1
    soft = feathered(mask)
    assert soft[0, 0, 120, 120] == 1 and soft[0, 0, 120, 41] < 0.5 and float(soft[..., 210:, 210:].max()) == 0
    assert bool((soft <= mask).all())
