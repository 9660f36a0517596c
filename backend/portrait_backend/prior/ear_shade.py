"""The shade in an ear's hollows: the prior paints ears in one tone, and light that falls from everywhere reaches less of a hollow."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.portrait.regions import ear_share
from portrait_backend.prior.skin_and_clothes import skin_share
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head

REACH = 0.022
"""Standard deviation (head units) of the Gaussian in which the matter around a point is weighed."""
DEPTH = 0.008
"""How far below the surface the texture's points lie (`mesh.bake.INSIDE`), head units."""
FLAT = 0.5 * (1 + math.erf(DEPTH / REACH / 2**0.5))
"""Share of matter around such a point of a flat surface."""
SHADE = 2.2
"""Loss of brightness per share of matter beyond that."""
RANGE = (-0.12, 0.35)
"""Shares beyond a flat surface's that count: edges catch a little more light."""


class EarShade:
    """The shade, where ears are by their place and skin by its colour (`texture_field.Detail`); skin (M, 3): the photo's."""

    def __init__(self, head: Head, skin: Tensor) -> None:
        grid = head.density_grid()
        matter = (grid.values > head.surface_density).float()
        self.around = DensityGrid.from_values(_smoothed(matter, REACH * len(matter) / (2 * grid.half_extent)), grid.half_extent)
        self.skin = skin.to(matter.device)

    def factors(self, points: Tensor, colour: Tensor) -> Tensor:
        """Return what the colours (N, 3) at points (N, 3) are multiplied by: (N,)."""
        share = ear_share(points)
        ears = (share > 0).nonzero()[:, 0]
        beyond = (self.around.lookup(points[ears]) - FLAT).clamp(*RANGE)
        return torch.ones_like(share).index_copy(0, ears, 1 - SHADE * share[ears] * skin_share(colour[ears], self.skin) * beyond)


def _smoothed(lattice: Tensor, deviation: float) -> Tensor:
    """Return a lattice (n, n, n) blurred by a Gaussian of that many cells."""
    reach = math.ceil(3 * deviation)
    at = torch.arange(-reach, reach + 1, device=lattice.device, dtype=lattice.dtype)
    weights = torch.exp(-0.5 * (at / deviation) ** 2)
    weights = weights / weights.sum()
    blurred = lattice[None, None]
    for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        blurred = F.conv3d(blurred, weights.view(1, 1, *shape), padding="same")
    return blurred[0, 0]
