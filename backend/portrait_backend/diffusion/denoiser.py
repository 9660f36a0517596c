"""The denoiser: a stock diffusers UNet, its noise schedule and its condition encoder behind a few functions of z_t and t.

z_t = sqrt(alpha_bar_t) * z_0 + sqrt(1 - alpha_bar_t) * eps, latents (B, C, h, w), t (B,) or () whole steps in [0, steps).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from portrait_backend.diffusion.condition import ConditionEncoder, ViewCondition, ViewConditionConfig

STARTER_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
STARTER_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 96, 144],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 96,
    "attention_head_dim": 2,
    "norm_num_groups": 16,
}
"""Starter scale, 64 x 64 latents: attention at 16 x 16 and 8 x 8 only. diffusers' `attention_head_dim` is the number of heads here."""


class Denoiser(nn.Module):
    """UNet + schedule + conditions. `unet` is the stock model, open to forward hooks."""

    alphas_cumprod: Tensor

    def __init__(self, unet: UNet2DConditionModel, scheduler: DDIMScheduler, condition: ConditionEncoder) -> None:
        super().__init__()
        config: Any = scheduler.config
        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"unknown prediction type {config.prediction_type!r}; known: epsilon, v_prediction")
        expected = int(unet.config["cross_attention_dim"])
        if expected != condition.width:
            raise ValueError(f"the UNet attends to tokens of width {expected}, the condition encoder makes {condition.width}")
        self.unet, self.scheduler, self.condition = unet, scheduler, condition
        self.split_guidance = False
        """Whether the halves of classifier-free guidance go through the UNet one after the other: less memory, more time."""
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.float(), persistent=False)

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.unet.config["in_channels"])

    @property
    def steps(self) -> int:
        """Training timesteps."""
        return len(self.alphas_cumprod)

    def timestep(self, share: float) -> int:
        """Return the step at a share of the schedule in [0, 1]."""
        return min(self.steps - 1, max(0, round(share * self.steps)))

    def alpha_bar(self, t: Tensor | int) -> Tensor:
        """Return alpha_bar at t, shaped (B, 1, 1, 1) or () to multiply latents with."""
        t = torch.as_tensor(t, device=self.alphas_cumprod.device)
        found = self.alphas_cumprod[t]
        return found.view(-1, 1, 1, 1) if t.ndim else found

    def add_noise(self, z: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """Return z_t of clean latents z and noise."""
        a = self.alpha_bar(t).to(z.dtype)
        return a.sqrt() * z + (1 - a).sqrt() * noise

    def x0_from(self, z_t: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """Return the clean latents that the noise prediction eps implies."""
        a = self.alpha_bar(t).to(z_t.dtype)
        return (z_t - (1 - a).sqrt() * eps) / a.sqrt()

    def noise_from(self, z_t: Tensor, t: Tensor | int, output: Tensor) -> Tensor:
        """Return the noise prediction that a raw UNet output means (Salimans & Ho's v = sqrt(a) eps - sqrt(1 - a) z_0, or eps itself)."""
        if self.scheduler.config["prediction_type"] == "epsilon":
            return output
        a = self.alpha_bar(t).to(z_t.dtype)
        return a.sqrt() * output + (1 - a).sqrt() * z_t

    def target_of(self, z: Tensor, noise: Tensor, t: Tensor | int) -> Tensor:
        """Return what the UNet should output for z_t (its training target)."""
        if self.scheduler.config["prediction_type"] == "epsilon":
            return noise
        a = self.alpha_bar(t).to(z.dtype)
        return a.sqrt() * noise - (1 - a).sqrt() * z

    def output(self, z_t: Tensor, t: Tensor | int, condition: Tensor) -> Tensor:
        """Return the raw UNet output in the precision of z_t (the UNet's own may be a half); condition (B, L, D)."""
        steps, own = torch.as_tensor(t, device=z_t.device).expand(len(z_t)), self.unet.dtype
        raw: Tensor = self.unet(z_t.to(own), steps, condition.to(own)).sample
        return raw if own == torch.float32 else raw.to(z_t.dtype)

    def predict_noise(self, z_t: Tensor, t: Tensor | int, condition: Tensor, guidance: float = 1.0, null: Tensor | None = None) -> Tensor:
        """Return the noise prediction (B, C, h, w).

        guidance: classifier-free guidance scale s in null + s * (conditional - null), one doubled UNet call (two with `split_guidance`);
        1 needs no null call.
        null (B, L, D): the unconditional tokens, by default the encoder's; any other tokens make them a negative prompt.
        """
        if guidance == 1.0:
            return self.noise_from(z_t, t, self.output(z_t, t, condition))
        null = self.condition.null(len(z_t)) if null is None else null
        if self.split_guidance:
            unconditional, conditional = (self.noise_from(z_t, t, self.output(z_t, t, tokens)) for tokens in (null, condition))
            return unconditional + guidance * (conditional - unconditional)
        steps = torch.as_tensor(t, device=z_t.device).expand(len(z_t))
        both = self.output(torch.cat([z_t, z_t]), torch.cat([steps, steps]), torch.cat([null.to(condition.dtype), condition]))
        unconditional, conditional = (self.noise_from(z_t, t, part) for part in both.chunk(2))
        return unconditional + guidance * (conditional - unconditional)

    def ddim_step(self, z_t: Tensor, t: int, earlier: int | None, eps: Tensor) -> Tensor:
        """Go from step t to an earlier one (None: to clean latents) along a noise prediction; deterministic DDIM, eta 0."""
        z_0 = self.x0_from(z_t, t, eps)
        if earlier is None:
            return z_0
        return self.add_noise(z_0, eps, earlier)

    def denoise(
        self, z_t: Tensor, t_start: int, steps: int, condition: Tensor, guidance: float = 1.0, null: Tensor | None = None
    ) -> Tensor:
        """Return z_0 of z_t at step t_start in `steps` evenly spaced DDIM steps; differentiable unless gradients are off."""
        if steps < 1 or not 0 <= t_start < self.steps:
            raise ValueError(f"denoise needs steps >= 1 and t_start in [0, {self.steps}), got {steps} and {t_start}")
        times = [round(t_start * (1 - k / steps)) for k in range(steps)]
        for t, earlier in zip(times, [*times[1:], None], strict=True):
            z_t = self.ddim_step(z_t, t, earlier, self.predict_noise(z_t, t, condition, guidance, null))
        return z_t


def starter_denoiser() -> Denoiser:
    """Return the starter denoiser with fresh weights."""
    return Denoiser(UNet2DConditionModel(**STARTER_UNET), DDIMScheduler(**STARTER_SCHEDULE), ViewCondition())


def tiny_denoiser(seed: int = 0) -> Denoiser:
    """Return a denoiser of random weights with the starter's block layout, for tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = {"sample_size": 16, "block_out_channels": [8, 8, 8, 8], "cross_attention_dim": 8, "norm_num_groups": 4}
        unet = UNet2DConditionModel(**STARTER_UNET | small)
        condition = ViewCondition(ViewConditionConfig(width=8, tokens=2, reference_size=32, reference_width=8))
    return Denoiser(unet, DDIMScheduler(**STARTER_SCHEDULE), condition).requires_grad_(False).eval()
