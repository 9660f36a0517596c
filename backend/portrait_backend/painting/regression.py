"""Bring a head's colour planes to wanted colours, by regression: its shape stands, so all samples and weights are known beforehand.

That reaches the detail that the planes can hold and leaves no stripes where the planes' directions cross.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from portrait_backend.painting.adam import Adam
from portrait_backend.painting.surface import RaySamples, ReferenceView, SurfacePoints, points_around
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.picture import COLOURS, PictureLattice
from portrait_backend.radiance.triplane import resize_planes


@dataclass(frozen=True)
class Level:
    """A residual of `size` texels a side learns until `share` of the steps, at a rate that falls evenly from `first` to `last`."""

    size: int
    share: float
    first: float
    last: float


LEVELS = (Level(128, 0.4, 0.02, 0.004), Level(256, 1.0, 0.014, 0.0005))
"""Adam's steps are as large where the colours are right already, and the fine level's stay in the planes as noise: it ends small.
Lower rates still give up detail of real photos for less noise around. In 40 steps, at the fine level 0.02 to 0.004: 26.6 dB to one photo,
points from around off by 0.0152; these: 26.3 dB and 0.0138; 0.006 to 0.0005: 25.7 dB and 0.0132."""
TOUCH_UP = (Level(256, 1.0, 0.004, 0.0005),)
"""For colours that are nearly right."""
RAYS, POINTS = 3500, 8000
"""Rays of the photo and points from around a step."""
BESIDE, BELOW = 0.005, 0.012
"""Depths (head units) above and below the surface that are painted too: rays and the texture's bake read there."""
KNOWN = 0.98
"""Points of this trust are left to the rays."""
RESIDUAL = 0.5
"""Weight of the residual's mean square."""


@dataclass(frozen=True)
class Targets:
    """rays and the colour (R, 3) that each shall show, premultiplied; points and the colour (N, 3) that each shall have."""

    rays: RaySamples
    ray_colour: Tensor
    points: SurfacePoints
    point_colour: Tensor


@torch.no_grad()
def photo_rays(portrait: Portrait, lattice: PictureLattice) -> tuple[RaySamples, Tensor]:
    """Return the samples that a picture would colour of the rays through every other photo pixel that hit; the pixels (R,)."""
    camera = portrait.camera
    origin, directions = camera.rays()
    pixel = torch.arange(len(directions))
    wanted = ((pixel + pixel // camera.width) % 2 == 0) & (portrait.matte.reshape(-1) > 0.5) & (portrait.valid.reshape(-1) > 0.5)
    pixel = pixel[wanted]
    alpha, _, t = lattice.march(origin, directions[pixel])
    hit = (alpha > 0.1).nonzero()[:, 0]
    points = origin + directions[pixel[hit], None] * t[hit, :, None]
    return RaySamples(points, (alpha[hit, None] / COLOURS).expand(-1, COLOURS), hit), pixel[hit]


def seen_points(rays: RaySamples, pixel: Tensor, portrait: Portrait, trust: Tensor) -> SurfacePoints:
    """Return where the photo's rays (R,) meet the surface, with the photo's colour there; trust: of each pixel (H, W)."""
    alpha = rays.weight.sum(-1)
    surface = (rays.points * rays.weight[..., None]).sum(1) / alpha[:, None]
    trust = torch.where(alpha > 0.5, trust.reshape(-1)[pixel], 0)
    return SurfacePoints(surface, torch.zeros_like(surface), portrait.rgba[..., :3].reshape(-1, 3)[pixel], trust)


def looked_at(head: Head, portrait: Portrait) -> tuple[RaySamples, SurfacePoints, SurfacePoints]:
    """Return the photo's rays (R,), where they meet the surface (R,), and points of the rest of it (N,) that the rays don't settle."""
    lattice = head.picture_lattice()
    reference = ReferenceView(portrait, lattice)
    rays, pixel = photo_rays(portrait, lattice)
    around = points_around(reference, lattice)
    seen = seen_points(rays, pixel, portrait, reference.trust)
    seen = replace(seen, trust=seen.trust * (1 - reference.collar.hides(seen.position)))
    return rays, seen, around[around.trust < KNOWN]


def regress(
    head: Head,
    targets: Targets,
    steps: int,
    generator: torch.Generator,
    report: Callable[[int, float], None],
    levels: Sequence[Level] = LEVELS,
) -> Head:
    """Return the head with colour planes that show the targets, after `steps` Adam steps; report(step, colour error) after each."""
    planes, done = head.appearance, 0
    for level in levels:
        residual = torch.zeros(*planes.planes.shape[:3], level.size, level.size, planes.channels, requires_grad=True)
        decay = 2 * RESIDUAL / residual.numel()  # the gradient of RESIDUAL * mean(residual^2), without two passes over all texels
        optimiser = Adam(residual, level.first, betas=(0.9, 0.98), weight_decay=decay)
        gradient = torch.zeros_like(residual, requires_grad=False)
        start, end = done, round(steps * level.share)
        while done < end:
            optimiser.lr = level.first + (level.last - level.first) * (done - start) / max(1, end - start - 1)
            loss = _loss(head, planes, planes.with_planes(residual), gradient, targets, generator)
            optimiser.minimise(loss)
            done += 1
            report(done, float(loss.detach()))
        planes = planes.with_planes(planes.planes + resize_planes(residual.detach(), planes.planes.shape[3]))
    return head.with_planes(appearance=planes)


def _loss(head: Head, planes: TriPlane, residual: TriPlane, gradient: Tensor, targets: Targets, generator: torch.Generator) -> Tensor:
    """Mean colour error of some rays and some points; `gradient` holds the residual's (`sample_planes`)."""
    ray = torch.randint(0, len(targets.ray_colour), (RAYS,), generator=generator)
    point = torch.randint(0, len(targets.point_colour), (POINTS,), generator=generator)
    below = torch.rand(POINTS, 1, generator=generator) * (BELOW + BESIDE) - BESIDE
    inner = targets.points.position[point] + below * targets.points.inward[point]
    at = torch.cat([targets.rays.points[ray].reshape(-1, 3), inner])
    colour = head.decoder(planes.sample(at) + residual.sample(at, gradient), outputs=4)[1]
    shown = (colour[: RAYS * COLOURS].view(RAYS, COLOURS, 3) * targets.rays.weight[ray][..., None]).sum(1)
    return (shown - targets.ray_colour[ray]).abs().mean() + (colour[RAYS * COLOURS :] - targets.point_colour[point]).abs().mean()
