"""Guidance on a denoiser that is known: latents distributed as N(mode, spread^2)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from portrait_backend.diffusion.codec import tiny_codec
from portrait_backend.diffusion.condition import ViewCondition, ViewConditionConfig
from portrait_backend.diffusion.denoiser import STARTER_SCHEDULE, Denoiser
from portrait_backend.diffusion.guidance import (
    Weighting,
    annealed,
    interval_score_gradient,
    invert,
    latent_loss,
    perp_neg,
    sds_gradient,
    sds_weight,
    view_negatives,
    x0_image,
    x0_image_loss,
)

SPREAD = 0.3


class GaussianUNet(nn.Module):
    """The exact noise prediction for latents ~ N(mode, SPREAD^2); the mode is the condition's first value, everywhere."""

    config = {"cross_attention_dim": 8, "in_channels": 4}  # noqa: RUF012
    dtype = torch.float32

    def __init__(self, alphas: Tensor) -> None:
        super().__init__()
        self.alphas = alphas

    def forward(self, z_t: Tensor, t: Tensor, condition: Tensor) -> SimpleNamespace:
        a = self.alphas[t].view(-1, 1, 1, 1)
        mode = condition[:, :1, :1, None]
        return SimpleNamespace(sample=(1 - a).sqrt() * (z_t - a.sqrt() * mode) / (a * SPREAD**2 + 1 - a))


@pytest.fixture(scope="module")
def known() -> Denoiser:
    scheduler = DDIMScheduler(**STARTER_SCHEDULE | {"prediction_type": "epsilon"})
    unet = GaussianUNet(scheduler.alphas_cumprod)
    encoder = ViewCondition(ViewConditionConfig(width=8, tokens=1, reference_size=16, reference_width=8))
    with torch.no_grad():
        encoder.null_view.zero_()
    return Denoiser(unet, scheduler, encoder)  # type: ignore[arg-type]


def mode(value: float, count: int = 1) -> Tensor:
    return torch.full((count, 2, 8), value)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighting", ["sigma2", "uniform", "balanced"])
def test_the_sds_gradient_is_its_closed_form(known: Denoiser, weighting: Weighting) -> None:
    z, eps, t = noise(2, 4, 4, 4), noise(2, 4, 4, 4, seed=1), torch.tensor([100, 700])
    a = known.alphas_cumprod[t].view(2, 1, 1, 1)
    z_t = a.sqrt() * z + (1 - a).sqrt() * eps
    score = -(z_t - a.sqrt() * 0.7) / (a * SPREAD**2 + 1 - a)
    w = {"sigma2": 1 - a, "uniform": torch.ones_like(a), "balanced": a.sqrt() * (1 - a)}[weighting]
    expected = w * (-(1 - a).sqrt() * score - eps)
    torch.testing.assert_close(sds_gradient(known, z, t, eps, mode(0.7, 2), weighting=weighting), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="weighting"):
        sds_weight(known, 3, "cubic")  # type: ignore[arg-type]


def test_the_latent_loss_has_the_gradient_as_its_derivative() -> None:
    z = noise(3, 4, 4, 4).requires_grad_()
    g = noise(3, 4, 4, 4, seed=1)
    latent_loss(z, g).backward()
    torch.testing.assert_close(z.grad, g / 3)


def test_sds_pulls_a_toy_image_to_the_mode(known: Denoiser) -> None:
    z, generator = torch.full((1, 4, 4, 4), -2.0, requires_grad=True), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam([z], lr=0.05)
    for step in range(300):
        t = known.timestep(annealed(step / 300))
        gradient = sds_gradient(known, z.detach(), t, torch.randn(z.shape, generator=generator), mode(0.7))
        optimiser.zero_grad()
        latent_loss(z, gradient).backward()
        optimiser.step()
    assert (z - 0.7).abs().max() < 0.35 and abs(float(z.detach().mean()) - 0.7) < 0.05


def test_interval_score_matching_goes_the_same_way_without_noise(known: Denoiser) -> None:
    z = torch.full((1, 4, 4, 4), -1.0)
    first, again = (interval_score_gradient(known, z, 500, 200, mode(0.7), guidance=2.0) for _ in range(2))
    assert torch.equal(first, again) and (first < 0).all(), "descending the gradient raises z towards the mode"
    with pytest.raises(ValueError, match="interval"):
        interval_score_gradient(known, z, 100, 101, mode(0.7))


def test_inversion_is_undone_by_denoising(known: Denoiser) -> None:
    z = 0.7 + SPREAD * noise(1, 4, 4, 4)
    z_t = invert(known, z, 500, 50, mode(0.7))
    assert (z_t - z).abs().mean() > 0.1
    torch.testing.assert_close(known.denoise(z_t, 500, 50, mode(0.7)), z, atol=0.1, rtol=0.05)


def test_denoising_noise_samples_the_distribution(known: Denoiser) -> None:
    made = known.denoise(noise(64, 4, 8, 8), 999, 50, mode(0.7, 64))
    assert abs(float(made.mean()) - 0.7) < 0.02 and abs(float(made.std()) - SPREAD) < 0.05


def test_perp_neg_drops_what_opposes_the_positive() -> None:
    null, main, across = torch.zeros(2, 4, 4, 4), noise(2, 4, 4, 4), noise(2, 4, 4, 4, seed=1)
    across = across - (across * main).sum((1, 2, 3), keepdim=True) / main.pow(2).sum((1, 2, 3), keepdim=True) * main
    torch.testing.assert_close(perp_neg(null, main, [2 * main], [1.0], 7.5), 7.5 * main, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(perp_neg(null, main, [main + across], [0.5], 2.0), 2 * main - across, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(perp_neg(null, main, [], [], 1.0), main)


def test_the_front_is_what_the_back_must_not_be() -> None:
    assert view_negatives(180) == [(0.0, 1.0)] and view_negatives(-180) == [(0.0, 1.0)]
    assert view_negatives(0) == [(180.0, 1.0)]
    assert view_negatives(90)[0][0] == 0.0


def test_timesteps_anneal_from_half_to_almost_nothing() -> None:
    assert annealed(0) == 0.5 and annealed(1) == pytest.approx(0.02) and annealed(7) == pytest.approx(0.02)
    assert 0.02 < annealed(0.5) < 0.5


def test_the_x0_image_is_a_constant_target(known: Denoiser) -> None:
    codec = tiny_codec()
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    z = codec.encode(image)
    target = x0_image(known, codec, z, 400, noise(*z.shape), mode(0.7), steps=3)
    assert not target.requires_grad and target.shape == image.shape and target.min() >= 0 and target.max() <= 1
    x0_image_loss(image, target).backward()
    assert image.grad is not None
    torch.testing.assert_close(image.grad, (image.detach() - target) / (32 * 32))
