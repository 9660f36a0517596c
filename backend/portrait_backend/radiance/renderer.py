"""Volume rendering of a radiance field: importance samples from a density lattice, and the dense reference.

Sample positions are constants of the derivative, as usual; everything after them (decoding, quadrature, normals) is
differentiable in whatever the field is made of. The direction parameter t is z-depth, since cameras give directions of unit z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.compositing import composite, midpoint_gaps, ray_weights
from portrait_backend.radiance.density_grid import SAMPLES, DensityGrid, box_interval, propose, quantiles
from portrait_backend.radiance.field import LayeredField, RadianceField

MEMORY_BUDGET_MB = 1024.0
BYTES_PER_SAMPLE = {False: 512, True: 1024}
"""Peak bytes that one decoded sample costs while its graph is alive, without and with features (measured, rounded up)."""
CACHE_SAMPLES = 32768
"""Without gradients, chunks of about this many samples are fastest: their activations stay in the cache."""
LIGHT = 2e-3
"""Weight in its ray below which a sample's own colour is not asked for in a picture: half a grey level at most."""
NORMAL_STEP, SATURATED = 0.008, 1e-4
"""Distance of the four differences of a normal, head units (3 mm); share of a solid's density that counts as empty (or as solid)."""
TETRAHEDRON = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))


@dataclass(frozen=True)
class RayOutput:
    """Along N rays: rgb (N, 3) and features (N, 32) premultiplied, alpha (N,), depth (N,) camera z (0: nothing hit), normals (N, 3).

    Normals are unit vectors in the world, 0 where nothing was hit.
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    features: Tensor | None = None
    normals: Tensor | None = None


@dataclass(frozen=True)
class RenderOutput:
    """An image, each as in `RayOutput` with (H, W) for N; rgb is premultiplied, or over the background if one was given."""

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    features: Tensor | None = None
    normals: Tensor | None = None


def _shade(
    field: RadianceField, origins: Tensor, directions: Tensor, t: Tensor, gap: Tensor, features: bool, normals: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Decode and composite samples t (M, S): values (M, 3 or 32), alpha, depth (M,), normals (M, 3)."""
    points = origins.reshape(-1, 1, 3) + directions[:, None] * t[..., None]
    if not torch.is_grad_enabled() and getattr(field, "colours_apart", False):
        value, alpha, depth = _shade_apart(cast(LayeredField, field), points, t, gap, features)
    else:
        density, values = field.decode(points.reshape(-1, 3), features=features)
        value, alpha, depth, _ = composite(density.view(t.shape), values.view(*t.shape, values.shape[-1]), t, gap)
    normal = surface_normals(field, origins + directions * depth[:, None]) if normals else None
    return value, alpha, depth, normal


def _shade_apart(field: LayeredField, points: Tensor, t: Tensor, gap: Tensor, features: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Composite samples at points (M, S, 3) as `_shade` does, with colours decoded only where they weigh: values, alpha, depth.

    The weight of the samples left out goes to the others of their ray in proportion.
    """
    weight = ray_weights(field.density(points.reshape(-1, 3)).view(t.shape), t, gap)
    alpha = weight.sum(-1)
    depth = (weight * t).sum(-1) / alpha.clamp_min(1e-4)
    counts = weight >= torch.minimum(weight.amax(-1, keepdim=True), weight.new_tensor(LIGHT))
    ray, sample = counts.nonzero(as_tuple=True)
    kept = weight * counts
    share = (kept * (alpha / kept.sum(-1).clamp_min(1e-12))[:, None])[ray, sample]
    values = field.values(points[ray, sample], features)
    return values.new_zeros(len(t), values.shape[-1]).index_add_(0, ray, share[:, None] * values), alpha, depth


def surface_normals(field: RadianceField, points: Tensor, step: float = NORMAL_STEP) -> Tensor:
    """Return outward unit normals (N, 3) at surface points (N, 3).

    Minus the gradient, by differences at a tetrahedron's corners, of the density's log-odds (a solid is twice the surface
    density): a sigmoid edge is a ramp in them, so that the differences neither saturate nor vanish beside the surface.
    """
    corners = points.new_tensor(TETRAHEDRON)
    density = field.density((points[:, None] + step / 3**0.5 * corners).reshape(-1, 3)).view(-1, 4)
    odds = torch.logit(density / (2 * field.surface_density), SATURATED)
    return -torch.nn.functional.normalize(odds @ corners.to(odds.dtype), dim=-1, eps=1e-6)


def render_rays(
    field: RadianceField,
    origins: Tensor,
    directions: Tensor,
    grid: DensityGrid,
    *,
    samples: int = SAMPLES,
    coarse: int | None = None,
    features: bool = False,
    normals: bool = False,
    generator: torch.Generator | None = None,
    memory_budget_mb: float = MEMORY_BUDGET_MB,
) -> RayOutput:
    """Render rays: origins (3,) or (N, 3), directions (N, 3) of unit camera z.

    generator: stratified sample positions instead of fixed ones. Where the samples of all rays exceed the budget they are
    rendered in chunks, whose graphs are recomputed in the backward pass; the result does not depend on the budget.
    """
    placed = propose(grid, origins, directions, samples, coarse, generator)
    graph, rays = torch.is_grad_enabled(), _chunk_rays(samples, features, memory_budget_mb)
    parts: list[Any] = []
    for t, gap, index in zip(placed.t.split(rays), placed.gap.split(rays), placed.index.split(rays), strict=True):
        inputs = (field, origins if origins.ndim == 1 else origins[index], directions[index], t, gap, features, normals)
        parts.append(checkpoint(_shade, *inputs, use_reentrant=False) if graph and len(placed.t) > rays else _shade(*inputs))
    return _scatter(parts, placed.index, directions, 32 if features else 3, normals)


def _chunk_rays(samples: int, features: bool, memory_budget_mb: float) -> int:
    """Rays that may be decoded at once."""
    limit = int(memory_budget_mb * 2**20 / BYTES_PER_SAMPLE[features])
    return max(1, (limit if torch.is_grad_enabled() else min(limit, CACHE_SAMPLES)) // samples)


def _scatter(parts: list[Any], index: Tensor, directions: Tensor, channels: int, normals: bool) -> RayOutput:
    """Put the results of the rays that hit back among the empty ones."""
    count = len(directions)

    def place(k: int, *shape: int) -> Tensor:
        if not parts:
            return directions.new_zeros(count, *shape)
        hit = torch.cat([p[k] for p in parts])
        return hit.new_zeros(count, *shape).index_copy(0, index, hit)

    value = place(0, channels)
    return RayOutput(value[:, :3], place(1), place(2), value if channels > 3 else None, place(3, 3) if normals else None)


def render(
    field: RadianceField,
    camera: Camera,
    size: int | None = None,
    *,
    grid: DensityGrid | None = None,
    samples: int = SAMPLES,
    features: bool = False,
    normals: bool = False,
    background: Tensor | None = None,
    generator: torch.Generator | None = None,
    memory_budget_mb: float = MEMORY_BUDGET_MB,
) -> RenderOutput:
    """Render a camera's image, `size` pixels wide if given; builds the density lattice if none is passed. background (3,) rgb."""
    camera = camera if size is None else camera.resized(size)
    origin, directions = camera.rays()
    grid = grid or DensityGrid.build(field, device=directions.device, dtype=directions.dtype)
    out = render_rays(
        field,
        origin,
        directions,
        grid,
        samples=samples,
        features=features,
        normals=normals,
        generator=generator,
        memory_budget_mb=memory_budget_mb,
    )
    return _image(out, camera, background)


def _image(out: RayOutput, camera: Camera, background: Tensor | None) -> RenderOutput:
    shape = (camera.height, camera.width)
    rgb, alpha = out.rgb.view(*shape, 3), out.alpha.view(shape)
    if background is not None:
        rgb = rgb + (1 - alpha[..., None]) * background
    features = None if out.features is None else out.features.view(*shape, out.features.shape[1])
    return RenderOutput(rgb, alpha, out.depth.view(shape), features, None if out.normals is None else out.normals.view(*shape, 3))


def render_dense(
    field: RadianceField,
    camera: Camera,
    size: int | None = None,
    *,
    coarse: int = 48,
    fine: int = 48,
    features: bool = False,
    generator: torch.Generator | None = None,
    memory_budget_mb: float = MEMORY_BUDGET_MB,
) -> RenderOutput:
    """Render as EG3D does: every ray, `coarse` even samples between the box's near and far depth, `fine` more by their weights.

    The reference for quality and speed; no lattice, no skipping.
    """
    camera = camera if size is None else camera.resized(size)
    origin, directions = camera.rays()
    near, far = box_interval(origin, directions, field.half_extent)
    crosses = near < far
    near, far = (near[crosses].amin(), far[crosses].amax()) if bool(crosses.any()) else (near.amin(), near.amin() + 1)
    u, v = (quantiles(len(directions), n, directions, generator).expand(len(directions), n) for n in (coarse, fine))
    graph, rays = torch.is_grad_enabled(), _chunk_rays(coarse + fine, features, memory_budget_mb)
    parts = []
    for first in range(0, len(directions), rays):
        some = slice(first, first + rays)
        inputs = (field, origin, directions[some], near + (far - near) * u[some], v[some], (far - near) / coarse, features)
        parts.append(checkpoint(_shade_dense, *inputs, use_reentrant=False) if graph and len(directions) > rays else _shade_dense(*inputs))
    index = torch.arange(len(directions), device=directions.device)
    return _image(_scatter(parts, index, directions, 32 if features else 3, False), camera, None)


def _shade_dense(
    field: RadianceField, origin: Tensor, directions: Tensor, t: Tensor, v: Tensor, step: Tensor, features: bool
) -> tuple[Tensor, Tensor, Tensor]:
    def decode(at: Tensor) -> tuple[Tensor, Tensor]:
        density, values = field.decode((origin + directions[:, None] * at[..., None]).reshape(-1, 3), features=features)
        return density.view(at.shape), values.view(*at.shape, values.shape[-1])

    density, values = decode(t)
    with torch.no_grad():
        weight = ray_weights(density, t, midpoint_gaps(t)) + 1e-4
        cumulative = torch.cumsum(weight, -1)
        target = v * cumulative[:, -1:]
        s = torch.searchsorted(cumulative, target.contiguous()).clamp(max=t.shape[1] - 1)
        share = (1 - (cumulative.gather(-1, s) - target) / weight.gather(-1, s)).clamp(0, 1)
        finer = t.gather(-1, s) + step * (share - 0.5)
    density2, values2 = decode(finer)
    order = torch.cat([t, finer], -1).sort(-1)
    density = torch.cat([density, density2], -1).gather(-1, order.indices)
    values = torch.cat([values, values2], 1).gather(1, order.indices[..., None].expand(-1, -1, values.shape[-1]))
    return composite(density, values, order.values, midpoint_gaps(order.values))[:3]
