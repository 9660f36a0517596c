"""Build the ear model, the usual relief of an ear seen from the side, from a rendered evaluation set.

The ears of all heads are brought onto one another by affine maps (ECC, Evangelidis and Psarakis 2008) and their median is taken, which
keeps the folds that a mean of ears at their own places would wash out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy import ndimage
from scipy.interpolate import LinearNDInterpolator

from portrait_backend.evaluation.geometry_metrics import back_project
from portrait_backend.training.head_dataset import camera_at, decode_depth, load_heads, part_pixels
from portrait_shared.errors import PortraitDiffusionError

Array = NDArray[np.float32]

PART, SIDE_VIEWS = 4, ((4, 1.0), (5, -1.0))
"""The part id of ears; the views of an evaluation set from the sitter's left and right, with the sign of x there."""
STEP, TEXELS = 0.002, 104
"""Spacing (head units) and number of texels a side."""
DETAIL = 8
"""Standard deviation (texels) of what is taken off before ears are matched: how far a whole ear stands off differs."""
ROUNDS, LEAST_MATCH = 4, 0.5
"""How often the median is taken anew; correlation from which an ear belongs to it."""
FRONT_FADE, EDGE = 22, 1.2
"""Texels over which the relief sets in from the cheek, and the softness of its other edges."""
FEWEST_PIXELS = 500
"""Pixels of 512 that an ear must show."""


@dataclass(frozen=True)
class _Ear:
    """Distance from the middle plane (n, n), share that is ear (n, n); y and z of the centre (2,), head units."""

    height: Array
    share: Array
    centre: NDArray[np.float64]


def build_ear_model(data: Path, out: Path, limit: int | None = None) -> int:
    """Write `height` and `share` (n, n) (rows downward, columns to the back) and their first texel's `corner` (y, z), `step` to `out`.

    Returns the number of ears used. PortraitDiffusionError ``data-empty`` where hardly any ear is seen.
    """
    ears = _ears(data, limit)
    if len(ears) < 2:
        raise PortraitDiffusionError("data-empty", f"hardly an ear is seen in {data}", "Render heads with train dataset --evaluation")
    height, share, warps = ears[0].height, ears[0].share, [np.eye(2, 3, dtype=np.float32)] * len(ears)
    used: list[int] = []
    for turn in range(ROUNDS):
        used, moved = [], []
        for number, ear in enumerate(ears):
            start = np.eye(2, 3, dtype=np.float32) if turn == 0 else warps[number].copy()
            match, warp = _matched(height, share, ear, start)
            if match > LEAST_MATCH:
                warps[number] = warp
                used.append(number)
                moved.append((_warped(ear.height, warp), _warped(ear.share, warp)))
        height = np.median([h - np.median(h[s > 0.5]) for h, s in moved], axis=0).astype(np.float32)
        share = np.mean([s for _, s in moved], axis=0).astype(np.float32)
    onto_usual = cv2.invertAffineTransform(np.mean([warps[number] for number in used], axis=0))
    centre = np.mean([ears[number].centre for number in used], axis=0)
    height, share = _warped(height, onto_usual), _weight(_warped(share, onto_usual))
    corner = centre + STEP * (TEXELS - 1) / 2
    tensors = {"height": height, "share": share, "corner": corner, "step": np.array(STEP)}
    save_file({name: torch.from_numpy(np.asarray(value)).half().contiguous() for name, value in tensors.items()}, out)
    return len(used)


def _ears(data: Path, limit: int | None) -> list[_Ear]:
    heads, parts = load_heads(data, limit, input_views=(0,)), part_pixels(data, PART, limit)
    found = []
    for identity, pixels in enumerate(parts):
        for view, side in SIDE_VIEWS:
            at = pixels[pixels[:, 0] == view]
            if len(at) < FEWEST_PIXELS * (heads.size / 512) ** 2:
                continue
            depth = decode_depth(heads.depth[identity, view])
            points = back_project(depth, camera_at(heads, identity, view, heads.size)) * np.array([side, 1, 1], np.float32)
            is_ear = torch.zeros_like(depth)
            is_ear[at[:, 1], at[:, 2]] = 1
            found.append(_sampled(points, is_ear[depth > 0].numpy()))
    return found


def _sampled(points: Array, is_ear: Array) -> _Ear:
    """Return the relief around an ear of surface points (P, 3) whose shares of ear are is_ear (P,)."""
    own = points[is_ear > 0.5, 1:]
    centre = (own.min(0) + own.max(0)).astype(np.float64) / 2
    offset = (np.arange(TEXELS) - (TEXELS - 1) / 2) * STEP
    near = (np.abs(points[:, 1:] - centre) < STEP * TEXELS * 0.6).all(1)
    values = LinearNDInterpolator(points[near, 1:], np.stack([points[near, 0], is_ear[near]], 1))
    grid = values(*np.meshgrid(centre[0] - offset, centre[1] - offset, indexing="ij")).astype(np.float32)
    lowest = np.nanpercentile(grid[..., 0], 3)
    return _Ear(np.nan_to_num(grid[..., 0], nan=float(lowest)), np.nan_to_num(grid[..., 1]), centre)


def _matched(height: Array, share: Array, ear: _Ear, start: Array) -> tuple[float, Array]:
    """Return the correlation and the affine map (2, 3) from the model's pixels to an ear's; -1 where none is found."""
    try:
        stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 200, 1e-5)
        where = (share > 0.3).astype(np.uint8)
        match, warp = cv2.findTransformECC(_detail(height), _detail(ear.height), start, cv2.MOTION_AFFINE, stop, where, 5)
        return float(match), np.asarray(warp, np.float32)
    except cv2.error:
        return -1.0, start


def _weight(share: Array) -> Array:
    """Return how much of the relief counts: all of it in the ear and its hollow, none around, with a wide fade where the cheek begins."""
    ear = ndimage.binary_fill_holes(share > 0.5)
    first = np.where(ear.any(1), ear.argmax(1), TEXELS)
    ramp = np.clip((np.arange(TEXELS) - ndimage.gaussian_filter1d(first.astype(float), 3)[:, None]) / FRONT_FADE, 0, 1)
    return np.asarray(cv2.GaussianBlur((ear * ramp * ramp * (3 - 2 * ramp)).astype(np.float32), (0, 0), EDGE), np.float32)


def _detail(height: Array) -> Array:
    return np.asarray(height - cv2.GaussianBlur(height, (0, 0), DETAIL), np.float32)


def _warped(values: Array, warp: NDArray[np.floating]) -> Array:
    flags = cv2.INTER_LINEAR + cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(values, warp, (TEXELS, TEXELS), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.float32)
