"""Evaluate a field's density on a fine lattice, but only near the surface that a coarse lattice finds.

The lattice holds the compressed density u = logit(density / saturation) - level, clipped to +-CLIP: 0 at the
mesh's surface, positive inside, close to a signed distance where the density is a steep sigmoid.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.mesh.types import Field

STRIDE = 4
"""Fine cells per coarse cell along an axis."""
CLIP = 4.0
"""Bound of the compressed density: 1.8 % and 98.2 % of saturation."""
NEAR_SURFACE = 2.0
"""A coarse cell is refined if its compressed density comes within this of the surface: 12 % to 88 % of saturation."""
POINTS_PER_CHUNK = 1 << 17
MAX_ROUNDS = 12
"""Times the refined region may grow along a surface that the coarse lattice missed."""


def compress_density(density: Tensor, surface_density: float, level: float = 0.0) -> Tensor:
    """Return logit(density / (2 surface_density)) - level clipped to +-CLIP, 0 where the mesh is cut; same shape."""
    share = density / (2 * surface_density)
    return (torch.logit(share.clamp(1e-6, 1 - 1e-6)) - level).clamp(-CLIP, CLIP)


@torch.no_grad()
def sample_lattice(field: Field, resolution: int, context: Context) -> Tensor:
    """Sample the compressed density at (n + 1)^3 lattice points that span the field's box, n = resolution rounded up to STRIDE.

    Returns (n + 1, n + 1, n + 1) float32 on the CPU, indexed [x, y, z]. Cells away from the surface hold
    interpolated coarse values. Reports progress and can be cancelled through `context`.
    """
    blocks = max(2, math.ceil(resolution / STRIDE))
    side = blocks * STRIDE + 1
    axis = torch.linspace(-field.half_extent, field.half_extent, side)
    coarse_axis = axis[::STRIDE]
    coarse = _evaluate(field, torch.cartesian_prod(coarse_axis, coarse_axis, coarse_axis), context).view(blocks + 1, blocks + 1, blocks + 1)
    volume = F.interpolate(coarse[None, None], size=side, mode="trilinear", align_corners=True)[0, 0]
    todo = _near_surface(volume)
    done = torch.zeros_like(todo)
    for _ in range(MAX_ROUNDS):
        if not bool(todo.any()):
            break
        _refine(field, volume, axis, todo, context)
        done |= todo
        todo = _newly_near(volume, todo, done)
    return volume


def _near_surface(volume: Tensor) -> Tensor:
    """Return which blocks (b, b, b) the surface passes, their far faces included."""
    high, low = _block_maximum(volume), -_block_maximum(-volume)
    return (high > -NEAR_SURFACE) & (low < NEAR_SURFACE)


def _newly_near(volume: Tensor, changed: Tensor, done: Tensor) -> Tensor:
    """Return which blocks (b, b, b) beside those that changed the surface passes; what is done doesn't count."""
    beside = (F.max_pool3d(changed[None, None].float(), 3, 1, 1)[0, 0] > 0) & ~done
    whole = volume
    for axis in range(3):
        whole = whole.unfold(axis, STRIDE + 1, STRIDE)
    samples = whole[beside].flatten(1)
    found = torch.zeros_like(done)
    found[beside] = (samples.amax(1) > -NEAR_SURFACE) & (samples.amin(1) < NEAR_SURFACE)
    return found


def _block_maximum(volume: Tensor) -> Tensor:
    """Maximum over the STRIDE + 1 samples of each block along every axis."""
    for axis in range(3):
        owned = volume.narrow(axis, 0, volume.shape[axis] - 1).unflatten(axis, (-1, STRIDE)).amax(axis + 1)
        far = volume.narrow(axis, STRIDE, volume.shape[axis] - STRIDE)[(slice(None),) * axis + (slice(None, None, STRIDE),)]
        volume = torch.maximum(owned, far)
    return volume


def _refine(field: Field, volume: Tensor, axis: Tensor, todo: Tensor, context: Context) -> None:
    """Evaluate all samples of the blocks in `todo`, far faces included, into `volume`."""
    side, inside = len(axis), torch.arange(STRIDE + 1)
    strides = torch.tensor([side * side, side, 1])
    offsets = torch.cartesian_prod(inside, inside, inside) @ strides
    needed = torch.zeros(volume.numel(), dtype=torch.bool)
    needed[(STRIDE * (todo.nonzero() @ strides))[:, None] + offsets] = True
    index = needed.nonzero()[:, 0]
    rest, z = torch.div(index, side, rounding_mode="floor"), index % side
    points = torch.stack([axis[torch.div(rest, side, rounding_mode="floor")], axis[rest % side], axis[z]], -1)
    volume.view(-1)[index] = _evaluate(field, points, context)


def _evaluate(field: Field, points: Tensor, context: Context) -> Tensor:
    values = []
    for start in range(0, len(points), POINTS_PER_CHUNK):
        context.report(start, len(points))
        chunk = points[start : start + POINTS_PER_CHUNK].to(context.device)
        values.append(compress_density(field.density(chunk).float(), field.surface_density, field.mesh_level).cpu())
    return torch.cat(values)
