"""Pores, stubble and mottling of skin that the photo does not show: noise as strong in every band as the photo's own skin.

The field's unseen skin is a mean and looks like wax beside what the photo covers. The noise lives in space, so it has no seam.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor

from portrait_backend.portrait.regions import face_outline
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.hair_colour import BARE, hair_share
from portrait_backend.prior.hair_strands import GRAIN_EDGES, LATTICE, cell_size, masked_blur, noise_at, periodic
from portrait_backend.prior.skin_and_clothes import skin_share

BAND_EDGES = GRAIN_EDGES
"""Standard deviations (px of 512) of the Gaussians whose differences are the bands."""
AROUND = 12.0
"""Standard deviation (px of 512) of the mean that brightness is relative to."""
SURELY = 0.7
"""Likeness from which a pixel of the face is measured: beard, brows and lips are not."""
LEAST_PIXELS = 2000
"""Fewer pixels of skin at 512 px tell no grain."""
DEVIATION = 1.4826
"""Standard deviation per median absolute value of a normal distribution: features, which are few, don't count."""
STRENGTH = 0.8
"""Share of the photo's own strength: noise has none of its order, and looks stronger."""
STRONGEST = 0.3
"""Largest change of the brightness."""


class SkinGrain:
    """The noise, where unseen skin is by colour and place (`texture_field.Detail`).

    strengths: standard deviation of the relative brightness in each band; skin (M, 3): the photo's; covered: as for `hair_share`.
    """

    def __init__(
        self,
        strengths: tuple[float, ...],
        skin: Tensor,
        generator: torch.Generator,
        device: torch.device,
        covered: tuple[float, float] = BARE,
    ) -> None:
        self.strengths, self.skin, self.covered = strengths, skin.to(device), covered
        self.cells = [cell_size(fine, coarse) for fine, coarse in pairwise(BAND_EDGES)]
        lattices = [periodic(torch.randn(3 * (LATTICE,), generator=generator, device=generator.device)).to(device) for _ in self.cells]
        places = torch.rand(LATTICE**2, 3, generator=generator, device=generator.device).to(device)
        self.noise = [lattice / noise_at(lattice, LATTICE * places).std() for lattice in lattices]

    def factors(self, points: Tensor, colour: Tensor) -> Tensor:
        """Return what the colours (N, 3) at points (N, 3) are multiplied by: (N,)."""
        share = skin_share(colour, self.skin) * (1 - hair_share(points, self.covered))
        bands = zip(self.strengths, self.noise, self.cells, strict=True)
        change = torch.stack([strength * noise_at(noise, points / cell) for strength, noise, cell in bands]).sum(0)
        return 1 + share * (STRENGTH * change).clamp(-STRONGEST, STRONGEST)


def measure_skin(portrait: Portrait) -> tuple[tuple[float, ...], Tensor] | None:
    """Return the strength of each band on the face's skin, and colours (M, 3) of the face; None where too little skin shows."""
    colour = portrait.rgba[..., :3].contiguous()
    face = torch.from_numpy(face_outline(portrait)) & (portrait.matte > SURELY) & (portrait.valid > SURELY)
    skin = colour[face]
    bare = (skin_share(colour.reshape(-1, 3), skin).view(face.shape) > SURELY) & face
    mask = cv2.erode(bare.numpy().astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.float32)
    if mask.sum() < LEAST_PIXELS:
        return None
    inside = mask > 0
    light = colour.numpy().mean(-1, keepdims=True)
    light = light / masked_blur(light, mask, AROUND).clip(1e-3)
    blurred = [masked_blur(light, mask, deviation)[..., 0] for deviation in BAND_EDGES]
    return tuple(DEVIATION * float(np.median(np.abs(fine - coarse)[inside])) for fine, coarse in pairwise(blurred)), skin
