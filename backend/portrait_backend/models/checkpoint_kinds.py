"""The published checkpoints that can be converted: which tensors they must have, and the conventions of their planes.

The conventions go into the converted file, so that whoever builds a Head of it doesn't guess. Axes are as in `radiance.triplane`:
per plane the world axes along its width, height and depth. EG3D calls its second plane (x, z) and its third (z, x): both are
kept, they are how it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Axes = tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]
Shape = tuple[int | None, ...]
"""Sizes; None: any."""


@dataclass(frozen=True)
class Planes:
    """How a network's plane output is read: axes per plane, half the side of the box, grid depth, order of its channels.

    channel order: "channel-major" is c * depth + d (PanoHead's), "slice-major" d * C + c (a saved Head's); the same for depth 1.
    density: raw decoder output to density, softplus(x + density_bias); bounds: half sides of the part of the box that is not emptied.
    """

    axes: Axes
    half_extent: float
    depth: int = 1
    channels: int = 32
    channel_order: Literal["channel-major", "slice-major"] = "channel-major"
    reduce: Literal["mean", "sum"] = "mean"
    padding: Literal["border", "zeros"] = "zeros"
    density_bias: float = -1.0
    bounds: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class CheckpointKind:
    """A kind of checkpoint: its planes, and tensors that it has for certain: pattern of the name -> shape."""

    name: str
    planes: Planes
    required: Mapping[str, Shape]

    def missing(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return a line for each required tensor that is not there or has another shape."""
        lines = []
        for pattern, wanted in self.required.items():
            found = [shape for name, shape in shapes.items() if re.fullmatch(pattern, name)]
            if not found:
                lines.append(f"no tensor is named {pattern}")
            elif not any(_fits(shape, wanted) for shape in found):
                lines.append(f"{pattern} is {found[0]} instead of {_text(wanted)}")
        return lines


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))


def _text(wanted: Shape) -> str:
    return f"({', '.join('any' if n is None else str(n) for n in wanted)})"


_DECODER: dict[str, Shape] = {r"decoder\.net\.0\.weight": (64, 32), r"decoder\.net\.2\.weight": (33, 64)}
_STYLEGAN: dict[str, Shape] = {
    r"backbone\.mapping\.fc0\.weight": (512, None),
    r"backbone\.mapping\.w_avg": (512,),
    r"backbone\.synthesis\.b4\.const": (None, 4, 4),
    r"superresolution\.block0\.conv0\.weight": (None, 32, 3, 3),
    r"superresolution\.block1\.torgb\.weight": (3, None, 1, 1),
}

KINDS = {
    kind.name: kind
    for kind in (
        CheckpointKind(
            "eg3d",
            Planes(((0, 1, 2), (0, 2, 1), (2, 0, 1)), half_extent=0.5),
            {**_STYLEGAN, **_DECODER, r"backbone\.synthesis\.b256\.torgb\.weight": (96, None, 1, 1)},
        ),
        CheckpointKind(
            "panohead",
            Planes(((0, 1, 2), (0, 2, 1), (1, 2, 0)), half_extent=0.5, depth=3, bounds=(0.4, 0.5, 0.4)),
            {**_STYLEGAN, **_DECODER, r"backbone\.synthesis\.b256\.torgb\.weight": (288, None, 1, 1)},
        ),
        CheckpointKind(
            "portrait4d",
            Planes(((0, 1, 2), (1, 2, 0), (2, 0, 1)), half_extent=0.65),
            {
                r"encoder_global\..+\.weight": (None, 5, 7, 7),
                r"encoder_detail\.encoder\.0\.weight": (None, 5, 7, 7),
                r"encoder_canonical\.patch_embed\.proj\.weight": (None, None, None, None),
                r"generator_triplane\.conv_last\.weight": (96, None, 3, 3),
                r"superresolution\.block0\.conv0\.weight": (None, 32, 3, 3),
                r"decoder\.net\.0\.weight": (64, 32),
                r"decoder\.out_sigma\.weight": (1, 64),
                r"decoder\.out_rgb\.weight": (32, 64),
                r"w_avg": (512,),
            },
        ),
    )
}
