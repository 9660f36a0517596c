"""Super-resolution of rendered feature maps: 128 px features -> 512 px rgb, a residual over the bicubically upsampled rgb."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.radiance.decoder import FEATURES

EDGE = 4.0
"""How much steeper than its blur an upsampled outline is."""


@dataclass(frozen=True)
class SuperResolutionConfig:
    """Sizes: residual blocks of `width` channels at the input's resolution, `fine_width` at twice that; 0.33 M parameters by default."""

    features: int = FEATURES
    width: int = 64
    fine_width: int = 32
    blocks: int = 3
    scale: int = 4


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.silu(self.conv1(x)))
        return y


def upsample_bicubic(image: Tensor, scale: int) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, scale * h, scale * w)."""
    return F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)


def _blurred(image: Tensor) -> Tensor:
    """Blur (B, C, h, w) by a binomial 3 x 3 filter, the border repeated."""
    kernel = torch.outer(*2 * [image.new_tensor([0.25, 0.5, 0.25])]).expand(image.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel, groups=image.shape[1])


def with_smooth_edge(fine: Tensor, rgb: Tensor, alpha: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Give an upsampled picture an outline without the steps of the small render, where nearly every pixel is all matter or none.

    fine (1, 3, scale * h, scale * w) and rgb (h, w, 3) are the upsampled and the small picture, alpha (h, w) the small matte;
    colours are premultiplied. Returns colour (1, 3, ...) and alpha (1, 1, ...): the outline is that of the blurred matte, and
    colours at it are those of the matter beside it. Farther inside, where the matte is full all around, nothing changes.
    """
    small, matte = rgb.permute(2, 0, 1)[None], alpha[None, None]
    soft = _blurred(matte)
    outline = ((upsample_bicubic(soft, scale) - 0.5) * EDGE + 0.5).clamp(0, 1)
    cover = upsample_bicubic(matte, scale)
    around = upsample_bicubic(_blurred(_blurred(small)) / _blurred(soft).clamp_min(1e-3), scale)
    inner = ((cover - 0.9) / 0.1).clamp(0, 1)
    straight = inner * fine / cover.clamp_min(0.5) + (1 - inner) * around
    return straight.clamp(0, 1) * outline, outline


class SuperResolution(nn.Module):
    """Convolutions and pixel shuffles; the last convolution starts at zero, so an untrained network is bicubic upsampling."""

    def __init__(self, config: SuperResolutionConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or SuperResolutionConfig()
        if c.scale % 2 or c.scale < 2:
            raise ValueError(f"super-resolution scale must be even, got {c.scale}")
        self.stem = nn.Conv2d(c.features, c.width, 3, padding=1)
        self.blocks = nn.ModuleList([_ResidualBlock(c.width) for _ in range(c.blocks)])
        self.up = nn.Conv2d(c.width, 4 * c.fine_width, 3, padding=1)
        self.fine = nn.Conv2d(c.fine_width, c.fine_width, 3, padding=1)
        self.out = nn.Conv2d(c.fine_width, 3 * (c.scale // 2) ** 2, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, h, w) to rgb (B, 3, scale * h, scale * w), both premultiplied; the first three features are rgb."""
        if features.ndim != 4 or features.shape[1] != self.config.features:
            raise ValueError(f"super-resolution expects (B, {self.config.features}, h, w), got {tuple(features.shape)}")
        h = self.stem(features)
        for block in self.blocks:
            h = block(h)
        h = F.silu(F.pixel_shuffle(self.up(F.silu(h)), 2))
        h = self.out(F.silu(self.fine(h)))
        return upsample_bicubic(features[:, :3], self.config.scale) + F.pixel_shuffle(h, self.config.scale // 2)

    def config_dict(self) -> dict[str, int]:
        """Return the configuration as JSON data."""
        return asdict(self.config)
