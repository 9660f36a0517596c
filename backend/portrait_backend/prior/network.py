"""The starter prior's network: aligned photo -> tri-planes, with its decoder.

A convolutional U-shape with a transformer at 16 x 16 predicts a residual on learned mean planes. Its
input is the photo, its pose, and the lifted maps (`lift.py`); four more plane channels hold the
lifted colours themselves and, where the photo sees nothing, a few colours picked from it (`Palette`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.precision import bf16_autocast
from portrait_backend.prior.lift import ProxySurface, copied_planes, lift
from portrait_backend.radiance.decoder import Decoder

INPUT_SIZE = 128
"""Side in pixels of the encoder's input and of the lifted maps it reads."""
PALETTE_TEXELS = 32
"""Side in texels of the maps that spread the picked colours."""
COPIED = 4
"""Plane channels that hold lifted colour and matte."""


@dataclass(frozen=True)
class PriorConfig:
    """Sizes of the starter prior; `channels` counts the copied ones."""

    channels: int = 32
    planes: int = 64
    depth: int = 2
    widths: tuple[int, int, int] = (56, 112, 224)
    blocks: int = 5
    heads: int = 4
    hidden: int = 64
    coefficients: int = 25
    palette: int = 4


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, skip."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(8, channels_in), nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, h, w) to (B, channels_out, h, w)."""
        y: Tensor = self.skip(x) + self.conv(F.silu(self.norm(x)))
        return y


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP over tokens (B, N, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens; plain matrix products, since the fused bf16 CPU kernel is slower at this size."""
        batch, count, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5, -1) @ v
        x = x + self.out(attention.transpose(1, 2).reshape(batch, count, width))
        y: Tensor = x + self.down(F.silu(self.up(self.norm2(x))))
        return y


class Palette(nn.Module):
    """Picks a few of the photo's colours by attention and spreads them over the planes: hair and shirt go on behind in their own colour.

    Without it every colour of the back must pass through the encoder's bottleneck, which averages it away.
    """

    def __init__(self, width: int, config: PriorConfig) -> None:
        super().__init__()
        self.norm, self.pick = nn.LayerNorm(width), nn.Linear(width, config.palette)
        spread = 0.02 * torch.randn(config.palette, 3, config.depth, PALETTE_TEXELS, PALETTE_TEXELS)
        spread[0, 0, 0] += 0.5  # the first colour starts on the back
        self.spread = nn.Parameter(spread)

    def forward(self, tokens: Tensor, image: Tensor, size: int) -> Tensor:
        """Tokens (B, 256, width) of an image (B, 4, h, w) (rgb over mid grey, matte) -> planes (B, 3, D, size, size, 4)."""
        side = INPUT_SIZE // 8
        small = F.interpolate(image, size=(side, side), mode="area").flatten(2)
        matte = small[:, 3:].clamp_min(1e-4)
        colour = ((small[:, :3] - 0.5) / matte).clamp(-0.5, 0.5) * 2
        share = torch.softmax(self.pick(self.norm(tokens.float())).transpose(1, 2) + matte.log(), -1)
        picked = torch.cat([share @ colour.transpose(1, 2), torch.ones_like(share[..., :1])], -1)
        maps = F.interpolate(self.spread.flatten(1, 2), size=(size, size), mode="bilinear", align_corners=False).unflatten(1, (3, -1))
        return torch.einsum("bkc,kpdhw->bpdhwc", picked, maps)


class Encoder(nn.Module):
    """Image channels (B, c, 128, 128), rows downward -> plane residual (B, 3, D, R, R, C), rows upward; R = 64 or 128."""

    def __init__(self, channels_in: int, channels_out: int, config: PriorConfig) -> None:
        super().__init__()
        a, b, c = config.widths
        self.config, self.channels_out, wide = config, channels_out, max(64, a)
        self.stem, self.fine_in = nn.Conv2d(channels_in * 4, a, 3, padding=1), ResidualBlock(a, a)
        self.down1, self.middle_in = nn.Conv2d(a, b, 3, stride=2, padding=1), ResidualBlock(b, b)
        self.down2 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(1, (INPUT_SIZE // 8) ** 2, c) * 0.02)
        self.blocks = nn.ModuleList([TransformerBlock(c, config.heads) for _ in range(config.blocks)])
        self.up2, self.middle_out = nn.Conv2d(c, b * 4, 1), nn.Sequential(ResidualBlock(2 * b, b), ResidualBlock(b, b))
        self.up1, self.fine_out = nn.Conv2d(b, a * 4, 1), nn.Sequential(ResidualBlock(2 * a, wide), ResidualBlock(wide, wide))
        self.norm = nn.GroupNorm(8, wide)
        self.out = nn.Conv2d(wide, 3 * config.depth * channels_out * (config.planes // 64) ** 2, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; also returns the tokens (B, 256, width)."""
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.fine_in(self.stem(x))
        middle = self.middle_in(self.down1(fine))
        h = self.down2(F.silu(middle))
        tokens = h.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        h = tokens.transpose(1, 2).reshape(h.shape).contiguous(memory_format=torch.channels_last)
        h = self.middle_out(torch.cat([F.pixel_shuffle(self.up2(h), 2), middle], 1))
        h = self.fine_out(torch.cat([F.pixel_shuffle(self.up1(h), 2), fine], 1))
        h = self.out(F.silu(self.norm(h)))
        c = self.config
        if c.planes > 64:
            h = F.pixel_shuffle(h, c.planes // 64)
        h = h.view(len(h), 3, c.depth, self.channels_out, c.planes, c.planes)
        return h.permute(0, 1, 2, 4, 5, 3).flip(3).float(), tokens


class PriorNetwork(nn.Module):
    """Photo (B, 4, 128, 128) (rgb over mid grey, matte), pose and shape coefficients -> planes; holds the decoder too."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        learned = config.channels - COPIED
        self.proxy = ProxySurface(config.coefficients)
        self.encoder = Encoder(4 + 2 + 3 * 5, learned, config)
        self.palette = Palette(config.widths[2], config)
        self.mean_planes = nn.Parameter(torch.randn(3, config.depth, config.planes, config.planes, learned) * 0.1)
        self.decoder = Decoder(config.channels, config.hidden)

    def lifted(self, image: Tensor, pose: Tensor, coefficients: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Lift image (B, 4, h, w) in [0, 1] to maps (B, 3, 4, size, size) in [-1, 1] and their facing weight."""
        points, normals = self.proxy(coefficients, size)
        maps, weight = lift(image * 2 - 1, pose, points, normals)
        return maps, weight

    def forward(self, image: Tensor, pose: Tensor, angles: Tensor, coefficients: Tensor, autocast: bool = True) -> tuple[Tensor, Tensor]:
        """Return learned planes (B, 3, D, R, R, C), whose last four channels are to be added to the copied planes (B, 3, D, 128, 128, 4).

        pose (B, 3, 4) world-to-camera; angles (B, 2) yaw, pitch in radians; coefficients (B, K).
        """
        maps, weight = self.lifted(image, pose, coefficients, INPUT_SIZE)
        seen = torch.cat([maps * weight, weight], 2).flip(3).flatten(1, 2)
        x = torch.cat([image * 2 - 1, angles[:, :, None, None].expand(-1, -1, INPUT_SIZE, INPUT_SIZE) * 2, seen], 1)
        with bf16_autocast(image.device.type, autocast):
            residual, tokens = self.encoder(x)
        learned = torch.cat([residual + self.mean_planes, self.palette(tokens, image, self.config.planes)], -1)
        return learned, copied_planes(maps, weight, self.config.depth)


def join_planes(learned: Tensor, copied: Tensor) -> Tensor:
    """Add copied planes or features (..., 4) to the last four channels of learned ones (..., C)."""
    return torch.cat([learned[..., :-COPIED], learned[..., -COPIED:] + copied], -1)
