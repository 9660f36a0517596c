"""Strands for hair that the photo does not show: streaks along the hair's flow, as light, dark and fine as the photo's own.

White noise on a lattice is averaged along the flow lines (line integral convolution, Cabral and Leedom 1993) in a few
bands of fineness. How strong each band is, how long the streaks are and which colours they take is measured on the
photo's hair. The noise lives in space, so the pattern has no seam.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.painting.surface import smoothstep
from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.radiance.cameras import ORBIT_RADIUS, focal_pixels

Array = NDArray[np.float32]

CENTRE, CROWN = (0.0, 0.08, -0.03), (0.0, 0.36, -0.16)
"""Middle of the skull and the whorl that hair leaves from, head units."""
RADIUS = 0.3
"""The flow is followed on a capsule of this radius: a ball around the centre with a tube below, free of the surface's bumps."""
DOWN = (0.12, -0.08)
"""Height above and below the centre between which the flow turns from away-from-the-crown to straight down."""
BAND_EDGES = (1.5, 3.0, 6.0, 12.0)
"""Standard deviations (px of 512) of the Gaussians whose differences are the bands; finer detail than this the field can't hold."""
GRAIN_EDGES = (0.6, 1.5, 3.0, 6.0)
"""The same of the bands that a texture holds and the field's planes don't, or not in full (`hair_grain.py`)."""
CELLS_PER_DEVIATION = 1.6
"""Noise lattice cells per geometric mean of a band's two deviations."""
LONGEST = 16.0
"""Length of a streak in widths where the photo's hair runs perfectly straight."""
STEPS = 10
LATTICE = 64
RAMP = 33
"""Steps of the colour ramp, from the darkest to the lightest strand."""
STRONGEST = 0.33
"""Standard deviation of the logarithm of the ramp's brightness, at most: what is more is the light and shadow of curls, which on straight
strands would be stripes from black to white. Six photos: 0.11 to 0.32, and curly hair in hard light 0.73."""
HAIRLINE, HAIRLINE_LENGTH = (2.0, 5.0), 10.0
"""Band (px of 512) of the streaks by which hair begins, and their length in widths."""
RAGGED, HAIRLINE_TURN = 0.15, (0.3, 0.7)
"""Standard deviation of a hairline's place, as a share of hair, and the shares over which it then turns from skin to hair."""
LEAST_PIXELS = 500


@dataclass(frozen=True)
class StrandStyle:
    """How the photo's hair varies around its local mean.

    ramp (RAMP, 3): factors on the mean colour by rank of brightness; bands: strength of each, squares sum to 1; length: of
    a streak in widths; grain: standard deviation of the brightness, relative to the mean around, in each of the texture's bands.
    """

    ramp: Tensor
    bands: tuple[float, ...]
    length: float
    grain: tuple[float, ...] = (0.0, 0.0, 0.0)


def measure_strands(portrait: Portrait, hair: Tensor) -> StrandStyle | None:
    """Measure the style on the hair pixels (512, 512) bool of the photo; None if too few show."""
    mask = cv2.erode(hair.numpy().astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.float32)
    if mask.sum() < LEAST_PIXELS:
        return None
    colour = portrait.rgba[..., :3].contiguous().numpy()
    inside = mask > 0
    mean = masked_blur(colour, mask, BAND_EDGES[-1]).clip(1e-3)
    light = colour.mean(-1) / mean.mean(-1)
    blurred = [masked_blur(light[..., None], mask, deviation)[..., 0] for deviation in BAND_EDGES]
    strength = np.array([float((fine - coarse)[inside].std()) for fine, coarse in pairwise(blurred)])
    ratio = (masked_blur(colour, mask, BAND_EDGES[0]) / mean)[inside]
    order = np.argsort(ratio.mean(-1), kind="stable")
    ramp = np.stack([part.mean(0) for part in np.array_split(ratio[order], RAMP)])
    bands = strength / max(float(np.linalg.norm(strength)), 1e-6)
    finest = float((masked_blur(light[..., None], mask, GRAIN_EDGES[0])[..., 0] - blurred[0])[inside].std())
    length = 1 + LONGEST * _coherence(light, inside)
    grain = (finest, *strength[: len(GRAIN_EDGES) - 2].tolist())
    return StrandStyle(torch.from_numpy(_softened(ramp)).float(), tuple(bands.tolist()), length, grain)


def _softened(ramp: Array) -> Array:
    """Return a ramp (RAMP, 3) whose mean is 1 and whose brightness varies by `STRONGEST` at most."""
    ramp = (ramp / ramp.mean(0)).clip(1e-3)
    power = min(1.0, STRONGEST / max(float(np.log(ramp.mean(-1)).std()), 1e-6))
    return np.asarray(ramp**power / (ramp**power).mean(0))


def masked_blur(values: Array, mask: Array, deviation: float) -> Array:
    """Gaussian mean of values (H, W, C) over the mask (H, W)."""
    total = cv2.GaussianBlur(values * mask[..., None], (0, 0), deviation)
    weight = cv2.GaussianBlur(mask, (0, 0), deviation)
    return np.asarray(total.reshape(values.shape) / np.maximum(weight, 1e-4)[..., None], np.float32)


def _coherence(light: Array, inside: NDArray[np.bool_]) -> float:
    """Return how much the image (H, W) runs in one direction around each pixel, 0 to 1: the structure tensor's anisotropy."""
    smooth = cv2.GaussianBlur(light, (0, 0), 1.0)
    x, y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    xx, yy, xy = (cv2.GaussianBlur(product * inside, (0, 0), 4.0)[inside] for product in (x * x, y * y, x * y))
    return float(np.median(np.hypot(xx - yy, 2 * xy) / np.maximum(xx + yy, 1e-9)))


def strand_factors(points: Tensor, style: StrandStyle, generator: torch.Generator) -> Tensor:
    """Return factors (N, 3) on the hair colour at points (N, 3) in head units; their mean is about 1."""
    total = points.new_zeros(len(points))
    for strength, (fine, coarse) in zip(style.bands, pairwise(BAND_EDGES), strict=True):
        noise = torch.randn(3 * (LATTICE,), generator=generator)
        width = cell_size(fine, coarse)
        streaks = along_flow(points, noise, width, style.length * width)
        total = total + strength * streaks / streaks.std(correction=0).clamp_min(1e-6)
    rank = 0.5 * (1 + torch.erf(total / 2**0.5)) * (RAMP - 1)
    below = rank.long().clamp(0, RAMP - 2)
    share = (rank - below)[:, None]
    return style.ramp[below] * (1 - share) + style.ramp[below + 1] * share


def ragged(share: Tensor, points: Tensor, generator: torch.Generator) -> Tensor:
    """Return shares of hair (N,) that turn from 0 to 1 by strands, at points (N, 3), where they faded: a hairline."""
    edge = ((share > 0) & (share < 1)).nonzero()[:, 0]
    noise, width = torch.randn(3 * (LATTICE,), generator=generator), cell_size(*HAIRLINE)
    if len(edge) < 2:
        return share
    streaks = along_flow(points[edge], noise, width, HAIRLINE_LENGTH * width)
    return share.index_copy(0, edge, smoothstep(share[edge] + RAGGED * streaks / streaks.std(correction=0).clamp_min(1e-6), *HAIRLINE_TURN))


def cell_size(fine: float, coarse: float) -> float:
    """Return the head units between cells of noise whose detail lies between two standard deviations (px of 512)."""
    return float(CELLS_PER_DEVIATION * (fine * coarse) ** 0.5 * (ORBIT_RADIUS / focal_pixels(PORTRAIT_SIZE)))


def along_flow(points: Tensor, noise: Tensor, cell: float, length: float, steps: int = STEPS) -> Tensor:
    """Average periodic noise (n, n, n), `cell` head units apart, over `length` of the flow line through each point (N, 3): (N,).

    steps: to either side of it.
    """
    noise, step = periodic(noise), length / (2 * steps)
    if points.device.type == "cpu" and points.dtype == torch.float32:
        return _along_flow_kernel(points, noise, cell, step, steps)
    start = on_capsule(points)
    total = noise_at(noise, start / cell)
    for way in (1.0, -1.0):
        at = start
        for _ in range(steps):
            at = on_capsule(at + way * step * hair_flow(at))
            total = total + noise_at(noise, at / cell)
    return total / (2 * steps + 1)


def _along_flow_kernel(points: Tensor, noise: Tensor, cell: float, step: float, steps: int) -> Tensor:
    from portrait_backend.prior import flow_kernel  # compiled at first use

    out, (centre, crown, down) = torch.empty(len(points)), (np.array(x, np.float32) for x in (CENTRE, CROWN, DOWN))
    pole = (crown - centre) / np.linalg.norm(crown - centre)
    arrays = points.contiguous().numpy(), noise.contiguous().numpy()
    flow_kernel.average(*arrays, np.float32(1 / cell), np.float32(step), steps, centre, np.float32(RADIUS), pole, down, out.numpy())
    return out


def on_capsule(points: Tensor) -> Tensor:
    """Move points (N, 3) to the capsule: radially from the centre above it, from the vertical axis below it."""
    centre = points.new_tensor(CENTRE)
    axis = torch.stack([centre[0].expand(len(points)), points[:, 1].clamp_max(CENTRE[1]), centre[2].expand(len(points))], -1)
    return axis + RADIUS * F.normalize(points - axis, dim=-1)


def hair_flow(points: Tensor) -> Tensor:
    """Return the unit direction (N, 3) in which hair runs at points (N, 3) of the capsule: away from the crown, then down."""
    centre, crown = points.new_tensor(CENTRE), points.new_tensor(CROWN)
    outward = F.normalize(points - centre, dim=-1)
    pole = F.normalize(crown - centre, dim=0)
    away = F.normalize((outward @ pole)[:, None] * outward - pole, dim=-1)
    high = ((points[:, 1] - CENTRE[1] - DOWN[1]) / (DOWN[0] - DOWN[1])).clamp(0, 1)[:, None]
    return F.normalize(away * high + (1 - high) * points.new_tensor([0.0, -1.0, 0.0]), dim=-1)


def periodic(lattice: Tensor) -> Tensor:
    """Return a lattice (n, n, n) with its first cells again behind its last, (n + 1, n + 1, n + 1), as `noise_at` reads it."""
    return F.pad(lattice[None, None], (0, 1, 0, 1, 0, 1), mode="circular")[0, 0]


def noise_at(lattice: Tensor, cells: Tensor) -> Tensor:
    """Trilinear sample (N,) of a `periodic` lattice at cell coordinates (N, 3)."""
    n = lattice.shape[0] - 1
    at = (cells % n) / n * 2 - 1
    return F.grid_sample(lattice[None, None], at[None, None, None], mode="bilinear", padding_mode="border", align_corners=True)[0, 0, 0, 0]
