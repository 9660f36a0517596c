"""The denoiser's algebra against diffusers' own schedulers, its conditions, and classifier-free guidance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from portrait_backend.diffusion.condition import PromptCondition, ViewCondition, ViewConditionConfig, view_name
from portrait_backend.diffusion.denoiser import STARTER_SCHEDULE, Denoiser, tiny_denoiser


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return tiny_denoiser()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_is_added_as_diffusers_adds_it_and_x0_undoes_it(denoiser: Denoiser) -> None:
    z, eps, t = noise(3, 4, 16, 16), noise(3, 4, 16, 16, seed=1), torch.tensor([0, 420, 900])
    z_t = denoiser.add_noise(z, eps, t)
    torch.testing.assert_close(z_t, denoiser.scheduler.add_noise(z, eps, t))
    torch.testing.assert_close(denoiser.x0_from(z_t, t, eps), z, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_perfect_output_gives_back_the_noise(denoiser: Denoiser, kind: str) -> None:
    model = Denoiser(denoiser.unet, DDIMScheduler(**STARTER_SCHEDULE | {"prediction_type": kind}), denoiser.condition)
    z, eps, t = noise(2, 4, 16, 16), noise(2, 4, 16, 16, seed=1), torch.tensor([30, 700])
    target = model.target_of(z, eps, t)
    torch.testing.assert_close(model.noise_from(model.add_noise(z, eps, t), t, target), eps, atol=1e-5, rtol=1e-5)
    if kind == "v_prediction":
        torch.testing.assert_close(target, model.scheduler.get_velocity(z, eps, t))


def test_a_ddim_step_is_that_of_diffusers(denoiser: Denoiser) -> None:
    scheduler = DDIMScheduler(**STARTER_SCHEDULE | {"prediction_type": "epsilon", "steps_offset": 0})
    scheduler.set_timesteps(10)
    z_t, eps = noise(2, 4, 16, 16), noise(2, 4, 16, 16, seed=1)
    expected: Any = scheduler.step(eps, 500, z_t)
    torch.testing.assert_close(denoiser.ddim_step(z_t, 500, 400, eps), expected.prev_sample)


def test_guidance_extrapolates_from_the_unconditional_prediction(denoiser: Denoiser) -> None:
    z_t, t = noise(2, 4, 16, 16), torch.tensor([100, 600])
    condition = denoiser.condition.encode(torch.tensor([0.0, 180.0]), torch.zeros(2))
    unconditional = denoiser.predict_noise(z_t, t, denoiser.condition.null(2))
    conditional = denoiser.predict_noise(z_t, t, condition)
    assert not torch.equal(unconditional, conditional)
    guided = denoiser.predict_noise(z_t, t, condition, guidance=7.5)
    torch.testing.assert_close(guided, unconditional + 7.5 * (conditional - unconditional), atol=1e-4, rtol=1e-4)


def test_denoising_from_almost_nothing_changes_almost_nothing(denoiser: Denoiser) -> None:
    z, eps = noise(1, 4, 16, 16), noise(1, 4, 16, 16, seed=1)
    condition = denoiser.condition.encode(torch.zeros(1), torch.zeros(1))
    back = denoiser.denoise(denoiser.add_noise(z, eps, 0), 0, 1, condition)
    assert (back - z).abs().mean() < 0.1
    with pytest.raises(ValueError, match="steps >= 1"):
        denoiser.denoise(z, 500, 0, condition)


def test_views_domains_and_sitters_are_told_apart() -> None:
    encoder = ViewCondition(ViewConditionConfig(width=8, tokens=2, reference_size=32, reference_width=8))
    views = encoder.encode(torch.tensor([0.0, 90.0, 450.0, 90.0]), torch.tensor([0.0, 0.0, 0.0, 20.0]), "rgb")
    assert views.shape == encoder.null(4).shape == (4, 2 + 4, 8)
    torch.testing.assert_close(views[1], views[2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(views[0], views[1]) and not torch.allclose(views[1], views[3])
    normal = encoder.encode(torch.zeros(1), torch.zeros(1), "normal")
    assert not torch.allclose(normal, views[:1])
    known = encoder.encode(torch.zeros(2), torch.zeros(2), ["rgb", "normal"], torch.rand(1, 4, 64, 64))
    torch.testing.assert_close(known[0, :2], views[0, :2])
    torch.testing.assert_close(known[0, 2:], known[1, 2:])
    with pytest.raises(ValueError, match="domain"):
        encoder.encode(torch.zeros(1), torch.zeros(1), "depth")  # type: ignore[arg-type]


def test_a_denoiser_needs_tokens_of_its_width(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="width 8"):
        Denoiser(denoiser.unet, denoiser.scheduler, ViewCondition())
    with pytest.raises(ValueError, match="prediction type"):
        Denoiser(denoiser.unet, DDIMScheduler(prediction_type="sample"), denoiser.condition)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "name"),
    [
        (0, 0, "front"),
        (-44, 20, "front"),
        (90, 0, "side"),
        (-100, 0, "side"),
        (180, 0, "back"),
        (-170, 0, "back"),
        (540, 0, "back"),
        (0, 75, "overhead"),
    ],
)
def test_view_prompts_follow_the_azimuth(azimuth: float, elevation: float, name: str) -> None:
    assert view_name(azimuth, elevation) == name


class _Words(torch.nn.Module):
    """A text encoder whose token is the prompt's hash."""

    config = SimpleNamespace(hidden_size=8)
    device = torch.device("cpu")

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (ids[..., None].expand(*ids.shape, 8).float(),)


class _Letters:
    model_max_length = 60

    def __call__(self, prompts: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.tensor([[ord(c) for c in p.ljust(60)][:60] for p in prompts]))


def test_prompts_condition_the_same_unet_class() -> None:
    encoder = PromptCondition(_Words(), _Letters())
    assert encoder.prompt(180, 0, "normal") == "a normal map of a portrait photo of a person, back view"
    tokens = encoder.encode(torch.tensor([0.0, 90.0]), torch.zeros(2), ["rgb", "normal"])
    assert tokens.shape == (2, 60, 8) and encoder.null(2).shape == (2, 60, 8)
    unet = tiny_denoiser().unet
    assert isinstance(unet, UNet2DConditionModel)
    assert Denoiser(unet, DDIMScheduler(**STARTER_SCHEDULE), encoder).predict_noise(noise(2, 4, 16, 16), 10, tokens * 0.01).shape == (
        2,
        4,
        16,
        16,
    )
