"""Augmentation: what cameras, light and segmenters do to a portrait, so that synthetic training carries over to photos.

Colour and light changes are shared by input and targets (they change the person as seen); geometry
errors, blur, noise, occluders and matte errors touch the input only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_appearance(count: int, generator: torch.Generator) -> Tensor:
    """Draw (count, 10): saturation, gamma, rgb gain (3), contrast, light direction x strength (3), unused."""
    r = lambda *s: torch.randn(*s, generator=generator)  # noqa: E731
    a = torch.zeros(count, 10)
    grey = torch.rand(count, generator=generator) < 0.07
    a[:, 0] = torch.where(grey, 0.0, (1 + 0.25 * r(count)).clamp(0, 1.7))
    a[:, 1] = torch.exp(0.2 * r(count))
    a[:, 2:5] = torch.exp(0.13 * r(count, 1) + 0.07 * r(count, 3))
    a[:, 5] = torch.exp(0.15 * r(count)).clamp(0.6, 1.5)
    direction = F.normalize(r(count, 3), dim=-1)
    side_lit = torch.rand(count, 1, generator=generator) < 0.35
    a[:, 6:9] = torch.where(side_lit, direction * 0.5 * torch.rand(count, 1, generator=generator), torch.zeros(count, 3))
    return a


def apply_appearance(colour: Tensor, points: Tensor, a: Tensor) -> Tensor:
    """Change colours (B, ..., 3) at world points (B, ..., 3) by appearance a (B, 10); the result stays in [0, 1]."""
    shape = (len(colour),) + (1,) * (colour.dim() - 1)
    light = a[:, 6:9].view(*shape[:-1], 3)
    shade = torch.exp((F.normalize(points, dim=-1) * light).sum(-1, keepdim=True))
    c = colour * shade
    grey = c.mean(-1, keepdim=True)
    c = (grey + (c - grey) * a[:, 0].view(shape)).clamp(0, 1)
    c = c ** a[:, 1].view(shape) * a[:, 2:5].view(*shape[:-1], 3)
    return ((c - 0.4) * a[:, 5].view(shape) + 0.4).clamp(0, 1)


def degrade_input(rgb: Tensor, matte: Tensor, generator: torch.Generator) -> Tensor:
    """Turn rgb (B, 3, h, w) and matte (B, 1, h, w) into the encoder's input (B, 4, h, w): rgb over mid grey, matte."""
    batch, _, h, w = rgb.shape
    rand = lambda *s: torch.rand(*s, generator=generator)  # noqa: E731
    blur = (rand(batch, 1, 1, 1) < 0.5).float()
    rgb = blur * F.avg_pool2d(F.pad(rgb, (1, 1, 1, 1), mode="replicate"), 3, 1) + (1 - blur) * rgb
    coarse = F.interpolate(F.avg_pool2d(rgb, 4), size=(h, w), mode="bilinear", align_corners=False)
    rgb = torch.where(rand(batch, 1, 1, 1) < 0.06, coarse, rgb)
    # matte errors: grown, shrunk, softened; the background's colour bleeds in where it grew
    u = rand(batch, 1, 1, 1)
    wrong = ((F.avg_pool2d(matte, 5, 1, 2) - 0.5 + (u - 0.15)) * 3 + 0.5).clamp(0, 1)
    new = torch.where(u < 0.3, wrong, matte)
    spill = rand(batch, 3, 1, 1)
    rgb = rgb * (matte / new.clamp_min(1e-3)).clamp(0, 1) + spill * (1 - matte / new.clamp_min(1e-3)).clamp(0, 1)
    # occluder: a soft disc near the border (hand, scarf, hat brim), kept inside the matte
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    angle, radius = rand(batch, 1, 1) * 6.283, 0.1 + 0.25 * rand(batch, 1, 1)
    disc = (((x - 0.9 * torch.cos(angle)) ** 2 + (y - 0.9 * torch.sin(angle)) ** 2) < radius**2)[:, None].float()
    disc = disc * (rand(batch, 1, 1, 1) < 0.12)
    rgb = rgb * (1 - disc) + rand(batch, 3, 1, 1) * disc
    noisy = rgb + torch.randn(rgb.shape, generator=generator) * 0.03 * rand(batch, 1, 1, 1)
    return torch.cat([noisy * new + 0.5 * (1 - new), new], 1)
