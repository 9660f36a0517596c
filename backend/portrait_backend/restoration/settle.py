"""After the fit: what the photo saw gets the photo's colours again, on the surface as it is now; the rest keeps what it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.painting.regression import TOUCH_UP, Targets, looked_at, regress
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head

REACH, STEPS = 0.03, 25
"""How far from the new surface, to both sides, the former one is looked for (head units), and at how many places."""


@torch.no_grad()
def former_places(former: Head, position: Tensor, inward: Tensor) -> Tensor:
    """Return where the former head's surface is, along the unit directions `inward` (N, 3), nearest to positions (N, 3): (N, 3).

    Positions from which it is not within `REACH` stay.
    """
    offset = torch.linspace(-REACH, REACH, STEPS)
    along = position[:, None] + offset[:, None] * inward[:, None]
    solid = former.density_grid().lookup(along) - former.surface_density
    enters = (solid[:, :-1] < 0) & (solid[:, 1:] >= 0)
    share = solid[:, :-1] / (solid[:, :-1] - solid[:, 1:]).clamp_max(-1e-6)
    crossing = offset[:-1] + share.clamp(0, 1) * (offset[1] - offset[0])
    nearest = torch.where(enters, crossing.abs(), torch.inf).argmin(1, keepdim=True)
    moved = torch.where(enters.gather(1, nearest), crossing.gather(1, nearest), 0)
    return position + moved * inward


@torch.no_grad()
def settle_targets(head: Head, portrait: Portrait, former: Head) -> Targets:
    """Return what the surface should look like: the photo, as far as it is to be trusted, mixed into the head's own colours.

    Own colours lie on the former head's surface: the planes hold none away from it. Where the surface has moved they are carried along.
    """
    rays, seen, around = looked_at(head, portrait)
    towards = F.normalize(seen.position - portrait.camera.centre, dim=1)
    colours = []
    for points, inward in ((seen, towards), (around, around.inward)):
        own = head.colour(former_places(former, points.position, inward))
        colours.append(own + points.trust[:, None] * (points.colour - own))
    return Targets(rays, colours[0] * rays.weight.sum(-1)[:, None], around, colours[1])


def settle(head: Head, former: Head, portrait: Portrait, steps: int, context: Context, first: int, total: int) -> Head:
    """Return the head with the photo's colours back after `steps` Adam steps, reported as `first` + 1 and following of `total`.

    former: the head before its surface moved. A head of which the photo sees nothing, or all of what there is, stays as it is.
    """
    if steps == 0:
        return head
    here, there = torch.device("cpu"), head.geometry.planes.device
    if there != here:
        return settle(head.to(here), former.to(here), portrait, steps, context, first, total).to(there)
    targets = settle_targets(head, portrait, former)
    if len(targets.ray_colour) == 0 or len(targets.point_colour) == 0:
        return head
    seed = int(torch.randint(0, 2**31, (), generator=context.generator, device=context.generator.device))

    def report(step: int, error: float) -> None:
        context.report(first + step, total, None, colour_error=error)

    return regress(head, targets, steps, torch.Generator(here).manual_seed(seed), report, TOUCH_UP)
