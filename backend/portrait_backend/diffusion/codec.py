"""The codec: images <-> latents of about unit variance, any diffusers autoencoder by its config."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

STARTER_CODEC: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "encoder_block_out_channels": [64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64],
    "num_encoder_blocks": [0, 1, 3],
    "num_decoder_blocks": [3, 2, 0],
}
"""Starter scale: 256 px <-> 64 x 64 x 4; 1.15 M parameters. No block works at full resolution: those would cost most of the time."""


class Codec(nn.Module):
    """Wraps an `AutoencoderTiny` or `AutoencoderKL`; differentiable both ways.

    Weights in half precision answer in the caller's.

    channels: latent channels; factor: image pixels per latent pixel along an axis.
    """

    def __init__(self, model: AutoencoderTiny | AutoencoderKL) -> None:
        super().__init__()
        config: Any = model.config
        widths = config.block_out_channels if isinstance(model, AutoencoderKL) else config.encoder_block_out_channels
        self.model = model
        self.channels, self.factor = int(config.latent_channels), 2 ** (len(widths) - 1)
        self._tiles = False
        self._scale, self._shift = float(config.scaling_factor), float(config.shift_factor or 0.0)

    def encode(self, rgb: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] into latents (B, channels, H / factor, W / factor); the mode, without noise.

        ValueError for another layout, or sides that `factor` doesn't divide.
        """
        if rgb.ndim != 4 or rgb.shape[1] != 3 or rgb.shape[2] % self.factor or rgb.shape[3] % self.factor:
            raise ValueError(f"the codec encodes images (B, 3, H, W) with sides divisible by {self.factor}, got {tuple(rgb.shape)}")
        model: Any = self.model
        model.use_tiling = self._tiles and not (
            torch.is_grad_enabled() and rgb.requires_grad
        )  # all tiles' graphs are larger than one image's
        out: Any = model.encode((rgb * 2 - 1).to(self.model.dtype))
        latents: Tensor = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        latents = latents if self.model.dtype == torch.float32 else latents.to(rgb.dtype)
        return (latents - self._shift) * self._scale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, channels, h, w) into images (B, 3, h * factor, w * factor), about in [0, 1] (not clamped)."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(f"the codec decodes latents (B, {self.channels}, h, w), got {tuple(latents.shape)}")
        model: Any = self.model
        model.use_tiling = self._tiles
        image: Tensor = model.decode((latents / self._scale + self._shift).to(self.model.dtype)).sample
        image = image if self.model.dtype == torch.float32 else image.to(latents.dtype)
        return (image + 1) / 2

    def work_in_tiles(self, size: int) -> None:
        """Encode and decode images larger than `size` px in overlapping tiles of that size, one image after the other: less memory.

        Norms then see a tile at a time, so that the result is near the untiled one, not the same.
        """
        model: Any = self.model
        self._tiles = True
        model.enable_slicing()
        model.tile_sample_min_size, model.tile_latent_min_size = size, size // self.factor


def starter_codec() -> Codec:
    """Return the starter codec with fresh weights."""
    return Codec(AutoencoderTiny(**STARTER_CODEC))


def tiny_codec(seed: int = 0) -> Codec:
    """Return a codec of a few thousand random weights, factor 4, for tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = {"encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8]}
        blocks = {"num_encoder_blocks": [0, 1, 1], "num_decoder_blocks": [1, 1, 0]}
        model = AutoencoderTiny(**STARTER_CODEC | small | blocks)
    return Codec(model).requires_grad_(False).eval()
