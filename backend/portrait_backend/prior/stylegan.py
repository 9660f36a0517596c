"""The style-based generator (StyleGAN2, arXiv 1912.04958), as far as tri-plane priors need it: mapping and synthesis of planes.

Written from the paper. Modules are named so that the state dicts of published checkpoints load. Layers keep the equalised learning
rate: the stored weights are multiplied by lr / sqrt(fan-in) when they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE, GAIN = 0.2, math.sqrt(2)
"""Leaky ReLU, and the factor that keeps the variance behind it."""
FILTER = (1.0, 3.0, 3.0, 1.0)
"""The separable low-pass filter of upsampling."""


@dataclass(frozen=True)
class StyleGanConfig:
    """Sizes: channels per resolution (4, 8, ... in order), planes' channels, w, z and label width, mapping layers."""

    channels: Mapping[int, int]
    out_channels: int = 96
    w_dim: int = 512
    z_dim: int = 512
    label_dim: int = 25
    mapping_layers: int = 2

    @property
    def resolutions(self) -> list[int]:
        """The blocks' resolutions, coarse to fine."""
        return sorted(self.channels)

    @property
    def styles(self) -> int:
        """How many w the synthesis takes: one per convolution, and one for the last planes."""
        return 2 * len(self.channels)


def second_moment_normalised(x: Tensor) -> Tensor:
    """Return x (..., C) scaled to a mean square of one."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


def upsample(x: Tensor, pad: tuple[int, int] = (2, 1)) -> Tensor:
    """Double the resolution of (B, C, H, W): zeros between the pixels, `pad` more around them, then the low-pass filter."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros(batch, channels, height, 2, width, 2)
    spread[:, :, :, 0, :, 0] = x
    before, after = pad
    spread = F.pad(spread.reshape(batch * channels, 1, 2 * height, 2 * width), (before, after, before, after))
    kernel = x.new_tensor(FILTER)
    kernel = torch.outer(kernel, kernel) * (4 / kernel.sum() ** 2)
    filtered = F.conv2d(spread, kernel[None, None])
    return filtered.reshape(batch, channels, *filtered.shape[2:])


def modulated_convolution(x: Tensor, weight: Tensor, style: Tensor, *, up: bool = False, demodulate: bool = True) -> Tensor:
    """Convolve x (1, I, H, W) with weight (O, I, k, k) whose inputs are scaled by style (1, I); to twice the resolution if `up`.

    demodulate: scale each output so that unit input keeps unit variance (section 2.2 of the paper).
    """
    scaled = weight * style[0, None, :, None, None]
    if demodulate:
        scaled = scaled * torch.rsqrt(scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8)
    if up:  # published weights of upsampling layers are those of a true convolution: the kernel is turned
        return F.conv2d(upsample(x, (3, 2)), scaled.flip(2, 3))
    return F.conv2d(x, scaled, padding=weight.shape[-1] // 2)


class EqualisedLinear(nn.Module):
    """A linear layer with equalised learning rate, and leaky ReLU if `activated`."""

    def __init__(self, inputs: int, outputs: int, rate: float = 1.0, activated: bool = False, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate, self.activated = rate, activated

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias as they act."""
        return self.weight * (self.rate / math.sqrt(self.weight.shape[1])), self.bias * self.rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        y = F.linear(x, *self.folded())
        return F.leaky_relu(y, SLOPE) * GAIN if self.activated else y


class StyledConvolution(nn.Module):
    """A modulated 3 x 3 convolution with its noise image and leaky ReLU."""

    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, resolution: int, w_dim: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.affine = EqualisedLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("resample_filter", _filter())

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map (1, I, H, W) and w (1, w_dim) to (1, O, H or 2H, ...). The noise is the checkpoint's own: the result is always the same."""
        y = modulated_convolution(x, self.weight, self.affine(w), up=self.up)
        y = y + self.noise_const * self.noise_strength + self.bias[None, :, None, None]
        return F.leaky_relu(y, SLOPE) * GAIN


class ToPlanes(nn.Module):
    """The modulated 1 x 1 convolution to the output (in the paper, to rgb)."""

    def __init__(self, inputs: int, outputs: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualisedLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def style(self, w: Tensor) -> Tensor:
        """Return the scale of each input (1, I) for w (1, w_dim)."""
        styled: Tensor = self.affine(w) / math.sqrt(self.weight.shape[1])
        return styled

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map (1, I, H, W) and w (1, w_dim) to (1, O, H, W)."""
        return modulated_convolution(x, self.weight, self.style(w), demodulate=False) + self.bias[None, :, None, None]


class SynthesisBlock(nn.Module):
    """One resolution: two convolutions (one at the start, after the learned constant) and the output, added to the coarser one's."""

    def __init__(self, inputs: int, channels: int, resolution: int, config: StyleGanConfig) -> None:
        super().__init__()
        self.first = resolution == 4
        if self.first:
            self.const = nn.Parameter(torch.randn(channels, 4, 4))
        else:
            self.conv0 = StyledConvolution(inputs, channels, resolution, config.w_dim, up=True)
        self.conv1 = StyledConvolution(channels, channels, resolution, config.w_dim, up=False)
        self.torgb = ToPlanes(channels, config.out_channels, config.w_dim)
        self.register_buffer("resample_filter", _filter())

    def forward(self, x: Tensor | None, image: Tensor | None, ws: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return features and output at this resolution; ws: one w (1, w_dim) per convolution and one for the output."""
        if self.first or x is None:
            x = self.conv1(self.const[None], ws[0])
        else:
            x = self.conv1(self.conv0(x, ws[0]), ws[1])
        planes = self.torgb(x, ws[-1])
        return x, planes if image is None else upsample(image) + planes


class Synthesis(nn.Module):
    """All blocks, coarse to fine, named b4, b8, ..."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        self.config = config
        before = 0
        for resolution in config.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(before, config.channels[resolution], resolution, config))
            before = config.channels[resolution]

    def forward(self, ws: Tensor) -> Tensor:
        """Return the planes (1, out_channels, H, H) for ws (styles, w_dim)."""
        if tuple(ws.shape) != (self.config.styles, self.config.w_dim):
            raise ValueError(f"ws must be ({self.config.styles}, {self.config.w_dim}), got {tuple(ws.shape)}")
        x = image = None
        first = 0
        for resolution in self.config.resolutions:
            convolutions = 1 if resolution == 4 else 2
            x, image = self.get_submodule(f"b{resolution}")(x, image, [w[None] for w in ws[first : first + convolutions + 1]])
            first += convolutions  # the output's w is the next block's first one too
        assert image is not None
        return image


class MappingNetwork(nn.Module):
    """z and a label (a camera) to w."""

    w_avg: Tensor

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        self.layers = config.mapping_layers
        self.embed = EqualisedLinear(config.label_dim, config.w_dim)
        width = config.z_dim + config.w_dim
        for k in range(config.mapping_layers):
            self.add_module(f"fc{k}", EqualisedLinear(width if k == 0 else config.w_dim, config.w_dim, rate=0.01, activated=True))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor, label: Tensor, truncation: float = 1.0) -> Tensor:
        """Return w (B, w_dim) for z (B, z_dim) and labels (B, label_dim); truncation 0 is the mean w, 1 leaves w as it is."""
        x = torch.cat([second_moment_normalised(z), second_moment_normalised(self.embed(label))], -1)
        for k in range(self.layers):
            x = self.get_submodule(f"fc{k}")(x)
        return torch.lerp(self.w_avg.expand_as(x), x, truncation)


class Backbone(nn.Module):
    """Mapping and synthesis."""

    def __init__(self, config: StyleGanConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping, self.synthesis = MappingNetwork(config), Synthesis(config)

    def forward(self, w: Tensor) -> Tensor:
        """Return the planes (1, out_channels, H, H) for one w (w_dim,), or one per style (styles, w_dim)."""
        planes: Tensor = self.synthesis(w.expand(self.config.styles, -1) if w.ndim == 1 else w)
        return planes


def _filter() -> Tensor:
    kernel = torch.tensor(FILTER)
    return torch.outer(kernel, kernel) / kernel.sum() ** 2
