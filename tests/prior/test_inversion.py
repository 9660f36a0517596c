"""Inversion and tuning of a small generator: both bring the head closer to the photo, repeat, and leave the shared generator alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from portrait_backend.context import Cancelled, Context, cpu_context
from portrait_backend.models.conversion import convert_checkpoint
from portrait_backend.models.converted import converted_path
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior import create_prior, inversion, panohead, placement, prior_inputs
from portrait_backend.prior.eg3d import PlaneGenerator
from portrait_backend.prior.inversion import Inversion, invert, latent_statistics
from portrait_backend.prior.perceptual import bands, pyramid_loss
from portrait_backend.prior.placement import Placement
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PriorSettings
from tests.models.pickled_networks import network_pickle
from tests.prior.noise_heads import assert_meshes, make_solid
from tests.prior.published_names import generator, unused
from tests.prior.test_eg3d import thin
from tests.prior.test_portrait4d import Blind

PLACE = Placement(1.0, (0.0, 0.05, 0.0))
LABEL = panohead.front_camera().eg3d_label()
QUICK = PriorSettings(provider="panohead", inversion_steps=16, tuning_steps=8, compare_size=32)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small lattices and pictures: these heads have no detail."""
    monkeypatch.setattr(inversion, "GRID", 24)
    monkeypatch.setattr(placement, "PICTURE", 32)
    monkeypatch.setattr(placement, "GRID", 16)


@pytest.fixture(scope="module")
def network() -> PlaneGenerator:
    """A thin generator whose heads are solid in the middle: a head to look at."""
    network = thin("panohead", finest=16)[0]
    with torch.no_grad():
        network.decoder.layers[1].bias[0] += 25
        network.backbone.mapping.w_avg.zero_()
    return network


@pytest.fixture(scope="module")
def photo(network: PlaneGenerator) -> Portrait:
    """A photo of another head of the generator, from its own camera."""
    with torch.no_grad():
        z = torch.randn(512, generator=torch.Generator().manual_seed(11))
        out = PLACE.head(network.head(network.latent(z, LABEL, 1.0))).render(Camera.orbit(10, 5, 64))
    maps = torch.cat([out.rgb / out.alpha.clamp_min(1e-3)[..., None], out.alpha[..., None]], -1).clamp(0, 1).permute(2, 0, 1)[None]
    rgba = F.interpolate(maps, size=(512, 512), mode="bilinear")[0].permute(1, 2, 0)
    return Portrait(
        image=rgba[..., :3], rgba=rgba, valid=torch.ones(512, 512), landmarks=torch.zeros(468, 2), camera=Camera.orbit(10, 5, 512),
        coefficients=torch.zeros(25), yaw=10.0, pitch=5.0, roll=0.0, source="x", sha256="1" * 64,
    )  # fmt: skip


def run(network: PlaneGenerator, photo: Portrait, context: Context | None = None, **changes: object) -> Inversion:
    return invert(network, PLACE.head, LABEL, photo, replace(QUICK, **changes), context or cpu_context(3))  # type: ignore[arg-type]


def test_inversion_and_tuning_come_closer_to_the_photo(network: PlaneGenerator, photo: Portrait) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start = run(network, photo, inversion_steps=1, tuning_steps=0).inverted_error
    found = run(network, photo)
    assert found.inverted_error < 0.8 * start, "the latent"
    assert found.tuned_error < found.inverted_error, "the generator around it"
    assert found.latent.shape == (512,) and not found.latent.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "the shared generator stays as it was"
    assert found.generator.backbone is not network.backbone and found.generator.decoder is network.decoder
    short = [run(network, photo, inversion_steps=2, tuning_steps=1) for _ in range(2)]
    assert torch.equal(short[0].latent, short[1].latent) and short[0].tuned_error == short[1].tuned_error


def test_a_latent_per_layer(network: PlaneGenerator, photo: Portrait) -> None:
    found = run(network, photo, latent="w+", inversion_steps=3, tuning_steps=0)
    assert found.latent.shape == (network.backbone.config.styles, 512) and found.generator is network
    assert not torch.equal(found.latent[0], found.latent[1])


def test_the_mean_latent_and_the_deviation_are_those_of_random_heads(network: PlaneGenerator) -> None:
    mean, deviation = latent_statistics(network, LABEL, torch.Generator().manual_seed(0), 2000)
    z = torch.randn(500, 512, generator=torch.Generator().manual_seed(9))
    w = network.backbone.mapping(z, LABEL.expand(500, -1))
    assert float((w.mean(0) - mean).norm()) < 0.15 * deviation
    assert float((w - mean).square().sum(1).mean().sqrt()) == pytest.approx(deviation, rel=0.1)


def test_a_job_can_be_cancelled_between_two_steps(network: PlaneGenerator, photo: Portrait) -> None:
    seen: list[int] = []
    context = replace(cpu_context(), on_progress=lambda p: seen.append(p.step), cancelled=lambda: len(seen) >= 2)
    with pytest.raises(Cancelled):
        run(network, photo, context)
    assert seen == [1, 2]


def test_numbers_that_are_not_finite_are_said(network: PlaneGenerator, photo: Portrait) -> None:
    broken = replace(photo, rgba=photo.rgba.clone().fill_(float("nan")))
    with pytest.raises(PortraitDiffusionError) as caught:
        run(network, broken)
    assert caught.value.code == "inversion-diverged"


def test_the_pyramid_adds_up_to_the_picture_and_sees_what_differs() -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = bands(image)
    assert [b.shape[-1] for b in found] == [64, 32, 16]
    total = found[-1]
    for band in reversed(found[:-1]):
        total = band + F.interpolate(total, size=band.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(total, image)
    valid = torch.ones(1, 1, 64, 64)
    assert float(pyramid_loss(image, image, valid)) == 0
    grey = torch.full_like(image, 0.5)
    assert float(pyramid_loss(image, grey, valid)) > 3 * float(pyramid_loss(grey + 0.02, grey, valid)) > 0
    valid[..., 32:] = 0
    changed = image.clone()
    changed[..., 34:] = 0
    assert float(pyramid_loss(changed, image, valid)) < 0.02, "what is not valid does not count, but for the coarse bands' edge"


def test_from_the_pickle_to_the_head_of_a_photo(portrait: Portrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(tmp_path))
    with pytest.raises(PortraitDiffusionError) as caught:
        create_prior("panohead")
    assert caught.value.code == "weights-missing" and "by hand" in caught.value.hint and "convert FILE --as panohead" in caught.value.hint
    channels = {2**k: 4 for k in range(2, 9)}
    content, _ = network_pickle(generator("panohead", channels) | unused())
    (tmp_path / "network.pkl").write_bytes(content)
    converted_path("panohead").parent.mkdir()
    convert_checkpoint(tmp_path / "network.pkl", "panohead", converted_path("panohead"))
    make_solid(converted_path("panohead"), "decoder.net.2.bias")
    monkeypatch.setattr(panohead, "MediaPipeFaces", lambda: _Entered())
    settings = replace(QUICK, inversion_steps=1, tuning_steps=1)
    head = create_prior("panohead").initialise(portrait, settings, cpu_context())
    assert head.meta["perceptual"] == "Laplacian pyramid" and head.meta["warnings"] == [panohead.NOT_FOUND]
    assert head.geometry.planes.shape == (1, 3, 3, 256, 256, 32) and not head.geometry.planes.requires_grad
    assert prior_inputs(settings) == {"panohead.safetensors": head.meta["weights_sha256"]}
    assert_meshes(head, portrait)
    first, other = (panohead.random_head(seed, torch.device("cpu")).geometry.planes for seed in (1, 2))
    assert not torch.equal(first, other)


class _Entered(Blind):
    def __enter__(self) -> _Entered:
        return self

    def __exit__(self, *trouble: object) -> None:
        return None
