"""Tri-planes (tri-grids): three feature planes of grid depth D, sampled at points and summed.

Layout for computing: (B, 3, D, H, W, C), channels last. Neutral layout of a saved Head: (3, C*D, H, W).
Plane k is indexed by the world axes `axes[k] = (u, v, w)`: u runs along W, v along H (upward), w along D.
Sampling is trilinear; texel and slice centres sit at (i + 0.5) / n. Beyond the outermost centres the nearest counts ("border"), or
the features fade to zero over one texel or slice ("zeros", as EG3D and PanoHead sample).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["border", "zeros"]
Axes = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]
STARTER_AXES: Axes = ((0, 1, 2), (2, 1, 0), (0, 2, 1))
"""(x, y | z), (z, y | x), (x, z | y)."""


class _KernelSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, points: Tensor, axes: Axes, gradient: Tensor | None) -> Tensor:
        from portrait_backend.radiance import plane_kernels

        index = torch.tensor(axes).numpy()
        out = torch.empty(*points.shape[:2], planes.shape[-1])
        depth, height, width = planes.shape[2:5]
        plane_kernels.gather(planes.detach().view(-1).numpy(), depth, height, width, points.detach().numpy(), index, out.numpy())
        ctx.save_for_backward(points)
        ctx.shape, ctx.index, ctx.gradient = planes.shape, index, gradient
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        from portrait_backend.radiance import plane_kernels

        (points,) = ctx.saved_tensors
        if ctx.gradient is None:
            out = torch.from_numpy(np.zeros(ctx.shape, np.float32))  # memory that no sample reaches is never touched
        else:
            out = ctx.gradient.zero_()
        plane_kernels.scatter(grads[0].float().contiguous().numpy(), points.detach().numpy(), ctx.index, out.numpy())
        return out, None, None, None


def _sample_torch(planes: Tensor, points: Tensor, axes: Axes, padding: Padding = "border") -> Tensor:
    batch, _, depth, _, _, channels = planes.shape
    total = planes.new_zeros(batch, points.shape[1], channels)
    for k, (u, v, w) in enumerate(axes):
        uv = points[..., [u, v]][:, :, None]
        z = (points[..., w] * 0.5 + 0.5) * depth - 0.5
        z = z.clamp(0, depth - 1) if padding == "border" or depth == 1 else z
        for s in range(depth):
            texels = planes[:, k, s].permute(0, 3, 1, 2)
            sampled = F.grid_sample(texels, uv, mode="bilinear", padding_mode=padding, align_corners=False)[..., 0].transpose(1, 2)
            total = total + (1 - (z - s).abs()).clamp_min(0)[..., None] * sampled
    return total


def sample_planes(
    planes: Tensor, points: Tensor, axes: Axes = STARTER_AXES, padding: Padding = "border", gradient: Tensor | None = None
) -> Tensor:
    """Sample planes (B, 3, D, H, W, C) at points (B, P, 3) in [-1, 1] and sum over the planes: (B, P, C).

    Differentiable in the planes always, in the points if they require a gradient. On the CPU in
    float32 a compiled kernel is used unless the points require a gradient, or the padding is "zeros".
    gradient: memory of the planes' shape in which the kernel returns their gradient, until the next backward pass; large planes that
    are sampled in every step need not ask the system for it each time.
    """
    plain = padding == "border" and not points.requires_grad
    if plain and planes.device.type == "cpu" and planes.dtype == torch.float32 and min(planes.shape[3:5]) > 1:
        result: Tensor = _KernelSample.apply(planes.contiguous(), points.float().contiguous(), axes, gradient)
        return result
    return _sample_torch(planes, points.to(planes.dtype), axes, padding)


def to_channels_last(planes: Tensor, depth: int) -> Tensor:
    """Convert neutral planes (3, C*D, H, W) (slice-major: d * C + c) to (1, 3, D, H, W, C)."""
    _, channels, height, width = planes.shape
    return planes.view(3, depth, channels // depth, height, width).permute(0, 1, 3, 4, 2)[None].contiguous()


def mirror_planes(planes: Tensor, axes: Axes = STARTER_AXES) -> Tensor:
    """Return planes (B, 3, D, H, W, C) of the same field mirrored left to right."""
    along_x = [(4, 3, 2)[axis.index(0)] for axis in axes]
    return torch.stack([planes[:, k].flip(along_x[k] - 1) for k in range(3)], 1)


def to_neutral(planes: Tensor) -> Tensor:
    """Convert planes (1, 3, D, H, W, C) to the neutral layout (3, C*D, H, W)."""
    _, _, depth, height, width, channels = planes.shape
    return planes[0].permute(0, 1, 4, 2, 3).reshape(3, depth * channels, height, width).contiguous()


def resize_planes(planes: Tensor, size: int, mode: Literal["bicubic", "bilinear"] = "bicubic") -> Tensor:
    """Resample planes (B, 3, D, H, W, C) to size x size texels.

    As ``interpolate`` does it, by two products with its weights: with channels last that takes a third of the time.
    """
    batch, _, depth, height, width, channels = planes.shape
    if height == width == size:
        return planes
    rows, columns = (_resizing(n, size, mode).to(planes) for n in (height, width))
    resized = rows @ planes.reshape(batch * 3 * depth, height, width * channels)
    resized = columns @ resized.view(batch * 3 * depth * size, width, channels)
    return resized.view(batch, 3, depth, size, size, channels)


def _resizing(n: int, size: int, mode: str) -> Tensor:
    """Return the weights (size, n) of n texels in each of `size`."""
    return F.interpolate(torch.eye(n).view(1, 1, n, n), size=(size, n), mode=mode, align_corners=False)[0, 0]
