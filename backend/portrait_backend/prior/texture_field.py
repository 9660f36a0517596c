"""A head as its texture takes it: with detail that the photo does not show and the field's colour planes can't hold.

The field is wrapped for the bake, where the photo's own pixels lie over it; the head itself stays as it is.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.portrait.parts import hair_pixels
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.ear_relief import EarRelief
from portrait_backend.prior.ear_shade import EarShade
from portrait_backend.prior.ears import covered_ears
from portrait_backend.prior.hair_colour import hangs_long, photo_hair_colour
from portrait_backend.prior.hair_grain import HairGrain
from portrait_backend.prior.hair_strands import measure_strands
from portrait_backend.prior.skin_grain import SkinGrain, measure_skin
from portrait_backend.radiance.head import Head


class Detail(Protocol):
    """One kind of detail."""

    def factors(self, points: Tensor, colour: Tensor) -> Tensor:
        """Return what the colours (N, 3) at points (N, 3) just below the surface are multiplied by: (N,)."""


class TextureField:
    """A head with detail on its colours; for meshing (`mesh.types.Field`)."""

    def __init__(self, head: Head, details: tuple[Detail, ...], relief: EarRelief | None = None) -> None:
        self.head, self.details, self.relief = head, details, relief
        self.half_extent, self.surface_density, self.mesh_level = head.half_extent, head.surface_density, head.mesh_level

    def density(self, points: Tensor) -> Tensor:
        """The head's density (N,) per head unit at points (N, 3)."""
        return self.head.density(points)

    def folded(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return vertices (V, 3) of the surface with forms that the head itself can't hold: the folds of ears."""
        return vertices if self.relief is None else self.relief.moved(vertices)

    def colour(self, points: Tensor) -> Tensor:
        """Colour (N, 3) in [0, 1] at points (N, 3)."""
        if self.relief is not None:
            points = self.relief.unmoved(points)
        colour = self.head.colour(points)
        if not len(points):
            return colour
        factors = torch.stack([detail.factors(points, colour) for detail in self.details]).prod(0)
        return (colour * factors[:, None]).clamp(0, 1)


def with_detail(head: Head, portrait: Portrait, generator: torch.Generator) -> TextureField | Head:
    """Return the head with grain as the photo's on its hair and skin, and with shade in its ears; itself where the photo shows neither."""
    device, details, hair, measured = head.geometry.planes.device, list[Detail](), hair_pixels(portrait), measure_skin(portrait)
    style, covered = measure_strands(portrait, hair), covered_ears(head, portrait, hair, device)
    if style is not None:
        colour = photo_hair_colour(portrait, hair) if measured is not None and hangs_long(portrait, hair) else None
        long = None if colour is None or measured is None else (colour, measured[1].median(0).values)
        details.append(HairGrain(style, generator, device, covered, long))
    if measured is not None:
        relief = EarRelief(head, covered, measured[1])
        details += [SkinGrain(*measured, generator, device, covered), EarShade(head, measured[1]), relief]
    return TextureField(head, tuple(details), relief if measured is not None else None) if details else head
