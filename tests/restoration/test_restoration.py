"""Stage 2 on heads and diffusion priors that are known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from portrait_backend.context import Cancelled, Context, Progress
from portrait_backend.diffusion.condition import ConditionEncoder, Domain
from portrait_backend.diffusion.denoiser import STARTER_SCHEDULE, Denoiser
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.super_resolution import SuperResolution
from portrait_backend.radiance.triplane import STARTER_AXES, Axes
from portrait_backend.restoration.detail_unet import (
    Across,
    DetailPreservationUNet,
    DetailUNetConfig,
    config_for,
    load_detail_unet,
    save_detail_unet,
)
from portrait_backend.restoration.field import RestoredField
from portrait_backend.restoration.fit import RestorationDiverged, restore
from portrait_backend.restoration.guide import DiffusionPrior
from portrait_backend.restoration.losses import opaque_loss, sparsity_loss, variation_loss
from portrait_backend.restoration.settle import former_places, settle
from portrait_backend.restoration.views import clean_normals, draw_angles, matched_colours, render_view
from portrait_backend.training.phi_trainer import mirrored
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import RestorationSettings
from tests.drawn_portraits import portrait_of

SIZE = 32


def solid(radii: tuple[float, float, float], seed: int = 0) -> Head:
    return ellipsoid_head(radii, channels=8, hidden=16, size=32, seed=seed)


@pytest.fixture(scope="module")
def truth() -> Head:
    return solid((0.27, 0.36, 0.36))


@pytest.fixture(scope="module")
def flat() -> Head:
    """The truth seen from the front, but too flat behind and before."""
    return solid((0.27, 0.36, 0.24))


def context(seed: int = 0, cancel_after: int | None = None, log: list[Progress] | None = None) -> Context:
    count = iter(range(10**6))
    stop = None if cancel_after is None else lambda: next(count) >= cancel_after
    return Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(seed), None if log is None else log.append, stop)


class PixelCodec(nn.Module):
    """Latents are the pixels."""

    factor, channels = 1, 3

    def encode(self, rgb: Tensor) -> Tensor:
        return rgb * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents + 1) / 2


class AngleCondition(ConditionEncoder):
    """Tokens that say the view and the domain plainly."""

    width = 3

    def encode(
        self, azimuth: Tensor, elevation: Tensor, domain: Domain | Sequence[Domain] = "rgb", reference: Tensor | None = None
    ) -> Tensor:
        assert reference is not None and reference.shape[1] == 4
        return torch.tensor([[[float(azimuth[0]), float(elevation[0]), float(domain == "normal")]]])

    def null(self, batch: int) -> Tensor:
        return torch.full((batch, 1, 3), torch.nan)


class OracleUNet(nn.Module):
    """Knows the true head: whatever is noisy, it sees the truth behind it. Without a condition it believes its input."""

    def __init__(self, truth: Head, broken_after: int = 10**6) -> None:
        super().__init__()
        self.truth, self.calls, self.broken_after = truth, 0, broken_after
        self.config, self.dtype = {"cross_attention_dim": 3, "in_channels": 3}, torch.float32
        self.alphas = DDIMScheduler(**STARTER_SCHEDULE).alphas_cumprod

    def forward(self, z_t: Tensor, t: Tensor, condition: Tensor) -> SimpleNamespace:
        self.calls += 1
        if self.calls > self.broken_after:
            return SimpleNamespace(sample=torch.full_like(z_t, torch.nan))
        a = self.alphas[t].view(-1, 1, 1, 1)
        found = []
        for row, (azimuth, elevation, normal) in enumerate(condition[:, 0].tolist()):
            if azimuth != azimuth:
                found.append(z_t[row : row + 1] * a[row].sqrt())
                continue
            view = render_view(self.truth, azimuth, elevation, SIZE, self.truth.density_grid(), 256)
            found.append((view.normal if normal else view.rgb) * 2 - 1)
        return SimpleNamespace(sample=(z_t - a.sqrt() * torch.cat(found)) / (1 - a).sqrt())


def oracle(truth: Head, broken_after: int = 10**6) -> DiffusionPrior:
    scheduler = DDIMScheduler(**STARTER_SCHEDULE | {"prediction_type": "epsilon"})
    denoiser = Denoiser(OracleUNet(truth, broken_after), scheduler, AngleCondition())  # type: ignore[arg-type]
    return DiffusionPrior(PixelCodec(), {"rgb": denoiser, "normal": denoiser}, SIZE)  # type: ignore[arg-type]


def side_error(head: Head, truth: Head) -> float:
    """Mean difference of the mattes from the side."""
    camera = Camera.orbit(90, 0, 64)
    with torch.no_grad():
        return float((head.render(camera).alpha - truth.render(camera).alpha).abs().mean())


def test_step_zero_is_exactly_the_prior(flat: Head) -> None:
    phi = DetailPreservationUNet(config_for(flat))
    again = RestoredField(flat, phi).merged()
    assert torch.equal(again.geometry.planes, flat.geometry.planes) and again.appearance is again.geometry
    own_colour = flat.with_planes(
        appearance=flat.geometry.with_planes(flat.geometry.planes.repeat_interleave(2, 3).repeat_interleave(2, 4))
    )
    phi = DetailPreservationUNet(config_for(own_colour))
    again = RestoredField(own_colour, phi, autocast=True).merged()
    assert torch.equal(again.geometry.planes, own_colour.geometry.planes)
    assert torch.equal(again.appearance.planes, own_colour.appearance.planes)
    with torch.no_grad():
        for parameter in phi.out.parameters():
            parameter.fill_(0.1)
    changed = RestoredField(own_colour, phi).merged()
    assert not torch.equal(changed.geometry.planes, flat.geometry.planes)
    assert changed.appearance.planes.shape[3] == 64


def test_the_shape_changes_behind_and_below_and_elsewhere_by_the_share_that_is_wanted(flat: Head) -> None:
    phi = DetailPreservationUNet(config_for(flat))
    with torch.no_grad():
        for parameter in phi.out.parameters():
            parameter.fill_(0.1)
    points = torch.tensor([[0.0, 0.1, 0.3], [0.1, 0.0, 0.2], [0.0, 0.1, -0.3], [0.0, -0.3, 0.3]])
    before, everywhere = flat.geometry.sample(points), RestoredField(flat, phi).merged().geometry.sample(points)
    for front in (0.0, 0.5):
        changed = RestoredField(flat, phi, front=front).merged().geometry.sample(points) - before
        share = changed.norm(dim=1) / (everywhere - before).norm(dim=1)
        assert share[:2].tolist() == pytest.approx([front, front], abs=0.02), "the photo looks there"
        assert (share[2:] > front + 0.5 * (1 - front)).all(), "two of the three planes know what is behind or below"
        assert share.max() < 1.01


@pytest.mark.parametrize("own_colour", [False, True])
def test_a_mirrored_head_gets_the_mirrored_residual(flat: Head, own_colour: bool) -> None:
    """Of random planes, a random phi's answer to one alone is no mirror of its answer to the other; the mean is."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(flat.geometry.planes.shape, generator=generator)
    geometry = flat.geometry.with_planes(noise)
    colour = geometry.with_planes(torch.randn(noise.shape, generator=generator)) if own_colour else geometry
    head = flat.with_planes(geometry=geometry, appearance=colour)
    phi = DetailPreservationUNet(config_for(head))
    nn.init.normal_(phi.out.weight, std=0.1)
    twin = mirrored(head)
    points = torch.rand(500, 3, generator=generator) * 0.8 - 0.4
    for both, alike in ((True, True), (False, False)):
        one, other = (RestoredField(x, phi, mirrored=both) for x in (head, twin))
        decoded = [field.decode(at)[1] for field, at in ((one, points), (other, points * torch.tensor([-1.0, 1.0, 1.0])))]
        raw = [field.raw(at) for field, at in ((one, points), (other, points * torch.tensor([-1.0, 1.0, 1.0])))]
        assert torch.allclose(*decoded, atol=1e-3) == alike and torch.allclose(*raw, atol=1e-3) == alike


def test_no_steps_give_the_prior_back(flat: Head) -> None:
    result = restore(flat, portrait_of(flat), RestorationSettings(steps=0), context(), phi=DetailPreservationUNet(config_for(flat)))
    assert torch.equal(result.geometry.planes, flat.geometry.planes) and result.meta["restored"]


def test_phi_names_what_does_not_fit(flat: Head, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the head has planes of 8"):
        RestoredField(flat, DetailPreservationUNet(DetailUNetConfig(channels=16)))
    for sides in ((30, 30), (16, 32)):
        with pytest.raises(ValueError, match="S divisible by 8"):
            DetailPreservationUNet(DetailUNetConfig(channels=8))(torch.zeros(3, 8, *sides))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(PortraitDiffusionError) as caught:
        load_detail_unet(tmp_path / "x.safetensors")
    assert caught.value.code == "weights-unreadable"


EG3D_AXES = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
"""(x, y | z), (y, z | x), (z, x | y)."""


@pytest.mark.parametrize("axes", [STARTER_AXES, EG3D_AXES])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_tell_one_another_along_the_axis_they_share(axes: Axes, axis: int) -> None:
    across = Across(8, axes)
    with torch.no_grad():
        for along in across.along:
            nn.init.dirac_(along.weight)
            nn.init.zeros_(along.bias)
    k = next(k for k in range(3) if axis in axes[k][:2])
    h = torch.zeros(3, 8, 6, 6)
    where = (2, slice(None)) if axes[k].index(axis) == 1 else (slice(None), 2)
    h[(k, 0, *where)] = 1  # a slab of the box: place 2 along the axis
    for j, told in enumerate(across(h) - h):
        expected = torch.zeros(8, 6, 6)
        if j != k and axis in axes[j][:2]:
            expected[(0, 2) if axes[j].index(axis) == 1 else (0, slice(None), 2)] = 1
        other = next((a for a in axes[j][:2] if a in axes[k][:2] and a != axis), None) if j != k else None
        if other is not None:
            expected[0] += 1 / 6  # along the other axis the slab is a share of every place
        torch.testing.assert_close(told, expected)


def test_a_residual_of_half_the_texels_moves_the_shape_alike_in_field_and_head(flat: Head) -> None:
    torch.manual_seed(3)
    phi = DetailPreservationUNet(replace(config_for(flat), widths=(16, 16), groups=4)).eval()
    none = DetailPreservationUNet(config_for(flat))
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        phi.out.weight.normal_(0, 0.02)
        field = RestoredField(flat, phi)
        head = field.merged()
        before, live, merged = RestoredField(flat, none).raw(points), field.raw(points), RestoredField(head, none).raw(points)
    assert field.shape.shape[3] == flat.geometry.planes.shape[3] // 2 and head.geometry.planes.shape == flat.geometry.planes.shape
    assert float((live - merged).abs().mean()) < 0.3 * float((live - before).abs().mean())


def test_phi_is_saved_with_its_sizes(tmp_path: Path) -> None:
    phi = DetailPreservationUNet(DetailUNetConfig(channels=8, widths=(8, 16), axes=EG3D_AXES))
    with torch.no_grad():
        phi.out.weight.normal_(0, 0.1)
    save_detail_unet(phi, tmp_path / "phi.safetensors", data="none")
    again, planes = load_detail_unet(tmp_path / "phi.safetensors"), torch.rand(3, 8, 16, 16)
    assert again.config == phi.config
    torch.testing.assert_close(again(planes), phi(planes), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("azimuth", [0.0, 120.0, -90.0])
def test_a_ball_has_the_same_normal_map_from_every_side(azimuth: float) -> None:
    ball = solid((0.3, 0.3, 0.3))
    with torch.no_grad():
        view = render_view(ball, azimuth, 20.0, SIZE, ball.density_grid(), 256)
    image, mid = view.normal[0], SIZE // 2
    torch.testing.assert_close(
        image[:, mid - 1 : mid + 1, mid - 1 : mid + 1].mean((1, 2)), torch.tensor([0.5, 0.5, 1.0]), atol=0.02, rtol=0
    )
    assert image[0, mid, mid + 6] > 0.6 > 0.4 > image[0, mid, mid - 6], "x to the right"
    assert image[1, mid - 6, mid] > 0.6 > 0.4 > image[1, mid + 6, mid], "y up"
    torch.testing.assert_close(image[:, 0, 0], torch.full((3,), 0.5))
    shown, matte = clean_normals(view.normal)
    assert (matte[0, 0] - view.out.alpha).abs().mean() < 0.02 and (shown - view.normal).abs().mean() < 0.02
    soft, again = clean_normals(0.5 + 0.8 * (view.normal - 0.5))
    assert (again - matte).abs().mean() < 0.02 and (soft - view.normal).abs().mean() < 0.02, "short vectors inside are no holes"


def test_views_go_all_around_within_the_pitch() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = torch.tensor([draw_angles(k, 77.0, generator) for k in range(36)])
    azimuth = (angles[:, 0] % 360).sort().values
    gaps = torch.cat([azimuth.diff(), azimuth[:1] + 360 - azimuth[-1:]])
    assert gaps.max() < 40 and angles[:, 1].abs().max() <= 30 and angles[:, 1].abs().max() > 20


def test_colours_keep_their_pattern_and_take_the_sitters_tone() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.rand(1, 3, 16, 16, generator=generator) * s + o for s, o in ((0.2, 0.1), (0.3, 0.6)))
    matte = torch.ones(1, 1, 16, 16)
    matched = matched_colours(target, source, matte)
    torch.testing.assert_close(matched.mean((2, 3)), source.mean((2, 3)))
    torch.testing.assert_close(matched.std((2, 3)), source.std((2, 3)), rtol=0.01, atol=0)
    assert torch.corrcoef(torch.stack([matched.flatten(), target.flatten()]))[0, 1] > 0.8


def test_regularisers_at_known_values() -> None:
    assert float(opaque_loss(torch.tensor([0.5]))) == pytest.approx(0.6931, abs=1e-3)
    assert float(opaque_loss(torch.tensor([0.0, 1.0]))) < 0.01
    assert float(sparsity_loss(torch.zeros(4))) == pytest.approx(0.1)
    assert float(variation_loss(torch.full((1, 3, 1, 4, 4, 2), 3.0))) == 0
    ramp = torch.arange(4.0).view(1, 1, 1, 1, 4, 1).expand(1, 3, 1, 4, 4, 2)
    assert float(variation_loss(ramp)) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        RestorationSettings(normal_weight=20.0, learning_rate=0.0006),
        RestorationSettings(guidance="sds", normal_weight=3.0, learning_rate=0.0006),
        RestorationSettings(guidance="sds", perp_neg=True, normal_weight=3.0, guidance_scale=1.0, learning_rate=0.0006),
        RestorationSettings(guidance="interval", normal_weight=1.0, learning_rate=0.0006),
    ],
    ids=["x0", "sds", "perp-neg", "interval"],
)
def test_a_prior_that_knows_the_truth_restores_it(flat: Head, truth: Head, settings: RestorationSettings) -> None:
    settings = replace(settings, steps=25, render_size=SIZE, noise_start=0.5, front_shape=1.0)
    restored = restore(flat, portrait_of(truth), settings, context(), oracle(truth))
    assert side_error(restored, truth) < 0.6 * side_error(flat, truth)
    front = Camera.orbit(0, 0, 64)
    with torch.no_grad():
        before, after, goal = (h.render(front).alpha for h in (flat, restored, truth))
    assert (after - goal).abs().mean() < (before - goal).abs().mean() + 0.01


def test_only_phi_and_the_decoder_learn(flat: Head, truth: Head) -> None:
    network = SuperResolution()
    head = replace(flat, super_resolution=network)
    kept = [x.clone() for x in (*network.parameters(), *head.decoder.parameters(), head.geometry.planes)]
    settings = RestorationSettings(steps=2, render_size=SIZE)
    restored = restore(head, portrait_of(flat), settings, context(), oracle(truth))
    now = (*network.parameters(), *head.decoder.parameters(), head.geometry.planes)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    assert restored.super_resolution is network
    assert not torch.equal(restored.decoder.out.weight, head.decoder.out.weight)
    assert not restored.geometry.planes.requires_grad and not any(p.requires_grad for p in restored.decoder.parameters())


def test_the_same_seed_restores_the_same_head_and_reports_previews(flat: Head, truth: Head) -> None:
    log: list[Progress] = []
    settings = RestorationSettings(steps=3, settle_steps=0, render_size=SIZE)
    runs = [restore(flat, portrait_of(flat), settings, context(seed, log=log), oracle(truth)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].geometry.planes, runs[1].geometry.planes)
    assert not torch.equal(runs[0].geometry.planes, runs[2].geometry.planes)
    assert [p.step for p in log[:4]] == [0, 1, 2, 3] and all(p.steps == 4 for p in log)
    previews: list[Any] = [p.preview for p in log if p.preview is not None]
    assert previews and previews[0].shape == (SIZE, SIZE, 3) and float(previews[0].min()) >= 0 and float(previews[0].max()) <= 1
    assert {"normal", "matte", "colours", "reference"} <= set(log[1].metrics)


def test_numbers_that_are_not_finite_stop_it_with_the_last_good_head(flat: Head, truth: Head) -> None:
    settings = RestorationSettings(steps=20, render_size=SIZE)
    with pytest.raises(RestorationDiverged) as caught:
        restore(flat, portrait_of(flat), settings, context(), oracle(truth, broken_after=14))
    error = caught.value
    assert error.code == "restoration-diverged" and error.step == 7 and "step 8" in error.message
    planes = error.head.geometry.planes
    assert bool(torch.isfinite(planes).all()) and not torch.equal(planes, flat.geometry.planes)
    with torch.no_grad():
        assert bool(torch.isfinite(error.head.render(Camera.orbit(180, 0, 32)).rgb).all())


def test_cancel_stops_it(flat: Head, truth: Head) -> None:
    with pytest.raises(Cancelled):
        restore(flat, portrait_of(flat), RestorationSettings(steps=50, render_size=SIZE), context(cancel_after=2), oracle(truth))


def test_the_memory_budget_changes_nothing_but_memory(flat: Head) -> None:
    gradients = []
    for budget in (1024.0, 0.5):
        torch.manual_seed(0)
        phi = DetailPreservationUNet(config_for(flat))
        torch.nn.init.normal_(phi.out.weight, 0, 1e-3)
        view = render_view(RestoredField(flat, phi), 90, 0, SIZE, flat.density_grid(), budget)
        (view.normal.sum() + view.out.alpha.sum()).backward()
        gradients.append(phi.out.bias.grad)
    assert gradients[0] is not None and gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-2, rtol=1e-3)


def test_the_colours_are_held_at_phis_first_answer(flat: Head, truth: Head) -> None:
    phi = DetailPreservationUNet(config_for(flat))
    torch.nn.init.normal_(phi.out.weight, 0, 0.02, generator=torch.Generator().manual_seed(0))
    camera, log = Camera.orbit(120, 0, 32), list[Progress]()
    with torch.no_grad():
        moved = (RestoredField(flat, phi).merged().render(camera).rgb - flat.render(camera).rgb).abs().mean()
    restore(flat, portrait_of(flat), RestorationSettings(steps=1, render_size=SIZE), context(log=log), oracle(truth), phi)
    assert moved > 0.01 and log[1].metrics["colours"] < 0.25 * 5.0 * float(moved)


def test_places_are_carried_to_where_the_surface_was(truth: Head) -> None:
    radii = torch.tensor([0.27, 0.36, 0.36])
    outward = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    surface = outward / (outward / radii).norm(dim=1, keepdim=True)

    def off(places: Tensor) -> Tensor:
        return (places - places / (places / radii).norm(dim=1, keepdim=True)).norm(dim=1)

    for moved in (0.02, -0.02):
        found = former_places(truth, surface + moved * outward, -outward)
        assert float(off(found).mean()) < 0.003, f"moved by {moved}: {float(off(found).mean()):g}"
    far = surface + 0.08 * outward
    assert torch.equal(former_places(truth, far, -outward), far)


def test_settling_brings_the_photos_colours_back(truth: Head) -> None:
    """Stage 2 made everything paler; what the photo saw gets its colours again, what it never saw stays as stage 2 left it."""
    planes = truth.geometry
    pale = truth.with_planes(appearance=planes.with_planes(planes.planes + 0.03))
    portrait, camera = portrait_of(truth, 256), {a: Camera.orbit(a, 0, 64) for a in (0, 180)}
    log: list[Progress] = []
    settled = settle(pale, pale, portrait, 60, context(log=log), first=5, total=70)

    def difference(one: Head, other: Head, azimuth: int) -> float:
        with torch.no_grad():
            return float((one.render(camera[azimuth]).rgb - other.render(camera[azimuth]).rgb).abs().mean())

    assert difference(pale, truth, 0) > 0.002 and difference(pale, truth, 180) > 0.002, "the case is one"
    assert difference(settled, truth, 0) < 0.35 * difference(pale, truth, 0)
    assert difference(settled, pale, 180) < 0.35 * difference(pale, truth, 180)
    assert torch.equal(settled.geometry.planes, pale.geometry.planes)
    assert (log[0].step, log[-1].step, log[-1].steps) == (6, 65, 70)
    assert settle(pale, pale, portrait, 0, context(), 0, 1) is pale
