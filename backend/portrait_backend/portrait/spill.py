"""Remove background colour that shines through hair or is reflected by it (spill), or between its strands, from foreground colours.

Matting explains an edge pixel as a mixture; backlit hair is tinted deeper inside. There the chroma that a pixel has
in the hue of the local background, beyond what the local interior has of it, is taken away; its lightness stays.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from portrait_backend.portrait.closed_form import Array

REACH = 30
"""Spill is looked for up to this many px (of 512) inside the silhouette, and fades out to there."""
SPREAD = 24.0
"""Standard deviation in px of the windows that give the local interior and background colour."""
FAR = 3.0
"""How many times as wide the windows are that give the background's colour in gaps, which may lie deep in hair."""
COARSE = 4
"""Pixels a side that are one when those windows are drawn."""
MIN_SEPARATION = 10.0
"""Chroma (Lab units) that the background must have beyond the interior, else spill can't be told from variety."""
GAP_CHROMA = 18.0
"""Chroma (Lab units) by which a gap between strands differs from the local interior."""
BESIDE_FACE = 25
"""Width in px of the square that widens the face: what borders on it is a pocket under an ear, not a gap between strands."""
FEWEST, TOLERANCE = 200, 3.0
"""Pixels of hair that tell its colour; chroma (Lab units) that hair may have beyond its median in the background's hue."""
MIXED = 5
"""Width in px of the disc that widens gaps: what borders on them is mixed with them."""
SITTER, AROUND = 0.9, 31
"""Alpha below which a pixel doesn't tell what goes on into a gap; width in px of the square around gaps in which such are filled, too."""


def remove_spill(
    foreground: Array, alpha: Array, image: Array, gaps: NDArray[np.bool_], background: NDArray[np.bool_], face: NDArray[np.bool_]
) -> Array:
    """Return foreground colours (H, W, 3) in [0, 1] without background tint near the silhouette.

    alpha (H, W); image (H, W, 3) whose `background` pixels (H, W) are known; gaps (H, W): what may be background, too, doesn't tell what
    the interior is like; `face` (H, W) is never touched.
    """
    lab = _lab(foreground)
    depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    interior, has_interior = _local_mean(lab[..., 1:], (depth > REACH / 2) & ~face & ~gaps)
    behind, has_background = _local_mean(_lab(image)[..., 1:], background)
    strength = np.linalg.norm(behind, axis=-1)
    hue = behind / np.maximum(strength, 1e-3)[..., None]
    own, usual = (lab[..., 1:] * hue).sum(-1), (interior * hue).sum(-1).clip(0)
    fade = np.clip(1.5 * (1 - depth / REACH), 0, 1) * np.clip((strength - usual) / MIN_SEPARATION - 1, 0, 1)
    amount = np.where(~face & has_interior & has_background, fade * (own - usual).clip(0), 0)
    # a hard border at the face would show
    amount = cv2.GaussianBlur(amount.astype(np.float32), (0, 0), 1.0)
    lab[..., 1:] -= amount[..., None] * hue
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1), np.float64)


def close_gaps(
    foreground: Array, alpha: Array, image: Array, gaps: NDArray[np.bool_], background: NDArray[np.bool_], face: NDArray[np.bool_]
) -> Array:
    """Return foreground colours (H, W, 3) in which the hair around is continued into gaps between strands.

    A matte fills narrow gaps and a shape has none: the background in them would be paint on the hair. gaps (H, W): where there may be one;
    it is one if its colour in the image (H, W, 3) is another than that of the sitter around, alpha (H, W), beside the `face` (H, W), and
    more that of the `background` (H, W) around.
    """
    chroma = _lab(image)[..., 1:]
    depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    interior, has_interior = _local_mean(chroma, (depth > REACH / 2) & ~face & ~gaps)
    behind, has_background = _local_mean(chroma, background, FAR * SPREAD)
    to_interior, to_background = (np.linalg.norm(chroma - mean, axis=-1) for mean in (interior, behind))
    beside_face = cv2.dilate(face.astype(np.uint8), np.ones((BESIDE_FACE, BESIDE_FACE), np.uint8)).astype(bool)
    gaps = gaps & ~beside_face & has_interior & has_background & (to_interior > np.maximum(GAP_CHROMA, 2 * to_background))
    if not gaps.any():
        return foreground
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (MIXED, MIXED))
    mixed = cv2.dilate(gaps.astype(np.uint8), disc).astype(bool) & ~face
    mixed |= (alpha < SITTER) & cv2.dilate(mixed.astype(np.uint8), np.ones((AROUND, AROUND), np.uint8)).astype(bool) & ~face
    filled = cv2.inpaint((foreground * 255).round().astype(np.uint8), mixed.astype(np.uint8), MIXED, cv2.INPAINT_TELEA)
    return np.where(mixed[..., None], filled / 255.0, foreground)


def clear_hair(foreground: Array, image: Array, hair: NDArray[np.bool_], background: NDArray[np.bool_]) -> Array:
    """Return foreground colours (H, W, 3) in which hair (H, W) has no more of the hue of the `background` (H, W) around than elsewhere.

    Thin hair shows what is behind it far inside the silhouette, where no interior tells what it would look like without.
    """
    behind, near = _local_mean(_lab(image)[..., 1:], background)
    if hair.sum() < FEWEST or not background.any():
        return foreground
    lab = _lab(foreground)
    far = hair & ~near if (hair & ~near).sum() > FEWEST else hair
    usual_chroma = np.median(lab[far][:, 1:], axis=0)
    strength = np.linalg.norm(behind, axis=-1)
    hue = behind / np.maximum(strength, 1e-3)[..., None]
    usual = (usual_chroma * hue).sum(-1).clip(0)
    beyond = ((lab[..., 1:] * hue).sum(-1) - usual - TOLERANCE).clip(0)
    amount = np.where(hair & near, beyond * np.clip((strength - usual) / MIN_SEPARATION - 1, 0, 1), 0)
    amount = cv2.GaussianBlur(amount.astype(np.float32), (0, 0), 1.0)
    lab[..., 1:] -= amount[..., None] * hue
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1), np.float64)


def _lab(image: Array) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2LAB))


def _local_mean(
    values: NDArray[np.float32], mask: NDArray[np.bool_], spread: float = SPREAD
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Gaussian mean of values (H, W, 2) over mask (H, W), drawn on a coarse lattice, and where there is any of it near."""
    weighted = np.dstack([values * mask[..., None], mask]).astype(np.float32)
    coarse = cv2.resize(weighted, None, fx=1 / COARSE, fy=1 / COARSE, interpolation=cv2.INTER_AREA)
    total = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), spread / COARSE), mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return total[..., :2] / np.maximum(total[..., 2:], 1e-6), total[..., 2] > 1e-3
