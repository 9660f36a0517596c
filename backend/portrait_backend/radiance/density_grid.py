"""A lattice of density that tells where along a ray the matter is, so that the decoder runs only there.

Built now and then (the field changes slowly in a fit), looked up for every ray: a ray that meets no
density costs nothing (empty-space skipping), and no sample lies behind an opaque surface (early stop).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.radiance.field import RadianceField

RESOLUTION, COARSE_STEPS, SAMPLES = 96, 64, 16
CHUNK = 16384
"""Points per density evaluation: the decoder's activations then stay in the cache."""
CONSTANT = 0.02
"""A cell whose neighbourhood varies by less than this share of the surface density is not refined."""
HALO = 0.03
"""Share of a neighbouring cell's density that a cell lends to the proposals, so that grazing rays get samples too."""
BLOCK = 8
"""Cells per side of a block that empty-space skipping tests."""
EMPTY = 0.0025
"""Density per head unit that counts as nothing: across the whole box it adds up to less than a grey level."""
OPAQUE = 1e-3
"""Transmittance at which a ray stops."""
HIT = 1e-3
"""Alpha on the lattice below which a ray counts as empty."""


@dataclass(frozen=True)
class DensityGrid:
    """Density per head unit at the n^3 cell centres of the box.

    values and proposal (n, n, n) indexed z, y, x; cell i of an axis is centred at ((i + 0.5) / n * 2 - 1) * half_extent.
    proposal is values with the halo; occupied (n / b, n / b, n / b) tells the blocks in or next to which it is not all zero.
    """

    values: Tensor
    proposal: Tensor
    occupied: Tensor
    half_extent: float

    @classmethod
    def from_values(cls, values: Tensor, half_extent: float) -> DensityGrid:
        """Wrap a lattice (n, n, n) of densities."""
        values = values.detach()
        around = F.max_pool3d(values[None, None], 3, 1, 1)[0, 0]
        proposal = torch.maximum(values, HALO * around)
        proposal = torch.where(proposal > EMPTY, proposal, 0).contiguous()
        block = BLOCK if len(values) % BLOCK == 0 else 1
        occupied = F.max_pool3d(F.max_pool3d(proposal[None, None], 3, 1, 1), block)[0, 0] > 0
        return cls(values, proposal, occupied, half_extent)

    @classmethod
    @torch.no_grad()
    def build(
        cls, field: RadianceField, resolution: int = RESOLUTION, refine: bool = True, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> DensityGrid:
        """Evaluate the field without gradients: at half resolution, then again only where the neighbourhood is not constant.

        A detail thinner than two cells may be missed between coarse cells; refine=False evaluates every cell.
        """
        half, device = field.half_extent, device or torch.device("cpu")
        if not refine or resolution % 2:
            return cls.from_values(_evaluate(field, _centres(resolution, half, device, dtype)).view(3 * (resolution,)), half)
        coarse = _evaluate(field, _centres(resolution // 2, half, device, dtype)).view(1, 1, *3 * (resolution // 2,))
        varies = F.max_pool3d(coarse, 3, 1, 1) + F.max_pool3d(-coarse, 3, 1, 1) > CONSTANT * field.surface_density
        mask = varies.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4).view(-1)
        values = F.interpolate(coarse, scale_factor=2, mode="trilinear", align_corners=False).view(-1)
        index = mask.nonzero()[:, 0]
        values[index] = _evaluate(field, _centres(resolution, half, device, dtype)[index])
        return cls.from_values(values.view(3 * (resolution,)), half)

    def lookup(self, points: Tensor) -> Tensor:
        """Interpolate the density trilinearly at points (..., 3): (...,); clamped at the border."""
        return _interpolate(self.values, points / self.half_extent)


def _centres(n: int, half: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Cell centres (n^3, 3), z slowest."""
    g = ((torch.arange(n, device=device, dtype=dtype) + 0.5) / n * 2 - 1) * half
    z, y, x = torch.meshgrid(g, g, g, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def _evaluate(field: RadianceField, points: Tensor) -> Tensor:
    return torch.cat([field.density(part) for part in points.split(CHUNK)]) if len(points) else points.new_zeros(0)


def _interpolate(lattice: Tensor, normalised: Tensor) -> Tensor:
    """Trilinear sample of a lattice (n, n, n) at points (..., 3) in [-1, 1]."""
    flat = normalised.reshape(1, 1, 1, -1, 3).to(lattice.dtype)
    sampled = F.grid_sample(lattice[None, None], flat, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.view(normalised.shape[:-1])


def box_interval(origins: Tensor, directions: Tensor, half_extent: float) -> tuple[Tensor, Tensor]:
    """Return where rays enter and leave the box, near and far (N,), in multiples of directions (N, 3); near >= far: not at all.

    origins (3,) or (N, 3). What lies behind the origin does not count: near is at least 0.
    """
    d = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    a, b = (-half_extent - origins) / d, (half_extent - origins) / d
    return torch.minimum(a, b).amax(-1).clamp_min(0), torch.maximum(a, b).amin(-1)


def quantiles(rays: int, samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return sample quantiles: bin centres (1, samples), or stratified (rays, samples) with a generator."""
    u = torch.arange(samples, device=like.device, dtype=like.dtype)
    if generator is None:
        return ((u + 0.5) / samples)[None]
    return (u + torch.rand(rays, samples, generator=generator, dtype=like.dtype, device=generator.device).to(like.device)) / samples


@torch.no_grad()
def propose(
    grid: DensityGrid, origins: Tensor, directions: Tensor, u: Tensor, coarse: int = COARSE_STEPS, compiled: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Place samples along rays by importance, from the lattice alone: t (M, S) ascending, and the index (M,) of the rays that hit.

    origins (3,) or (N, 3), directions (N, 3), u (1 or N, S) from `quantiles`; compiled: None chooses the kernel on the CPU in float32.
    """
    near, far = box_interval(origins, directions, grid.half_extent)
    if compiled is None:
        compiled = directions.device.type == "cpu" and directions.dtype == torch.float32
    t, mass = (_propose_kernel if compiled else _propose_torch)(grid, origins, directions, near, far, u, coarse)
    index = (mass > HIT).nonzero()[:, 0]
    return t[index], index


def _propose_kernel(
    grid: DensityGrid, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, u: Tensor, coarse: int
) -> tuple[Tensor, Tensor]:
    from portrait_backend.radiance import grid_kernels

    t, mass = torch.empty(len(directions), u.shape[1]), torch.empty(len(directions))
    rays = [x.detach().float().contiguous().numpy() for x in (origins.reshape(-1, 3), directions, near, far)]
    cells_per_unit = np.float32(0.5 * len(grid.proposal) / grid.half_extent)
    grid_kernels.place_samples(
        grid.proposal.numpy(), grid.occupied.numpy(), cells_per_unit, *rays, coarse, np.float32(OPAQUE), u.float().contiguous().numpy(), t.numpy(), mass.numpy()
    )
    return t, mass


def _propose_torch(
    grid: DensityGrid, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor, u: Tensor, coarse: int
) -> tuple[Tensor, Tensor]:
    step = ((far - near) / coarse).clamp_min(0)[:, None]
    steps = torch.arange(coarse, device=u.device, dtype=directions.dtype)
    t = near[:, None] + step * (steps + 0.5)
    points = origins.reshape(-1, 1, 3) + directions[:, None] * t[..., None]
    x = _interpolate(grid.proposal, points / grid.half_extent).to(t.dtype) * step
    before = torch.exp(-(torch.cumsum(x, -1) - x))
    weight = before * (1 - torch.exp(-x)) * (before >= OPAQUE)
    mass = weight.sum(-1)
    weight = F.max_pool1d(weight[:, None], 3, 1, 1)[:, 0]
    cumulative = torch.cumsum(weight, -1)
    target = u.to(t.dtype) * cumulative[:, -1:]
    s = torch.searchsorted(cumulative.contiguous(), target.contiguous()).clamp(max=coarse - 1)
    share = 1 - (cumulative.gather(-1, s) - target) / weight.gather(-1, s).clamp_min(1e-20)
    return near[:, None] + step * (s + share.clamp(0, 1)), mass
