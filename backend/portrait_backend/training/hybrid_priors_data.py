"""Pairs of neighbouring views for the Hybrid Priors model: a driver, a target, their depth, and what stage 1 would show of the target.

Any multi-view set in the project's layout (`synthetic.py`). A second set of the same identities and cameras, rendered from a prior
provider's heads (`coarse_views.py`), gives depth, normals and coarse images with the errors that stage 3 meets; without
one, the true maps are degraded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from portrait_backend.radiance.cameras import Camera
from portrait_backend.training.head_views import HeadViews
from portrait_shared.errors import PortraitDiffusionError

LARGEST_STEP = 45.0
"""Largest angle in degrees between driver and target: the ring's spacing (27.7 for 13 views) and some room."""


@dataclass(frozen=True)
class SeenView:
    """One view: rgba (4, S, S) straight, depth (S, S) head units, 0 where empty, normals (S, S, 3) world, camera."""

    rgba: Tensor
    depth: Tensor
    normals: Tensor
    camera: Camera


class ViewPairs(HeadViews):
    """A data set with its pairs (identity, driver, target) at most `largest` degrees apart, both orders."""

    def __init__(self, data: Path, limit: int | None = None, largest: float = LARGEST_STEP, coarse: Path | None = None) -> None:
        super().__init__(data, limit)
        self.coarse = coarse
        if coarse is not None and not any((coarse / f.name / "cameras.json").exists() for f in self.folders):
            raise PortraitDiffusionError(
                "data-empty", f"{coarse} has none of the identities of {data}", "Render them with portrait-diffusion train coarse-views"
            )
        self.pairs = self._pairs(largest)
        if not len(self.pairs):
            raise PortraitDiffusionError(
                "data-empty", f"no two views in {data} are within {largest:g} degrees", "Raise --largest-step, or render more views"
            )

    def _pairs(self, largest: float) -> Tensor:
        a, e = torch.deg2rad(self.angles).unbind(-1)
        looks = torch.stack([a.sin() * e.cos(), e.sin(), a.cos() * e.cos()], -1)
        angle = torch.rad2deg(torch.acos((looks[:, :, None] * looks[:, None]).sum(-1).clamp(-1, 1)))
        return ((angle <= largest) & (angle > 0.5)).nonzero()

    def seen(self, identity: int, view: int) -> SeenView:
        """Return a view with its true depth and normals."""
        return read_view(self.folders[identity], view)

    def coarse_seen(self, identity: int, view: int) -> SeenView | None:
        """Return the same view of the prior provider's head, None where that set doesn't have it."""
        folder = None if self.coarse is None else self.coarse / self.folders[identity].name
        return None if folder is None or not (folder / "cameras.json").exists() else read_view(folder, view)


def read_view(folder: Path, view: int) -> SeenView:
    """Read one view of one identity."""
    meta = json.loads((folder / "cameras.json").read_text())
    record = next(v for v in meta["views"] if v["view"] == view)
    image = lambda name: np.asarray(Image.open(folder / f"{name}_{view:03d}.png"))  # noqa: E731
    rgba = torch.from_numpy(image("rgb").astype(np.float32) / 255).permute(2, 0, 1)
    unit = meta["metres_per_unit"]
    depth = torch.from_numpy(image("depth").astype(np.float32) * np.float32(meta["depth_scale_m"] / unit))
    stored = torch.from_numpy(image("normal").astype(np.float32))
    normals = torch.where(stored.sum(-1, keepdim=True) > 0, F.normalize(stored / 127.5 - 1, dim=-1), 0.0)
    pose = torch.tensor(record["world_to_camera"])
    pose[:, 3] /= unit
    camera = Camera(pose, torch.tensor(record["intrinsics"], dtype=torch.float32), rgba.shape[2], rgba.shape[1])
    return SeenView(rgba, depth, normals, camera)


def solid_texture(points: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise (B, 3, H, W) of about unit variance, a function of the place (B, H, W, 3) in head units alone.

    Octaves of lattices with a random slope: blotches, freckles, strands (one axis stretched). The same points in another view get the
    same values, so that copying from the driver is the only way to know them.
    """
    batch = len(points)
    rand = lambda *s: torch.rand(*s, generator=generator)  # noqa: E731
    stretch = torch.exp(1.4 * (rand(batch, 1, 1, 1, 3) - 0.5))
    turn = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator))[0]
    places = (torch.einsum("bij,bhwj->bhwi", turn, points)[:, None] * 2 * stretch) + 2 * rand(batch, 1, 1, 1, 3) - 1
    slope, tint = 1.1 * rand(batch, 1, 1, 1), rand(batch, 1, 1, 1)
    total = torch.zeros(batch, 3, *points.shape[1:3])
    for octave, side in enumerate((8, 24, 64)):  # one lattice for all, each sample at its own place in it
        lattice = torch.randn(1, 4, side, side, side, generator=generator).expand(batch, -1, -1, -1, -1)
        layer = F.grid_sample(lattice, places, padding_mode="reflection", align_corners=False)[:, :, 0]
        total = total + (layer[:, :1] * (1 - tint) + layer[:, 1:] * tint) * torch.exp(-2 * slope * octave)
    return total / total.std((1, 2, 3), keepdim=True).clamp_min(1e-6)


@dataclass(frozen=True)
class Paint:
    """How B heads are painted, the same in every view: a seed for the solid texture, its strength (B,), and pieces of other pictures.

    pieces (B, 3, h, w) are thrown onto the head along `direction` (B, 3, 3; rows: right, down, toward) where the texture is above
    `level` (B,).
    """

    seed: int
    strength: Tensor
    pieces: Tensor
    direction: Tensor
    level: Tensor

    def __call__(self, rgb: Tensor, points: Tensor) -> Tensor:
        """Paint colours (B, 3, H, W) in [0, 1] at surface points (B, H, W, 3); they stay there."""
        texture = solid_texture(points, torch.Generator().manual_seed(self.seed))
        s = self.strength[:, None, None, None]
        painted = (rgb * (1 + s * texture) + 0.3 * s * texture).clamp(0, 1)
        at = torch.einsum("bij,bhwj->bhwi", self.direction[:, :2], points) * 1.7
        piece = F.grid_sample(self.pieces, at, padding_mode="reflection", align_corners=False)
        where = (texture.mean(1, keepdim=True) > self.level[:, None, None, None]).float()
        return painted * (1 - where) + piece * where


def draw_paint(rgb: Tensor, generator: torch.Generator, share: float = 0.6) -> Paint:
    """Draw paints for images (B, 3, H, W), which lend each other the pieces; a `share` gets texture, less than half of those pieces."""
    batch = len(rgb)
    rand = lambda *s: torch.rand(*s, generator=generator)  # noqa: E731
    strength = torch.where(rand(batch) < share, 0.3 * rand(batch), 0.0)
    level = torch.where(rand(batch) < 0.4 * share, 0.3 + 0.7 * rand(batch), 1e6)
    direction = torch.linalg.qr(torch.randn(batch, 3, 3, generator=generator))[0]
    seed = int(torch.randint(0, 2**62, (1,), generator=generator))
    return Paint(seed, strength, rgb.roll(1, 0).flip(-1), direction, level)


def degraded(rgb: Tensor, generator: torch.Generator) -> Tensor:
    """Return a stand-in for stage 1's render of images over grey (B, 3, H, W): blurred, with a colour error."""
    batch, _, height, width = rgb.shape
    factor = int(2 ** int(torch.randint(1, 4, (1,), generator=generator)))
    small = F.interpolate(F.avg_pool2d(rgb, factor), size=(height, width), mode="bilinear", align_corners=False)
    shift = 0.04 * torch.randn(batch, 3, 1, 1, generator=generator)
    known = ((rgb - 0.5).abs().amax(1, keepdim=True) > 1e-3).float()
    return (small + shift * known).clamp(0, 1)
