"""Provider `multiview`: posed images of the sitter, fitted with a tri-plane field. No network, no download.

First the field learns the visual hull, what all mattes leave standing; then random rays of all pictures decide colours and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.posed_images import PHOTO, PosedImage, read_views
from portrait_backend.radiance.decoder import Decoder, DensityActivation
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.renderer import render_rays
from portrait_backend.radiance.triplane import STARTER_AXES
from portrait_shared.settings import PriorSettings

HALF, DEPTH, CHANNELS = 0.5, 4, 16
"""Box, slices per plane (a plane without depth would show the face's colours on the back), channels per slice."""
SHAPE_SIZE, COLOUR_SIZE = 64, 128
PLANE_RATE, DECODER_RATE = 0.02, 0.002
HULL, HULL_SHARE, HULL_LEAST, HULL_POINTS = 64, 0.2, 40, 8192
"""Lattice of the hull, share of the steps that learn it and how many at least, points a step."""
OUTSIDE_POINTS = 2048
"""Points a step that stay empty because some matte says so."""
RAYS, GRID, REBUILD, PREVIEW = 2048, 64, 20, 25


@dataclass(frozen=True)
class FitWeights:
    """Weights of the terms: squared colour error, matte error, emptiness outside the hull, variation of the planes."""

    colour: float = 1.0
    matte: float = 0.3
    outside: float = 0.1
    variation: float = 0.02


class MultiViewPrior:
    """A fit to posed images; the portrait is one more of them unless the folder has its own ``photo``."""

    def initialise(self, portrait: Portrait, settings: PriorSettings, context: Context) -> Head:
        """Fit a head to the images of the folder `settings.views`. PortraitDiffusionError: the codes of `posed_images.read_views`."""
        context.report(0, settings.view_steps)
        views = read_views(settings.views)
        if all(view.name != PHOTO for view in views):
            views.append(posed(portrait))
        head = fit_views(views, settings.view_steps, context)
        meta = {"provider": "multiview", "views": len(views), "photo_sha256": portrait.sha256}
        return Head(head.geometry, head.appearance, head.decoder, head.activation, None, meta)


def posed(portrait: Portrait) -> PosedImage:
    """Return the portrait as a posed image; what lies outside the photo counts as background only where the matte says so."""
    matte = portrait.matte
    return PosedImage(PHOTO, portrait.camera, portrait.rgba[..., :3] * matte[..., None], matte)


def visual_hull(views: Sequence[PosedImage], size: int = HULL) -> Tensor:
    """Return what all mattes leave standing (n, n, n), indexed z, y, x: 1 where every view that sees the cell shows the figure there.

    A cell that no view sees is empty.
    """
    axis = ((torch.arange(size) + 0.5) / size * 2 - 1) * HALF
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1).reshape(-1, 3)
    standing, seen = torch.ones(len(points)), torch.zeros(len(points))
    for view in views:
        pixels, depth = view.camera.project(points)
        at = pixels / pixels.new_tensor([view.camera.width, view.camera.height]) * 2 - 1
        inside = (at.abs() <= 1).all(-1) & (depth > 0)
        matte = F.grid_sample(view.matte[None, None], at[None, None], padding_mode="border", align_corners=False)[0, 0, 0]
        standing = torch.where(inside, torch.minimum(standing, matte), standing)
        seen = seen + inside
    return (standing * (seen > 0)).view(size, size, size)


def fit_views(views: Sequence[PosedImage], steps: int, context: Context, weights: FitWeights | None = None) -> Head:
    """Fit a fresh field to posed images in `steps` Adam steps."""
    fit = _Fit(views, context, weights or FitWeights())
    hull_steps = min(steps, max(HULL_LEAST, round(HULL_SHARE * steps)))
    for step in range(steps):
        fit.set_rate(1 - 0.9 * step / steps)
        loss, error = fit.hull_loss() if step < hull_steps else fit.ray_loss(step - hull_steps)
        fit.step(loss)
        wanted = step >= hull_steps and step % PREVIEW == 0 and context.wants_preview()
        context.report(step + 1, steps, fit.preview() if wanted else None, error=error)
    return fit.finished()


class _Fit:
    """The leaves (planes and decoder), the pictures as one table of rays, and the losses."""

    def __init__(self, views: Sequence[PosedImage], context: Context, weights: FitWeights) -> None:
        self.context, self.weights, device = context, weights, context.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=context.generator, device=context.generator.device)))
            planes = [0.1 * torch.randn(3, DEPTH * CHANNELS, size, size) for size in (SHAPE_SIZE, COLOUR_SIZE)]
            decoder = Decoder(CHANNELS).to(device)
        geometry, appearance = (TriPlane(p.to(device), DEPTH, STARTER_AXES, HALF) for p in planes)
        self.base = Head(geometry, appearance, decoder, DensityActivation())
        self.leaves = [plane.planes.clone().requires_grad_() for plane in (geometry, appearance)]
        groups = [{"params": self.leaves, "base": PLANE_RATE}, {"params": list(decoder.parameters()), "base": DECODER_RATE}]
        self.optimiser = torch.optim.Adam(groups, lr=PLANE_RATE, betas=(0.9, 0.95))
        self.hull = visual_hull(views).to(device)
        self.camera = views[0].camera
        rays = [view.camera.rays() for view in views]
        self.origins = torch.cat([o.expand(len(d), 3) for o, d in rays]).to(device)
        self.directions = torch.cat([d for _, d in rays]).to(device)
        truth = [torch.cat([view.rgb, view.matte[..., None]], -1).reshape(-1, 4) for view in views]
        self.truth = torch.cat(truth).to(device)
        self.grid: DensityGrid | None = None

    def head(self) -> Head:
        """Return the head of the leaves as they are now."""
        return self.base.with_planes(self.base.geometry.with_planes(self.leaves[0]), self.base.appearance.with_planes(self.leaves[1]))

    def set_rate(self, share: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * share

    def step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def hull_loss(self) -> tuple[Tensor, float]:
        """Cross-entropy of the occupancy with the hull at random points."""
        points = self._points(HULL_POINTS)
        head = self.head()
        a, raw = head.activation, head.decoder(head.geometry.sample(points), outputs=1)[0]
        loss = F.binary_cross_entropy_with_logits(a.gain * raw + a.bias, self._hull_at(points))
        return loss + self._variation(), float(loss.detach())

    def ray_loss(self, step: int) -> tuple[Tensor, float]:
        """Squared colour error over a random grey, matte error, emptiness outside the hull; returns the RMS colour error too."""
        head, random = self.head(), self.context.generator
        if self.grid is None or step % REBUILD == 0:
            planes = self.leaves[0]
            self.grid = DensityGrid.build(head, GRID, device=planes.device, dtype=planes.dtype)
        pick = torch.randint(0, len(self.truth), (RAYS,), generator=random, device=random.device).to(self.truth.device)
        out = render_rays(head, self.origins[pick], self.directions[pick], self.grid, generator=random)
        truth = self.truth[pick]
        grey = float(torch.rand((), generator=random, device=random.device))
        shown, wanted = out.rgb + grey * (1 - out.alpha[:, None]), truth[:, :3] + grey * (1 - truth[:, 3:])
        colour = (shown - wanted).square().mean()
        points = self._points(OUTSIDE_POINTS)
        outside = (head.density(points) / head.activation.scale * (1 - self._hull_at(points))).mean()
        w = self.weights
        loss = w.colour * colour + w.matte * (out.alpha - truth[:, 3]).abs().mean() + w.outside * outside + self._variation()
        return loss, float(colour.detach().sqrt())

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return the first view (H, W, 3) over light grey."""
        camera, light = self.camera.resized(160).to(self.context.device), self.truth.new_tensor([0.85] * 3)
        return self.head().render(camera, background=light).rgb.clamp(0, 1)

    def finished(self) -> Head:
        """Return the head without graphs."""
        decoder = self.base.decoder.requires_grad_(False).eval()
        planes = [leaf.detach() for leaf in self.leaves]
        geometry, appearance = self.base.geometry.with_planes(planes[0]), self.base.appearance.with_planes(planes[1])
        return Head(geometry, appearance, decoder, self.base.activation)

    def _points(self, count: int) -> Tensor:
        random = self.context.generator
        return ((torch.rand(count, 3, generator=random, device=random.device) * 2 - 1) * HALF).to(self.truth.device)

    def _hull_at(self, points: Tensor) -> Tensor:
        at = (points / HALF)[None, None, None]
        return F.grid_sample(self.hull[None, None], at, padding_mode="border", align_corners=False)[0, 0, 0, 0].clamp(0, 1)

    def _variation(self) -> Tensor:
        total = self.truth.new_zeros(())
        for p in self.leaves:
            total = total + (p[:, :, :, 1:] - p[:, :, :, :-1]).abs().mean() + (p[:, :, :, :, 1:] - p[:, :, :, :, :-1]).abs().mean()
        return self.weights.variation * total
