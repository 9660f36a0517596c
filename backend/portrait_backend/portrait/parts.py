"""What is what in the photo: hair, bare skin of the face, neck and clothes."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness."""
DISC = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))


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
    bare = joined((np.linalg.norm(lab - skin, axis=-1) < SKIN_LIKE) & solid | face, face)
    hair = around & ~bare
    if (hair & above).sum() < LEAST_SHARE * (around & above).sum():
        hair = around & above
    elif (hair & above).any():
        colour = np.median(lab[hair & above], axis=0)
        like_hair = np.linalg.norm(lab - colour, axis=-1) < np.linalg.norm(lab - skin, axis=-1)
        broad = cv2.erode((solid & ~like_hair | face).astype(np.uint8), DISC)  # bright strands reach the forehead by narrow bridges only
        scalp = cv2.dilate(joined(broad.astype(bool), face).astype(np.uint8), DISC).astype(bool)
        hair = joined(hair & ~scalp & (above | like_hair), hair & above)
    return torch.from_numpy(hair)


def bare_face_pixels(portrait: Portrait, hair: Tensor) -> Tensor:
    """Return which pixels (512, 512) within the face's outline are plainly skin, less like `hair` (512, 512): bool."""
    lab, skin = _lab_and_skin(portrait)
    to_skin = np.linalg.norm(lab - skin, axis=-1)
    bare = face_outline(portrait) & (to_skin < SKIN_LIKE)
    if bool(hair.any()):
        bare &= to_skin < np.linalg.norm(lab - np.median(lab[hair.numpy()], axis=0), axis=-1)
    return torch.from_numpy(bare)


def body_pixels(portrait: Portrait, hair: Tensor) -> Tensor:
    """Return which pixels (512, 512) of the matte are neck, shoulders and clothes: below the jaw's corners, neither face nor hair."""
    size = portrait.rgba.shape[0]
    marks = portrait.landmarks.numpy()
    face = face_outline(portrait)
    below = np.arange(size)[:, None] > marks[list(JAW_CORNERS), 1].mean()
    return (portrait.matte > 0.95) & (portrait.valid > 0.5) & torch.from_numpy(~face & below) & ~hair


def _lab_and_skin(portrait: Portrait) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the photo in Lab (512, 512, 3), lightness by `LIGHTNESS_WEIGHT`, and its skin's colour (3,)."""
    lab = cv2.cvtColor(portrait.rgba[..., :3].contiguous().numpy(), cv2.COLOR_RGB2LAB) * np.array([LIGHTNESS_WEIGHT, 1, 1], np.float32)
    return lab, np.median(at_skin_spots(portrait, lab), axis=0)


def at_skin_spots(portrait: Portrait, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a picture (512, 512, C) of the photo's frame shows on cheeks and forehead: (11, C)."""
    spots = portrait.landmarks.numpy()[list(SKIN_SPOTS)].round().astype(int).clip(0, len(picture) - 1)
    return picture[spots[:, 1], spots[:, 0]]


def joined(region: Mask, seed: Mask) -> Mask:
    """Return the connected pieces of `region` that touch `seed`."""
    _, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=4)
    return np.isin(labels, np.unique(labels[seed & region])) & region
