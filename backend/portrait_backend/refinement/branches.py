"""The two branches of the Hybrid Priors model: copies of the denoiser's UNet without any attention (BrushNet's shape).

A branch reads an image-like input and gives one feature map per tap: after conv_in, after each layer and each downsampler, after the
mid block, after each layer and each upsampler. Its layout comes from the UNet's config, so SD 1.5 and the starter share this code; names
are the UNet's own, so weights are copied by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import DownBlock2D, UNetMidBlock2D, UpBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class BranchConfig:
    """Layout of a branch: channels and layers per resolution, and the details that must be the UNet's for its weights to fit."""

    channels: tuple[int, ...]
    layers: tuple[int, ...]
    groups: int = 32
    eps: float = 1e-5
    activation: str = "silu"
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: int = 0

    @classmethod
    def of_unet(cls, config: Mapping[str, Any], width: float = 1.0) -> BranchConfig:
        """Return the layout of a UNet2DConditionModel's config; width < 1 makes a thinner branch, which then starts from fresh weights."""
        widths = tuple(int(c) for c in config["block_out_channels"])
        layers = config["layers_per_block"]
        groups = int(config["norm_num_groups"])
        return cls(
            channels=tuple(max(groups, round(c * width / groups) * groups) for c in widths),
            layers=(layers,) * len(widths) if isinstance(layers, int) else tuple(layers),
            groups=groups,
            eps=float(config["norm_eps"]),
            activation=str(config["act_fn"]),
            downsample_padding=int(config["downsample_padding"]),
            flip_sin_to_cos=bool(config["flip_sin_to_cos"]),
            freq_shift=int(config["freq_shift"]),
        )

    @property
    def taps(self) -> tuple[int, ...]:
        """Channels of every tap, in the order of computing."""
        down = [self.channels[0]]
        for k, c in enumerate(self.channels):
            down += [c] * (self.layers[k] + (k < len(self.channels) - 1))
        up = []
        for k, c in enumerate(reversed(self.channels)):
            up += [c] * (self.layers[-1 - k] + 1 + (k < len(self.channels) - 1))
        return (*down, self.channels[-1], *up)

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON data."""
        return asdict(self)


class Branch(nn.Module):
    """A UNet without attention and without an output layer: (B, in_channels, h, w), t -> one feature map per tap."""

    def __init__(self, in_channels: int, config: BranchConfig) -> None:
        super().__init__()
        self.config, c = config, config.channels
        self.checkpointing = False
        """Whether resnets are computed again in the backward pass instead of being kept."""
        temb = 4 * c[0]
        options: dict[str, Any] = {"resnet_eps": config.eps, "resnet_act_fn": config.activation, "resnet_groups": config.groups}
        self.conv_in = nn.Conv2d(in_channels, c[0], 3, padding=1)
        self.time_proj = Timesteps(c[0], config.flip_sin_to_cos, config.freq_shift)
        self.time_embedding = TimestepEmbedding(c[0], temb, act_fn=config.activation)
        last = len(c) - 1
        self.down_blocks = nn.ModuleList(
            DownBlock2D(
                before,
                width,
                temb,
                num_layers=config.layers[k],
                add_downsample=k < last,
                downsample_padding=config.downsample_padding,
                **options,
            )
            for k, (before, width) in enumerate(pairwise([c[0], *c]))
        )
        self.mid_block = UNetMidBlock2D(c[-1], temb, num_layers=1, add_attention=False, **options)
        widths = c[::-1]
        self.up_blocks = nn.ModuleList(
            UpBlock2D(
                in_channels=widths[min(k + 1, last)],
                prev_output_channel=widths[max(k - 1, 0)],
                out_channels=width,
                temb_channels=temb,
                num_layers=config.layers[last - k] + 1,
                add_upsample=k < last,
                **options,
            )
            for k, width in enumerate(widths)
        )

    def forward(self, x: Tensor, t: Tensor) -> list[Tensor]:
        """Return the taps' features (B, C_k, h_k, w_k); t (B,) steps of the noise schedule."""
        blocks: Any
        temb = self.time_embedding(self.time_proj(t).to(x.dtype))
        h = self.conv_in(x)
        taps = [h]
        for blocks in self.down_blocks:
            for resnet in blocks.resnets:
                h = self._run(resnet, h, temb)
                taps.append(h)
            for sampler in blocks.downsamplers or ():
                h = sampler(h)
                taps.append(h)
        skips = list(taps)
        h = self.mid_block(h, temb)
        taps.append(h)
        for blocks in self.up_blocks:
            for resnet in blocks.resnets:
                h = self._run(resnet, torch.cat([h, skips.pop()], 1), temb)
                taps.append(h)
            for sampler in blocks.upsamplers or ():
                h = sampler(h, skips[-1].shape[2:])
                taps.append(h)
        return taps

    def _run(self, resnet: nn.Module, h: Tensor, temb: Tensor) -> Tensor:
        again = self.checkpointing and torch.is_grad_enabled()
        result: Tensor = checkpoint(resnet, h, temb, use_reentrant=False) if again else resnet(h, temb)
        return result

    @torch.no_grad()
    def copy_unet(self, weights: Mapping[str, Tensor], mask_channels: int = 0) -> int:
        """Copy what a UNet's state dict has under the same name and shape; returns how many tensors were copied.

        conv_in is the UNet's, repeated over the input's latents; columns of mask channels are 0 (BrushNet's start).
        """
        own, copied = self.state_dict(), 0
        for name, value in own.items():
            if not name.startswith("conv_in") and name in weights and weights[name].shape == value.shape:
                value.copy_(weights[name])
                copied += 1
        source, target = weights["conv_in.weight"], own["conv_in.weight"]
        repeats, rest = divmod(target.shape[1] - mask_channels, source.shape[1])
        if source.shape[0] == target.shape[0] and rest == 0:
            target.zero_()
            target[:, : repeats * source.shape[1]] = source.repeat(1, repeats, 1, 1)
            own["conv_in.bias"].copy_(weights["conv_in.bias"])
            copied += 2
        return copied
