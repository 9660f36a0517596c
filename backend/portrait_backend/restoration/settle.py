"""After the fit: what the photo saw gets the photo's colours again, on the surface as it is now; the rest keeps what it has."""

from __future__ import annotations

import torch

from portrait_backend.context import Context
from portrait_backend.painting.regression import TOUCH_UP, Targets, looked_at, regress
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head


@torch.no_grad()
def settle_targets(head: Head, portrait: Portrait) -> Targets:
    """Return what the surface should look like: the photo, as far as it is to be trusted, mixed into the head's own colours."""
    rays, seen, around = looked_at(head, portrait)
    ray_colour, around_colour = (
        own + points.trust[:, None] * (points.colour - own) for points in (seen, around) for own in (head.colour(points.position),)
    )
    return Targets(rays, ray_colour * rays.weight.sum(-1)[:, None], around, around_colour)


def settle(head: Head, portrait: Portrait, steps: int, context: Context, first: int, total: int) -> Head:
    """Return the head with the photo's colours back after `steps` Adam steps, reported as `first` + 1 and following of `total`.

    A head of which the photo sees nothing, or all of what there is, stays as it is.
    """
    if steps == 0:
        return head
    here, there = torch.device("cpu"), head.geometry.planes.device
    if there != here:
        return settle(head.to(here), portrait, steps, context, first, total).to(there)
    targets = settle_targets(head, portrait)
    if len(targets.ray_colour) == 0 or len(targets.point_colour) == 0:
        return head
    seed = int(torch.randint(0, 2**31, (), generator=context.generator, device=context.generator.device))

    def report(step: int, error: float) -> None:
        context.report(first + step, total, None, colour_error=error)

    return regress(head, targets, steps, torch.Generator(here).manual_seed(seed), report, TOUCH_UP)
