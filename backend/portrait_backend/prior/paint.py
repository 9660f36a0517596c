"""Paint the head: bring its colour planes to the colours that its surface should have, seen and unseen.

The shape stands, so the samples and weights of every ray are known beforehand and the photo (L_ref on rgb) becomes a
regression; so does the rest of the surface, point by point. That reaches the detail that the planes can hold and
leaves no stripes where the planes' directions cross.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.adam import Adam
from portrait_backend.prior.surface import RaySamples, ReferenceView, SurfacePoints, joined, points_around
from portrait_backend.prior.unseen import unseen_colours
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.picture import COLOURS, PictureLattice
from portrait_backend.radiance.triplane import resize_planes, sample_planes

LEVELS = ((128, 0.4), (256, 1.0))
"""Texels per side of the residual, and the share of the steps after which the next one takes over."""
RATE = 0.02
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
def paint_targets(head: Head, portrait: Portrait, generator: torch.Generator) -> Targets:
    """Collect what the surface should look like: the photo, as far as it is to be trusted, and `unseen_colours`."""
    lattice = head.picture_lattice()
    reference = ReferenceView(portrait, lattice)
    rays, chosen = _photo_rays(portrait, lattice)
    alpha = rays.weight.sum(-1)
    surface = (rays.points * rays.weight[..., None]).sum(1) / alpha[:, None]
    trust = torch.where(alpha > 0.5, reference.trust.reshape(-1)[chosen], 0)
    seen = SurfacePoints(surface, torch.zeros_like(surface), portrait.rgba[..., :3].reshape(-1, 3)[chosen], trust)
    around = points_around(reference, lattice)
    around = around[around.trust < KNOWN]
    doubtful = seen.trust < KNOWN
    open_points = joined([seen[doubtful], around])
    guess = head.colour(open_points.position)
    guess = unseen_colours(portrait, seen, head.colour(seen.position), open_points, guess, generator)
    colours = guess + open_points.trust[:, None] * (open_points.colour - guess)
    ray_colour = seen.colour.clone()
    ray_colour[doubtful] = colours[: int(doubtful.sum())]
    return Targets(rays, ray_colour * alpha[:, None], around, colours[int(doubtful.sum()) :])


def _photo_rays(portrait: Portrait, lattice: PictureLattice) -> tuple[RaySamples, Tensor]:
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


def paint(head: Head, portrait: Portrait, steps: int, context: Context, first: int, total: int) -> Head:
    """Return the head with the photo's colours where it was seen and fitting ones elsewhere, after `steps` Adam steps.

    Progress is reported as steps `first` + 1 and following of `total`.
    """
    targets = paint_targets(head, portrait, context.generator)
    planes, done = head.appearance.planes, 0
    for size, share in LEVELS:
        residual = torch.zeros(*planes.shape[:3], size, size, planes.shape[5], requires_grad=True)
        decay = 2 * RESIDUAL / residual.numel()  # the gradient of RESIDUAL * mean(residual^2), without two passes over all texels
        optimiser = Adam(residual, RATE, betas=(0.9, 0.98), weight_decay=decay)
        start, last = done, round(steps * share)
        while done < last:
            optimiser.lr = RATE * (1 - 0.8 * (done - start) / (last - start))
            loss = _loss(head, planes, residual, targets, context.generator)
            optimiser.minimise(loss)
            done += 1
            context.report(first + done, total, None, colour_error=float(loss.detach()))
        planes = planes + resize_planes(residual.detach(), planes.shape[3])
    return head.with_planes(appearance=head.appearance.with_planes(planes))


def _loss(head: Head, planes: Tensor, residual: Tensor, targets: Targets, generator: torch.Generator) -> Tensor:
    """Mean colour error of some rays and some points."""
    ray = torch.randint(0, len(targets.ray_colour), (RAYS,), generator=generator)
    point = torch.randint(0, len(targets.point_colour), (POINTS,), generator=generator)
    below = torch.rand(POINTS, 1, generator=generator) * (BELOW + BESIDE) - BESIDE
    inner = targets.points.position[point] + below * targets.points.inward[point]
    at = (torch.cat([targets.rays.points[ray].reshape(-1, 3), inner]) / head.half_extent)[None]
    axes = head.appearance.axes
    colour = head.decoder(sample_planes(planes, at, axes)[0] + sample_planes(residual, at, axes)[0], outputs=4)[1]
    shown = (colour[: RAYS * COLOURS].view(RAYS, COLOURS, 3) * targets.rays.weight[ray][..., None]).sum(1)
    return (shown - targets.ray_colour[ray]).abs().mean() + (colour[RAYS * COLOURS :] - targets.point_colour[point]).abs().mean()
