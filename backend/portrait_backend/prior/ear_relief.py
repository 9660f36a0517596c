"""Folds of ears, which the field's planes can't hold: the usual relief of an ear, laid over where the head has a bare one.

The mesh takes it as a displacement sideways; the texture is looked up where the surface was, and darkened in the folds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from portrait_backend.models import starter_path
from portrait_backend.painting.surface import smoothstep
from portrait_backend.prior.ears import SIDES
from portrait_backend.prior.hair_colour import COVER_FADE, EARS_TOP
from portrait_backend.prior.skin_and_clothes import skin_share
from portrait_backend.radiance.head import Head

WEIGHTS = "ears.safetensors"
OUTER, INNER, LAYERS = 0.3, 0.1, 60
"""Distances from the middle plane (head units) between which an ear's surface is looked for, and at how many."""
BROAD = 0.016
"""Standard deviation (head units) of what is taken off a relief: the ear as a whole stays as the photo's outline made it."""
OWN = 0.012
"""How much of its own relief (head units) the surface gives up: a step to a temple's hair is none of the ear's."""
SHIFTS, SIZES = (-0.03, 0.03, 13), (0.86, 0.93, 1.0, 1.08, 1.16)
"""Places (least and greatest shift in head units, how many) and sizes that are tried."""
USUAL_PLACE, USUAL_SIZE = 0.02, 0.15
"""Deviations of place (head units) and of the logarithm of size: the more unusual, the more alike it must be."""
DOUBT = 0.35
"""How much likeness (a correlation) one deviation is worth; squared."""
COARSE = 2
"""Texels from one to the next that counts where places are compared."""
LEAST_BARE = 0.1
"""Share of an ear below its hair from which it is there."""
FLAT = 0.001
"""Relief (head units) of which half is taken for chance."""
DEEP = (0.045, 0.012)
"""Distance below the side surface (head units) over which the displacement sets in."""
AROUND, HOLLOW, DARKEST, BRIGHTEST = 0.008, 0.012, 0.5, 1.06
"""Standard deviation of the surroundings and depth below them at which skin has 1 / e of its light (head units); range of the light."""


@dataclass(frozen=True)
class EarModel:
    """height, share (n, n): relief and share of ear, rows downward, columns to the back; corner (2,): y and z of the first texel."""

    height: Tensor
    share: Tensor
    corner: Tensor
    step: float


@lru_cache(maxsize=1)
def load_ear_model() -> EarModel:
    """Return the shipped model (kept in memory)."""
    weights = {name: value.float() for name, value in load_file(starter_path(WEIGHTS)).items()}
    return EarModel(weights["height"], weights["share"], weights["corner"], float(weights["step"]))


@dataclass(frozen=True)
class _Side:
    """Maps (n, n) over the model's frame: the surface's distance from the middle plane, its displacement outward, its light."""

    sign: float
    surface: Tensor
    shift: Tensor
    light: Tensor


class EarRelief:
    """The folds of a head's bare ears; covered: `ears.covered_ears`; skin (M, 3): the photo's."""

    @torch.no_grad()
    def __init__(self, head: Head, covered: tuple[float, float], skin: Tensor) -> None:
        self.model, self.skin = load_ear_model(), skin
        sides = [_folded(self.model, head, sign, low) for sign, low in zip(SIDES, covered, strict=True)]
        self.sides = [side for side in sides if side is not None]

    def moved(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return vertices (V, 3) of the head's surface with the ears' folds."""
        points = torch.from_numpy(vertices)
        for side in self.sides:
            points = self._moved(points, side, 1)
        return points.numpy()

    def unmoved(self, points: Tensor) -> Tensor:
        """Return where points (N, 3) of the folded head were before."""
        for side in self.sides:
            points = self._moved(points, side, -1)
        return points

    def _moved(self, points: Tensor, side: _Side, way: int) -> Tensor:
        near, at = self._within(points, side)
        if not len(near):
            return points
        surface, shift = (_look_up(values, at) for values in (side.surface, side.shift))
        out = side.sign * points[near, 0]
        depth = surface + (shift if way < 0 else 0) - out
        moved = points.clone()
        moved[near, 0] += side.sign * way * shift * smoothstep(depth, *DEEP).to(points.dtype)
        return moved

    def factors(self, points: Tensor, colour: Tensor) -> Tensor:
        """Return what the colours (N, 3) at points (N, 3), before they were moved, are multiplied by: (N,)."""
        factors = torch.ones(len(points), device=points.device)
        for side in self.sides:
            near, at = self._within(points, side)
            if len(near):
                depth = _look_up(side.surface, at) - side.sign * points[near, 0]
                share = smoothstep(depth, *DEEP) * skin_share(colour[near], self.skin.to(colour.device))
                factors[near] = 1 - share * (1 - _look_up(side.light, at))
        return factors

    def _within(self, points: Tensor, side: _Side) -> tuple[Tensor, Tensor]:
        """Return the points (K,) that lie in the side's frame, and their places in it (K, 2), in [-1, 1]."""
        model, count = self.model, len(self.model.height)
        near = (side.sign * points[:, 0] > INNER).nonzero()[:, 0]
        texel = (model.corner.to(points) - points[near, 1:]) / model.step
        at = (texel.flip(-1) + 0.5) / count * 2 - 1
        inside = (at.abs() <= 1).all(-1)
        return near[inside], at[inside]


def _folded(model: EarModel, head: Head, sign: float, covered: float) -> _Side | None:
    """Return the folds of one ear, below the height to which hair covers it; None where there is none."""
    bare = smoothstep(covered - model.corner[0] + torch.arange(len(model.share)) * model.step, 0, COVER_FADE)[:, None]
    bare = torch.ones_like(bare) if covered >= EARS_TOP else bare
    if float((model.share * bare).sum()) < LEAST_BARE * float(model.share.sum()):
        return None
    surface = _surface(model, head, sign)
    own, usual = _detail(surface, model.step), _detail(model.height, model.step)
    places = _places()
    place = places[_gains(own, usual, bare, model, places).argmax()][None]
    relief, share = _placed(torch.stack([usual, model.share]), model, place)[0]
    share = share * bare
    shift = share * (relief - own.clamp(-OWN, OWN))
    folded = surface + shift
    higher = (folded.amax(1) - surface.amax(1)).clamp_min(0)  # seen from the front the ear ends where the photo's does
    shift = shift - share * blurred(higher[:, None].expand_as(shift), 2.0)
    hollow = blurred(surface + shift, AROUND / model.step) - surface - shift
    light = torch.exp(-hollow / HOLLOW).clamp(DARKEST, BRIGHTEST)
    return _Side(sign, surface, shift, 1 - share * (1 - light))


def _surface(model: EarModel, head: Head, sign: float) -> Tensor:
    """Return how far from the middle plane the head's side surface is (n, n), in the model's frame."""
    count, device = len(model.height), head.geometry.planes.device
    y, z = (model.corner[axis] - torch.arange(count) * model.step for axis in (0, 1))
    x = torch.linspace(OUTER, INNER, LAYERS)
    points = torch.stack(torch.meshgrid(sign * x, y, z, indexing="ij"), -1)
    found = head.density_grid().lookup(points.reshape(-1, 3).to(device)).view(LAYERS, count, count).cpu() - head.surface_density
    inside = found > 0
    first = inside.float().argmax(0).clamp_min(1)
    after, before = (found.gather(0, index[None])[0] for index in (first, first - 1))
    part = (before / (before - after).clamp_max(-1e-6)).clamp(0, 1)
    return torch.where(inside.any(0), OUTER - (first - 1 + part) * (OUTER - INNER) / (LAYERS - 1), INNER)


def _places() -> Tensor:
    """Return the places and sizes (P, 3) that are tried: down, back (head units), size."""
    shifts = torch.linspace(*SHIFTS[:2], SHIFTS[2])
    return torch.cartesian_prod(shifts, shifts, torch.tensor(SIZES))


def _gains(own: Tensor, usual: Tensor, bare: Tensor, model: EarModel, places: Tensor) -> Tensor:
    """Return how alike two reliefs (n, n) are with the ear at places (P, 3), as a correlation, less what an unusual place costs: (P,).

    On a flat side they are less alike. Every other texel of every other row counts.
    """
    coarse = [values[::COARSE, ::COARSE] for values in (usual, model.share)]
    placed, share = _placed(torch.stack(coarse), model, places).unbind(1)
    share = share * bare[::COARSE, ::COARSE]
    share = share / share.sum((1, 2), keepdim=True)
    a, b = (values - (share * values).sum((1, 2), keepdim=True) for values in (own[::COARSE, ::COARSE], placed))
    strength = (share * a * a).sum((1, 2)).sqrt() + FLAT
    alike = (share * a * b).sum((1, 2)) / (strength * (share * b * b).sum((1, 2)).sqrt())
    unusual = places[:, :2].square().sum(1) / USUAL_PLACE**2 + (places[:, 2].log() / USUAL_SIZE) ** 2
    return alike - DOUBT**2 * unusual


def _placed(maps: Tensor, model: EarModel, places: Tensor) -> Tensor:
    """Return maps (C, n, n) over the model's frame with the ear at places (P, 3): (P, C, n, n)."""
    extent = len(model.height) * model.step / 2
    down, back, size = places.unbind(1)
    none = torch.zeros_like(size)
    theta = torch.stack(
        [torch.stack([1 / size, none, -back / extent / size], 1), torch.stack([none, 1 / size, -down / extent / size], 1)], 1
    )
    grid = F.affine_grid(theta, [len(places), *maps.shape], align_corners=False)
    return F.grid_sample(maps.expand(len(places), *maps.shape), grid, align_corners=False, padding_mode="border")


def _detail(height: Tensor, step: float) -> Tensor:
    return height - blurred(height, BROAD / step)


def blurred(values: Tensor, deviation: float) -> Tensor:
    """Return a map (n, n) blurred by a Gaussian of that many texels."""
    window = 2 * math.ceil(3 * deviation) + 1
    return torch.from_numpy(cv2.GaussianBlur(values.contiguous().numpy(), (window, window), deviation, borderType=cv2.BORDER_REPLICATE))


def _look_up(values: Tensor, at: Tensor) -> Tensor:
    """Return a map (n, n) at places (K, 2): (K,)."""
    return F.grid_sample(values[None, None].to(at), at[None, None], align_corners=False, padding_mode="border")[0, 0, 0]
