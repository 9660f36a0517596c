"""The finest strands of hair that the photo does not show: a texture holds them, the field's colour planes don't."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.prior.hair_colour import BARE, hair_share
from portrait_backend.prior.hair_strands import BAND_EDGES, FINEST, RADIUS, StrandStyle, along_flow, cell_size

LATTICE = 96
STRONGEST = 0.5
"""Largest change of the brightness."""
SAMPLE = 4000
"""Points on which the streaks' spread is measured."""


class HairGrain:
    """Streaks as fine as the photo's own, where hair is by its place (`texture_field.Detail`); covered: as for `hair_share`."""

    def __init__(self, style: StrandStyle, generator: torch.Generator, device: torch.device, covered: tuple[float, float] = BARE) -> None:
        self.style, self.covered = style, covered
        self.cell = cell_size(FINEST, BAND_EDGES[0])
        noise, places = (torch.randn(*shape, generator=generator, device=generator.device) for shape in (3 * (LATTICE,), (SAMPLE, 3)))
        self.noise = noise.to(device)
        self.spread = float(self._streaks(RADIUS * F.normalize(places.to(device), dim=1)).std())

    def _streaks(self, points: Tensor) -> Tensor:
        return along_flow(points, self.noise, self.cell, self.style.length * self.cell)

    def factors(self, points: Tensor, colour: Tensor) -> Tensor:
        """Return what the colours (N, 3) at points (N, 3) are multiplied by: (N,)."""
        share = hair_share(points, self.covered)
        hair = (share > 0).nonzero()[:, 0]
        change = (self.style.grain / self.spread * self._streaks(points[hair])).clamp(-STRONGEST, STRONGEST)
        return torch.ones_like(share).index_copy(0, hair, 1 + share[hair] * change)
