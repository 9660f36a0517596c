"""Random looks for rendered heads, so that networks learn to carry what they are shown and not to remember painted skins.

Colours change by a random matrix and a tone curve (shared by the views of a sitter); textures are noise at many scales and
pieces of other pictures, painted onto a part of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Look:
    """Colour changes of B sitters: matrix (B, 3, 3), offset (B, 3), gamma (B,)."""

    matrix: Tensor
    offset: Tensor
    gamma: Tensor

    def __call__(self, rgb: Tensor) -> Tensor:
        """Change colours (B, 3, H, W) in [0, 1]; they stay there."""
        curved = rgb.clamp_min(1e-3) ** self.gamma[:, None, None, None]
        return (torch.einsum("bij,bjhw->bihw", self.matrix, curved) + self.offset[:, :, None, None]).clamp(0, 1)


def draw_look(count: int, generator: torch.Generator, strength: float = 1.0) -> Look:
    """Draw colour changes: white balance, exposure, saturation, a little mixing of the channels, tone curve; strength 0: none."""
    r = lambda *s: torch.randn(*s, generator=generator) * strength  # noqa: E731
    gain = torch.exp(0.18 * r(count, 1) + 0.08 * r(count, 3))
    saturation = (1 + 0.3 * r(count, 1, 1)).clamp(0, 1.8)
    grey = torch.full((1, 3, 3), 1 / 3)
    mix = grey + (torch.eye(3) - grey) * saturation + 0.05 * r(count, 3, 3)
    return Look(gain[:, :, None] * mix, 0.03 * r(count, 3), torch.exp(0.25 * r(count)))


def noise_texture(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return noise (count, 3, size, size), about unit variance, with a random slope over octaves and a random share of colour."""
    total = torch.zeros(count, 3, size, size)
    slope = torch.rand(count, 1, 1, 1, generator=generator) * 1.2
    tint = torch.rand(count, 1, 1, 1, generator=generator)
    side, octave = 4, 0
    while side <= size:
        grey, colour = torch.randn(count, 1, side, side, generator=generator), torch.randn(count, 3, side, side, generator=generator)
        layer = F.interpolate(grey * (1 - tint) + colour * tint, size=(size, size), mode="bilinear", align_corners=False)
        total = total + layer * torch.exp(-slope * octave)
        side, octave = side * 2, octave + 1
    return total / total.std((1, 2, 3), keepdim=True)


def paint(rgb: Tensor, generator: torch.Generator, share: float = 0.5) -> Tensor:
    """Paint textures onto a `share` of images (B, 3, S, S): noise that modulates the colours, or a piece of another image of the batch."""
    count, _, size, _ = rgb.shape
    texture = noise_texture(count, size, generator)
    strength = 0.25 * torch.rand(count, 1, 1, 1, generator=generator)
    painted = (rgb * (1 + strength * texture) + 0.3 * strength * texture).clamp(0, 1)
    other = rgb.roll(1, 0).flip(-1)
    where = (noise_texture(count, size, generator)[:, :1] > 0.8).float()
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    return torch.where(kind < 0.7 * share, painted, torch.where(kind < share, rgb * (1 - where) + other * where, rgb))
