"""The finest strands of hair that the photo does not show: a texture holds them, the field's colour planes don't.

The field is wrapped for the bake, where the photo's own pixels lie over it; the head itself stays as it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.prior.hair_colour import hair_pixels, hair_share
from portrait_backend.prior.hair_strands import (
    BAND_EDGES,
    CELLS_PER_DEVIATION,
    FINEST,
    RADIUS,
    StrandStyle,
    along_flow,
    measure_strands,
)
from portrait_backend.radiance.cameras import ORBIT_RADIUS, focal_pixels
from portrait_backend.radiance.head import Head

LATTICE = 96
STRONGEST = 0.5
"""Largest change of the brightness."""
SAMPLE = 4000
"""Points on which the streaks' spread is measured."""


class GrainedField:
    """A head whose hair, where hair is by its place, is as fine-grained as the photo's; for meshing (`mesh.types.Field`)."""

    def __init__(self, head: Head, style: StrandStyle, generator: torch.Generator) -> None:
        self.head, self.style = head, style
        self.half_extent, self.surface_density = head.half_extent, head.surface_density
        self.cell = CELLS_PER_DEVIATION * (FINEST * BAND_EDGES[0]) ** 0.5 * ORBIT_RADIUS / focal_pixels(PORTRAIT_SIZE)
        device = head.geometry.planes.device
        noise, places = (torch.randn(*shape, generator=generator, device=generator.device) for shape in (3 * (LATTICE,), (SAMPLE, 3)))
        self.noise = noise.to(device)
        self.spread = float(self._streaks(RADIUS * F.normalize(places.to(device), dim=1)).std())

    def _streaks(self, points: Tensor) -> Tensor:
        return along_flow(points, self.noise, self.cell, self.style.length * self.cell)

    def density(self, points: Tensor) -> Tensor:
        """The head's density (N,) per head unit at points (N, 3)."""
        return self.head.density(points)

    def colour(self, points: Tensor) -> Tensor:
        """Colour (N, 3) in [0, 1] at points (N, 3)."""
        colour, share = self.head.colour(points), hair_share(points)
        hair = (share > 0).nonzero()[:, 0]
        change = (self.style.grain / self.spread * self._streaks(points[hair])).clamp(-STRONGEST, STRONGEST)
        return colour.index_copy(0, hair, colour[hair] * (1 + share[hair] * change)[:, None]).clamp(0, 1)


def with_grain(head: Head, portrait: Portrait, generator: torch.Generator) -> GrainedField | Head:
    """Return the head with the photo's grain on its hair; itself where the photo shows too little hair."""
    style = measure_strands(portrait, hair_pixels(portrait))
    return head if style is None else GrainedField(head, style, generator)
