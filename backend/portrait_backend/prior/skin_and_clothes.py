"""What is skin and what is clothes, where the photo shows it and where the prior guesses: the two don't lend one another colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from portrait_backend.painting.surface import smoothstep
from portrait_backend.portrait.parts import LUMINANCE
from portrait_backend.prior.hair_colour import SHORT_HAIR, share_above

DARK = 0.02
"""Brightness below which black hair tells no shade."""
ALIKE = 0.15
"""Difference of guessed colours up to which points count as the same kind."""
SKIN_ALIKE = 0.25
"""The same of skin, as a share of its brightness: on dark skin a shirt's reflection is a small difference."""
BODY_LIGHT = 0.25
"""How much brightness counts in the likeness of clothes and of skin: they are darker behind than in front."""
LEAST = 1e-3
"""Weight of a neighbour that is not alike at all."""
LIT = (0.4, 3.0)
"""Range of the light on skin, as a share of the face's, within which its colour is taken for skin's."""
SKIN_DOUBT = (0.25, 0.7)
"""Likeness over which something turns from not skin to skin."""
COLLAR, COLLAR_FADE = 0.98, 0.03
"""Share of the seen clothes below the collar's top; height (head units) over it from which there are none."""
COLLAR_RISE, COLLAR_DEPTH = 0.9, 0.15
"""How far a collar rises per length toward the back, down to this z (head units); 60 synthetic shirts: .75 in the
middle, 1 at most of them."""
NAPE_DEPTH = (-0.12, -0.02)
"""z (head units) over which the nape ends."""
FEWEST = 12
"""Points of clothes from which there is a collar."""


def skin_share(colour: Tensor, skin: Tensor) -> Tensor:
    """Return how surely colours (N, 3) are skin, whose samples (M, 3) are the face's: (N,) in [0, 1]; 1 where there is no face."""
    if not len(skin):
        return torch.ones(len(colour))
    usual, weights = skin.median(0).values, colour.new_tensor(LUMINANCE)
    light, lit = colour @ weights, usual @ weights
    hue = colour * (lit / light.clamp_min(DARK)).clamp(*LIT)[:, None] - usual  # shade takes a part of the light, of all channels alike
    difference = hue + BODY_LIGHT * (light - lit)[:, None]
    return smoothstep(torch.exp(-((difference.norm(dim=-1) / (SKIN_ALIKE * lit.clamp_min(DARK))) ** 2)), *SKIN_DOUBT)


def above_collar(position: Tensor, cloth: Tensor) -> Tensor:
    """Return how surely points (N, 3) lie above all that the photo shows of clothes at points (M, 3): (N,) in [0, 1]."""
    if len(cloth) < FEWEST:
        return torch.zeros(len(position))
    level, levels = (p[:, 1] - COLLAR_RISE * (-p[:, 2]).clamp(0, COLLAR_DEPTH) for p in (position, cloth))
    top = float(levels.quantile(COLLAR))
    return smoothstep(level, top, top + COLLAR_FADE)


def nape(position: Tensor) -> Tensor:
    """Return how surely points (N, 3) that are not hair lie behind, below the nape's hairline: (N,) in [0, 1]."""
    return (1 - share_above(position, SHORT_HAIR)) * behind(position)


def behind(position: Tensor) -> Tensor:
    """Return how surely points (N, 3) lie behind: (N,) in [0, 1]."""
    return 1 - smoothstep(position[:, 2], *NAPE_DEPTH)


@dataclass(frozen=True)
class Kinds:
    """Shares of skin of seen points (M,) and of the others (N,), and how strictly the latter keep to their kind (N,)."""

    seen: Tensor
    points: Tensor
    strict: Tensor

    def of(self, seen: Tensor) -> Kinds:
        """Return these with some of the seen points."""
        return Kinds(self.seen[seen], self.points, self.strict)

    def agreement(self, index: Tensor, some: Tensor | None = None) -> Tensor:
        """How much the points, or some (N,) of them, may take from seen points (N, K), each of its own ones: (N, K), `LEAST` at least.

        Skin takes nothing from clothes, nor they from skin, where it is strict: behind, and above the collar. Below it, in front, what
        the prior takes for clothes may be skin in a collar's shade: it takes from all.
        """
        share, strict = (x[:, None] if some is None else x[some, None] for x in (self.points, self.strict))
        alike = self.seen[index] * share + (1 - self.seen[index]) * (1 - share)
        return (1 - strict * (1 - alike**2)).clamp_min(LEAST)
