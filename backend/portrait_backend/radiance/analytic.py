"""A head whose geometry is known exactly: an ellipsoid written into tri-planes and decoder weights, with no training.

The renderer's truth for tests and benchmarks: same sizes and same code path as a trained head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.radiance.decoder import Decoder, DensityActivation
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.triplane import STARTER_AXES, Axes, to_neutral


def _ellipsoid_planes(
    radii: Tensor, channels: int, depth: int, size: int, axes: Axes, half_extent: float, generator: torch.Generator
) -> Tensor:
    """Return planes (1, 3, D, size, size, C).

    Channel 0 sums to (x/a)^2 + (y/b)^2 + (z/c)^2, channels 1-3 are colour logits, the rest is smooth noise.
    """
    noise = torch.randn(3 * depth, channels, 9, 9, generator=generator)
    smooth = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=True)
    planes = smooth.view(3, depth, channels, size, size).permute(0, 1, 3, 4, 2).contiguous()
    squares = (((torch.arange(size) + 0.5) / size * 2 - 1) * half_extent) ** 2
    planes[..., 0], done = 0.0, set[int]()
    for k, (u, v, _) in enumerate(axes):  # each world axis is written into the first plane that has it
        if u not in done:
            planes[k, :, :, :, 0] += (squares / radii[u] ** 2)[None, None, :]
        if v not in done:
            planes[k, :, :, :, 0] += (squares / radii[v] ** 2)[None, :, None]
        done |= {u, v}
    return planes[None]


def _set_decoder(decoder: Decoder, sharpness: float, level: float, generator: torch.Generator) -> None:
    """Make the decoder linear in channels 0-3, since silu(x) - silu(-x) = x: density logit sharpness * (1 - channel 0) + level."""
    with torch.no_grad():
        for weights in decoder.parameters():
            weights.normal_(0, 0.3, generator=generator)
        decoder.hidden1.weight[:8], decoder.hidden1.bias[:8] = 0, 0
        decoder.hidden2.weight[:8], decoder.hidden2.bias[:8] = 0, 0
        decoder.out.weight[:4], decoder.out.bias[:4] = 0, 0
        for j in range(4):
            plus, minus = 2 * j, 2 * j + 1
            decoder.hidden1.weight[plus, j], decoder.hidden1.weight[minus, j] = 1, -1
            decoder.hidden2.weight[plus, plus], decoder.hidden2.weight[plus, minus] = 1, -1
            decoder.hidden2.weight[minus, plus], decoder.hidden2.weight[minus, minus] = -1, 1
            decoder.out.weight[j, plus], decoder.out.weight[j, minus] = (1, -1) if j else (-sharpness, sharpness)
        decoder.out.bias[0] = sharpness + level


def ellipsoid_head(
    radii: tuple[float, float, float] = (0.27, 0.36, 0.3),
    *,
    sharpness: float = 10.0,
    channels: int = 32,
    hidden: int = 64,
    depth: int = 1,
    size: int = 128,
    axes: Axes = STARTER_AXES,
    half_extent: float = 0.5,
    seed: int = 0,
) -> Head:
    """Return an ellipsoid at the origin with smooth random colours; its surface (at `surface_density`) has these radii, head units.

    sharpness: slope of the occupancy logit per unit of 1 - (x/a)^2 - (y/b)^2 - (z/c)^2; a trained head's surface is about as soft as 10.
    """
    if channels < 4 or hidden < 8:
        raise ValueError(f"the ellipsoid needs at least 4 channels and 8 hidden units, got {channels} and {hidden}")
    generator = torch.Generator().manual_seed(seed)
    activation, decoder = DensityActivation(), Decoder(channels, hidden)
    _set_decoder(decoder, sharpness, -activation.bias / activation.gain, generator)
    planes = _ellipsoid_planes(torch.tensor(radii), channels, depth, size, axes, half_extent, generator)
    plane = TriPlane(to_neutral(planes), depth, axes, half_extent)
    return Head(plane, plane, decoder.requires_grad_(False), activation, meta={"provider": "analytic ellipsoid", "radii": list(radii)})
