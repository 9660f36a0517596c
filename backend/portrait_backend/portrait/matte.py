"""The matte: which part of the crop is the sitter, down to strands of hair, and the sitter's own colours there.

A person segmenter says roughly where; local colour statistics say which of the doubtful pixels look like the
sitter; closed-form matting finds the soft edge between; then only the piece that holds the face is kept.
All lengths are pixels of a 512 px crop. `valid` marks the part of the crop that the photo covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import expit, logit

from portrait_backend.portrait.closed_form import Array, estimate_foreground, solve_alpha
from portrait_backend.portrait.spill import close_gaps, remove_spill

Mask = NDArray[np.bool_]

SURE = 0.9
"""The segmenter is believed above SURE and below 1 - SURE, except within BAND px of the border between."""
BAND = 9
RIM = 6
"""Pixels at the rim of the landmarks' face that need not be the sitter where the silhouette is near."""
DEEP = 70
"""Pixels this far inside the silhouette are the sitter whatever their colour."""
SAMPLES, NEIGHBOURS = 6000, 24
PLACE_SCALE = 0.5
"""Weight of position against colour (Lab / 100) when a pixel is compared with known ones, per crop side."""
DISTANCE_FLOOR, DISTANCE_POWER = 0.01, 4
BACKGROUND_LIKE = 0.15
SHINES = 0.95
"""Solid pixels that look less like the sitter than this may be gaps between strands."""
SEGMENTER_TRUST, COLOUR_TRUST = 1.5, 2.0
"""Exponents of the two opinions in the prior of the matting."""
PRIOR_WEIGHT = 0.05
CLEAR, SOLID = 0.04, 0.96
"""Alphas outside this range are rounded to 0 and 1."""
ATTACHED = 0.1
"""Pieces of hair count as attached while alpha exceeds this between them and the head."""
CUT_OUT_DOUBT = 0.25
"""A photo's own alpha isn't a cut-out of a person if this share of its area is background for the segmenter."""


class PersonSegmenter(Protocol):
    """What an own segmentation network has to offer to replace MediaPipe."""

    def probability(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probability (H, W) that a pixel of rgb (H, W, 3) belongs to a person."""


@dataclass(frozen=True)
class Matte:
    """alpha (H, W) and straight foreground colours (H, W, 3), both float64 in [0, 1]; warnings for the user."""

    alpha: Array
    foreground: Array
    warnings: tuple[str, ...] = ()


def face_hull(landmarks: Array, shape: tuple[int, ...]) -> Mask:
    """Return the convex hull of landmarks (N, 2) px as a mask of the given (height, width)."""
    hull = np.zeros(shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.round(landmarks - 0.5).astype(np.int32)), [1.0])
    return hull.astype(bool)


def make_matte(image: Array, valid: Array, probability: Array, landmarks: Array, others: list[Array], rng: np.random.Generator) -> Matte:
    """Cut the sitter out of image (H, W, 3) in [0, 1].

    valid (H, W) 1 inside the photo; probability (H, W) of a person; landmarks (468, 2) px of the sitter's face;
    others: landmarks (468, 2) of other faces in the crop; rng picks colour samples. alpha is 0 outside the photo.
    """
    inside = valid > 0.99
    face = _sure_of(face_hull(landmarks, probability.shape), probability)
    probability = np.where(_nearer_to_others(face, others, probability, image) & ~face, 0, probability)
    sitter = (_shrunk(probability > SURE, BAND) | face) & inside
    background = _shrunk(probability < 1 - SURE, BAND) & ~face & inside
    looks, sitter = _colour_opinion(image, probability, face, sitter, background, inside, rng)
    known = sitter | background | ~inside
    prior = expit(SEGMENTER_TRUST * _logit(probability) + COLOUR_TRUST * _logit(looks))
    start = np.where(sitter, 1.0, np.where(known, 0.0, prior))
    alpha = solve_alpha(image, known, start, PRIOR_WEIGHT * (2 * prior - 1) ** 2)
    alpha = np.clip((alpha - CLEAR) / (SOLID - CLEAR), 0, 1)
    alpha = keep_face_piece(np.where(face & inside, 1.0, alpha), face)
    background = inside & (alpha < CLEAR)
    gaps = (alpha > 0.5) & (looks < SHINES) & inside
    foreground = remove_spill(estimate_foreground(image, alpha), alpha, image, gaps, background, face)
    return Matte(alpha, close_gaps(foreground, alpha, image, gaps, background, face))


def _sure_of(hull: Mask, probability: Array) -> Mask:
    """Return the face's hull without its rim where that lies on the silhouette: landmarks are off by some pixels there."""
    return hull & (_shrunk(hull, RIM) | _shrunk(probability > 0.5, BAND + RIM))


def use_own_alpha(premultiplied: Array, alpha: Array, estimate: Matte, probability: Array, landmarks: Array) -> Matte:
    """Use the photo's own alpha (H, W) with colours premultiplied (H, W, 3) by it, if it cuts out a person.

    If much of its area is background for the segmenter it only frames the photo: then it limits the estimate.
    """
    solid = alpha > 0.5
    doubt = float((probability[solid] < 1 - SURE).mean()) if solid.any() else 1.0
    if doubt > CUT_OUT_DOUBT:
        note = f"the photo's alpha channel is no cut-out of the person ({doubt:.0%} of it is background): the matte was estimated"
        return Matte(np.minimum(estimate.alpha, alpha), estimate.foreground, (note,))
    kept = keep_face_piece(alpha, face_hull(landmarks, alpha.shape) & solid)
    straight = premultiplied / np.maximum(alpha, 1e-3)[..., None]
    # under a clear pixel there is no colour: continue it from the nearest ones
    return Matte(kept, estimate_foreground(np.where(alpha[..., None] > 0.02, straight, 0).clip(0, 1), (alpha > 0.02).astype(np.float64)))


def keep_face_piece(alpha: Array, face: Mask) -> Array:
    """Return alpha (H, W) with only the connected piece that holds the face (H, W)."""
    if not face.any():
        return alpha
    _, labels = cv2.connectedComponents((alpha > ATTACHED).astype(np.uint8), connectivity=8)
    inside_face = labels[face & (labels > 0)]
    if not len(inside_face):
        return alpha
    piece = (labels == np.bincount(inside_face).argmax()).astype(np.uint8)
    return np.where(cv2.dilate(piece, np.ones((3, 3), np.uint8)) > 0, alpha, 0.0)


def _colour_opinion(
    image: Array, probability: Array, face: Mask, sitter: Mask, background: Mask, inside: Mask, rng: np.random.Generator
) -> tuple[Array, Mask]:
    """Return how sitter-like doubtful pixels look, (H, W) in [0, 1], and `sitter` without what looks like background.

    A pixel is compared by colour and place with known ones: the ratio of the distances to its k-th neighbours
    on both sides is a ratio of densities. Gaps between strands, which a segmenter fills, are found this way.
    """
    looks = np.full(probability.shape, 0.5)
    if sitter.sum() < NEIGHBOURS or background.sum() < NEIGHBOURS:
        return looks, sitter
    height, width = probability.shape
    place = np.moveaxis(np.mgrid[0:height, 0:width], 0, -1) * (PLACE_SCALE / max(height, width))
    features = np.concatenate([cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2LAB) / 100, place], -1)
    depth = cv2.distanceTransform((probability > 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    asked = ((sitter & (depth < DEEP) & ~face) | ~(sitter | background)) & inside
    near_sitter, near_background = (_distance(features[asked], features[side], rng) for side in (sitter, background))
    ratio = (near_sitter + DISTANCE_FLOOR) / (near_background + DISTANCE_FLOOR)
    looks[sitter] = 1
    looks[asked] = 1 / (1 + ratio**DISTANCE_POWER)
    doubtful = cv2.morphologyEx((sitter & asked & (looks < BACKGROUND_LIKE)).astype(np.uint8), cv2.MORPH_OPEN, _disc(1))
    return looks, sitter & ~(cv2.dilate(doubtful, _disc(4)).astype(bool) & asked)


def _distance(queries: Array, known: Array, rng: np.random.Generator) -> Array:
    """Distance of queries (N, D) to the k-th nearest of a sample of known (M, D)."""
    sample = known[rng.choice(len(known), min(SAMPLES, len(known)), replace=False)]
    tree = cKDTree(sample, 32, balanced_tree=False, compact_nodes=False)  # split in the middle of space: quicker for many queries
    return np.asarray(tree.query(queries, [NEIGHBOURS], eps=0.3, workers=torch.get_num_threads())[0][:, 0])


def _nearer_to_others(face: Mask, others: list[Array], probability: Array, image: Array) -> Mask:
    """Tell which person pixels belong to another face: a watershed of the image between the faces."""
    if not others:
        return np.zeros_like(face)
    markers = np.zeros(face.shape, np.int32)
    for landmarks in others:
        markers[face_hull(landmarks, face.shape)] = 2
    markers[face] = 1
    if not (markers == 2).any():
        return np.zeros_like(face)
    markers[_shrunk(probability < 1 - SURE, BAND) & (markers == 0)] = 3
    smooth = cv2.GaussianBlur((image * 255).astype(np.uint8), (0, 0), 2)
    return np.asarray(cv2.watershed(smooth, markers) == 2)


def _logit(probability: Array) -> Array:
    return np.asarray(logit(np.clip(probability, 0.02, 0.98)))


def _disc(radius: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def _shrunk(mask: Mask, radius: int) -> Mask:
    return np.asarray(cv2.erode(mask.astype(np.uint8), _disc(radius))).astype(bool)
