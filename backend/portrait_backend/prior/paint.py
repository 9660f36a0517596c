"""Paint the head: bring its colour planes to the colours that its surface should have, seen and unseen.

The shape stands, so the photo (L_ref on rgb) becomes a regression (`painting/regression.py`); so does the rest of the surface.
"""

from __future__ import annotations

import torch

from portrait_backend.context import Context
from portrait_backend.painting.regression import KNOWN, Targets, looked_at, regress
from portrait_backend.painting.surface import joined
from portrait_backend.portrait.parts import hair_pixels
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.ears import covered_ears
from portrait_backend.prior.unseen import unseen_colours
from portrait_backend.radiance.head import Head


@torch.no_grad()
def paint_targets(head: Head, portrait: Portrait, generator: torch.Generator) -> Targets:
    """Collect what the surface should look like: the photo, as far as it is to be trusted, and `unseen_colours`."""
    rays, seen, around = looked_at(head, portrait)
    doubtful = seen.trust < KNOWN
    open_points = joined([seen[doubtful], around])
    guess = head.colour(open_points.position)
    covered = covered_ears(head, portrait, hair_pixels(portrait))
    guess = unseen_colours(portrait, seen, head.colour(seen.position), open_points, guess, generator, covered)
    colours = guess + open_points.trust[:, None] * (open_points.colour - guess)
    ray_colour = seen.colour.clone()
    ray_colour[doubtful] = colours[: int(doubtful.sum())]
    return Targets(rays, ray_colour * rays.weight.sum(-1)[:, None], around, colours[int(doubtful.sum()) :])


def paint(head: Head, portrait: Portrait, steps: int, context: Context, first: int, total: int) -> Head:
    """Return the head with the photo's colours where it was seen and fitting ones elsewhere, after `steps` Adam steps.

    Progress is reported as steps `first` + 1 and following of `total`.
    """
    targets = paint_targets(head, portrait, context.generator)

    def report(step: int, error: float) -> None:
        context.report(first + step, total, None, colour_error=error)

    return regress(head, targets, steps, context.generator, report)
