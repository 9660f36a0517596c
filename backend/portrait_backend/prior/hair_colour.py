"""Which pixels of the photo are hair, which of its unseen surface is, and the hair's colour.

The prior learned from synthetic light, so the back of a head comes out too dark or in an average hair
colour. The photo knows better: its hair gives the colour, and how it varies from strand to strand
(`hair_strands.py`).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.painting.surface import smoothstep
from portrait_backend.portrait.regions import FACE_OVAL, Mask, face_outline, filled_polygon
from portrait_backend.portrait.types import Portrait

JAW = FACE_OVAL[11:26]
"""The part of the outline below the ears; between its ends and below it there is neck, not hair."""
JAW_CORNERS = (172, 397)
EYE_CORNERS = (33, 263)
SKIN_SPOTS = (50, 101, 118, 205, 280, 330, 347, 425, 151, 108, 337)
"""Face-mesh indices on the cheeks and the forehead."""
LIGHTNESS_WEIGHT = 0.5
"""Of lightness against chroma (Lab) in the likeness to skin: light falls off over a face, its hue stays."""
SKIN_LIKE, LEAST_SHARE = 14.0, 0.2
"""Lab distance to the skin within which a pixel that hangs together with the face is bare skin, unless less than this share is left."""
DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
LEAST_PIXELS = 200
"""Fewer hair pixels than this at 512 px tell no colour."""
LIKENESS = (0.35, 0.65)
"""Share of the distance to skin, between hair's and skin's colours, over which something turns from not hair to hair."""
LONG_HAIR = -0.25
"""Hair that the photo shows below this height (head units) is long."""
BESIDE_NECK = 0.2
"""Distance from the middle (head units) at which long hair hangs."""
LEAST_HUE, HUE_SPREAD = 8.0, 2.0
"""Distance in a and b of Lab up to which hair has the same hue, and as a multiple of its median."""
SHORT_HAIR = -0.17
"""Height of the hairline of a nape, head units."""
NECK_FADE = 0.08
"""Height over which neck turns into hair at the back, head units."""
EARS_Z, EARS_TOP = -0.02, 0.08
"""Behind this depth, or above this height, there are no ears."""
BARE = (EARS_TOP, EARS_TOP)
"""Height down to which hair covers the right and the left ear where neither is covered."""
COVER_FRONT, COVER_FADE = 0.08, 0.04
"""Depth before which hair over an ear ends, and length over which it ends there and below (head units)."""


def hair_pixels(portrait: Portrait) -> Tensor:
    """Return which pixels (512, 512) of the photo are the sitter's hair: bool.

    The matte outside the face's outline, above the eyes and what hangs down from there, without skin: what looks like
    the cheeks and the forehead and is joined to them (bare scalp, a high forehead, ears), and without the neck.
    """
    size = portrait.rgba.shape[0]
    marks = portrait.landmarks.numpy()
    face = face_outline(portrait)
    jaw = marks[list(JAW)]
    neck = filled_polygon(np.concatenate([jaw, [[jaw[-1, 0], size], [jaw[0, 0], size]]]), size)
    solid = (portrait.matte.numpy() > 0.95) & (portrait.valid.numpy() > 0.5)
    lab, skin = _lab_and_skin(portrait)
    above = np.zeros_like(face)
    above[: int(marks[list(EYE_CORNERS), 1].mean().clip(0, size))] = True
    around = solid & ~face & ~neck
    bare = _joined((np.linalg.norm(lab - skin, axis=-1) < SKIN_LIKE) & solid | face, face)
    hair = around & ~bare
    if (hair & above).sum() < LEAST_SHARE * (around & above).sum():
        hair = around & above
    elif (hair & above).any():
        colour = np.median(lab[hair & above], axis=0)
        like_hair = np.linalg.norm(lab - colour, axis=-1) < np.linalg.norm(lab - skin, axis=-1)
        broad = cv2.erode((solid & ~like_hair | face).astype(np.uint8), DISC)  # bright strands reach the forehead by narrow bridges only
        scalp = cv2.dilate(_joined(broad.astype(bool), face).astype(np.uint8), DISC).astype(bool)
        hair = _joined(hair & ~scalp & (above | like_hair), hair & above)
    return torch.from_numpy(hair)


def bare_face_pixels(portrait: Portrait, hair: Tensor) -> Tensor:
    """Return which pixels (512, 512) within the face's outline are plainly skin, less like `hair` (512, 512): bool."""
    lab, skin = _lab_and_skin(portrait)
    to_skin = np.linalg.norm(lab - skin, axis=-1)
    bare = face_outline(portrait) & (to_skin < SKIN_LIKE)
    if bool(hair.any()):
        bare &= to_skin < np.linalg.norm(lab - np.median(lab[hair.numpy()], axis=0), axis=-1)
    return torch.from_numpy(bare)


def _lab_and_skin(portrait: Portrait) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the photo in Lab (512, 512, 3), lightness by `LIGHTNESS_WEIGHT`, and its skin's colour (3,)."""
    lab = cv2.cvtColor(portrait.rgba[..., :3].contiguous().numpy(), cv2.COLOR_RGB2LAB) * np.array([LIGHTNESS_WEIGHT, 1, 1], np.float32)
    spots = portrait.landmarks.numpy()[list(SKIN_SPOTS)].round().astype(int).clip(0, len(lab) - 1)
    return lab, np.median(lab[spots[:, 1], spots[:, 0]], axis=0)


def _joined(region: Mask, seed: Mask) -> Mask:
    """Return the connected pieces of `region` that touch `seed`."""
    _, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
    return np.isin(labels, np.unique(labels[seed & region])) & region


def photo_hair_colour(portrait: Portrait, hair: Tensor | None = None) -> Tensor | None:
    """Return the median colour (3,) of the photo's hair (`hair_pixels`); None if too little shows."""
    hair = hair_pixels(portrait) if hair is None else hair
    colours = portrait.rgba[..., :3][hair]
    return colours.median(0).values if len(colours) >= LEAST_PIXELS else None


def of_one_hue(colours: Tensor, colour: Tensor) -> Tensor:
    """Return which hair colours (N, 3) have the hue of `colour` (3,): bool. The others are what shines through between the strands."""
    both = torch.cat([colours, colour[None]])
    chroma = torch.from_numpy(cv2.cvtColor(both[None].contiguous().numpy(), cv2.COLOR_RGB2LAB)[0, :, 1:])
    distance = (chroma[:-1] - chroma[-1]).norm(dim=-1)
    return distance <= max(LEAST_HUE, HUE_SPREAD * float(distance.median())) if len(distance) else distance > 0


def hair_likeness(colour: Tensor, hair: Tensor, skin: Tensor) -> Tensor:
    """Return how much more colours (N, 3) are like hair's (3,) than like skin's (3,): (N,) in [0, 1]."""
    to_hair, to_skin = (colour - hair).norm(dim=-1), (colour - skin).norm(dim=-1)
    return smoothstep(to_skin / (to_hair + to_skin + 1e-6), *LIKENESS)


def hangs_long(portrait: Portrait, hair: Tensor) -> bool:
    """Whether the photo's hair (512, 512) bool hangs below the jaw."""
    low = portrait.camera.project(torch.tensor([[side * BESIDE_NECK, LONG_HAIR, 0.0] for side in (-1, 1)]))[0][:, 1].mean()
    return int(hair[int(low.clamp(0, len(hair))) :].sum()) >= LEAST_PIXELS


def body_pixels(portrait: Portrait, hair: Tensor) -> Tensor:
    """Return which pixels (512, 512) of the matte are neck, shoulders and clothes: below the jaw's corners, neither face nor hair."""
    size = portrait.rgba.shape[0]
    marks = portrait.landmarks.numpy()
    face = face_outline(portrait)
    below = np.arange(size)[:, None] > marks[list(JAW_CORNERS), 1].mean()
    return (portrait.matte > 0.95) & (portrait.valid > 0.5) & torch.from_numpy(~face & below) & ~hair


def hair_share(points: Tensor, covered: tuple[float, float] = BARE) -> Tensor:
    """Return how surely unseen surface points (N, 3) are hair, by place: 1 on crown and back, 0 on neck, ears and temples.

    covered: height (head units) to which hair covers the right and the left ear (`ears.covered_ears`).
    """
    x, y, z = points.unbind(-1)
    behind_ears = ((EARS_Z - z) / 0.08).clamp(0, 1)
    above_ears = ((y - EARS_TOP) / 0.08).clamp(0, 1)
    lowest = torch.where(x < 0, covered[0], covered[1])
    over_ear = ((y - lowest) / COVER_FADE + 0.5).clamp(0, 1) * ((COVER_FRONT - z) / COVER_FADE + 0.5).clamp(0, 1) * (lowest < EARS_TOP)
    return share_above(points, SHORT_HAIR) * torch.maximum(torch.maximum(behind_ears, above_ears), over_ear)


def share_above(points: Tensor, lowest: float) -> Tensor:
    """Return 1 for points (N, 3) above the height `lowest` to which hair reaches, 0 below, with a fade between."""
    return ((points[:, 1] - lowest) / NECK_FADE + 0.5).clamp(0, 1)
