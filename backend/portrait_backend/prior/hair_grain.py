"""The finest strands of hair that the photo does not show: a texture holds them, the field's colour planes don't, or not in full."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.prior.hair_colour import BARE, COVER_FADE, COVER_FRONT, hair_likeness, hair_share, share_above
from portrait_backend.prior.hair_strands import GRAIN_EDGES, RADIUS, StrandStyle, along_flow, cell_size

LATTICE = 96
FILL = (1.4, 1.3, 1.0)
"""Strength of each band as a share of the photo's. The field holds a part of the coarser ones, and a mesh's pictures lose some: of what
photos have at 0.6 to 1.5, to 3 and to 6 px of 512, the unseen hair of their meshes had 0.4 to 0.8 with (1, 0, 0), and has 0.55 to 0.95."""
MOST = 0.16
"""Standard deviation of the photo's three bands together, at most: what is more is light and shadow of curls. Four photos: 0.05 to 0.16,
hair in short or long curls 0.2."""
SHOULDERS = -0.36
"""Height (head units) below which what is as dark as hair may be clothes."""
STRONGEST = 0.5
"""Largest change of the brightness."""
STEPS = 6
"""Steps along a streak to either side: at most 1.4 cells of the noise each."""
SAMPLE = 4000
"""Points on which the streaks' spread is measured."""


class HairGrain:
    """Streaks as fine as the photo's own, where hair is by its place, long hair also by its colour (`texture_field.Detail`).

    covered: as for `hair_share`; long: colours (3,) of hair that hangs below the jaw and of the skin, None where it doesn't.
    """

    def __init__(
        self,
        style: StrandStyle,
        generator: torch.Generator,
        device: torch.device,
        covered: tuple[float, float] = BARE,
        long: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.style, self.covered = style, covered
        self.long = None if long is None else (long[0].to(device), long[1].to(device))
        self.cells = [cell_size(fine, coarse) for fine, coarse in pairwise(GRAIN_EDGES)]
        rand = lambda *shape: torch.randn(*shape, generator=generator, device=generator.device).to(device)  # noqa: E731
        self.noise, places = [rand(LATTICE, LATTICE, LATTICE) for _ in self.cells], RADIUS * F.normalize(rand(SAMPLE, 3), dim=1)
        spreads = [float(self._streaks(places, band).std()) for band in range(len(self.cells))]
        tamed = min(1.0, MOST / max(sum(strength**2 for strength in style.grain) ** 0.5, 1e-6))
        self.strengths = [tamed * fill * strength / spread for fill, strength, spread in zip(FILL, style.grain, spreads, strict=True)]

    def _streaks(self, points: Tensor, band: int) -> Tensor:
        return along_flow(points, self.noise[band], self.cells[band], self.style.length * self.cells[band], STEPS)

    def _share(self, points: Tensor, colour: Tensor) -> Tensor:
        place = hair_share(points, self.covered)
        if self.long is None:
            return place
        not_the_face = ((COVER_FRONT - points[:, 2]) / COVER_FADE + 0.5).clamp(0, 1)
        return torch.maximum(place, hair_likeness(colour, *self.long) * not_the_face * share_above(points, SHOULDERS))

    def factors(self, points: Tensor, colour: Tensor) -> Tensor:
        """Return what the colours (N, 3) at points (N, 3) are multiplied by: (N,)."""
        share = self._share(points, colour)
        hair = (share > 0).nonzero()[:, 0]
        bands = [strength * self._streaks(points[hair], band) for band, strength in enumerate(self.strengths)]
        change = torch.stack(bands).sum(0).clamp(-STRONGEST, STRONGEST)
        return torch.ones_like(share).index_copy(0, hair, 1 + share[hair] * change)
