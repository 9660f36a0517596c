"""`portrait-diffusion train phi`: pre-training of the Detail Preservation UNet over many portraits (Eq. 4).

Every step takes stage 1's head of one training portrait, adds phi's residual, and compares rays with the sitter's true views:
at starter scale they are known, all around, so L_ref reaches behind the head. The diffusion prior adds its guidance now and then.
The heads are the network's plain answers and, from a kept set, answers that were fitted to their photo, as the stage will find them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.context import cpu_context
from portrait_backend.files import atomic_path
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.radiance.cameras import METRES_PER_UNIT, focal_pixels
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.renderer import render_rays
from portrait_backend.radiance.triplane import mirror_planes, to_channels_last, to_neutral
from portrait_backend.restoration.detail_unet import DetailPreservationUNet, config_for, load_detail_unet, save_detail_unet
from portrait_backend.restoration.field import RestoredField, phi_input
from portrait_backend.restoration.fit import reference_image
from portrait_backend.restoration.guide import DiffusionPrior, Guide
from portrait_backend.restoration.losses import variation_loss
from portrait_backend.restoration.views import SAMPLES, draw_angles, render_view
from portrait_backend.training.codec_trainer import save_picture
from portrait_backend.training.head_dataset import EAR, HeadDataset, camera_at, decode_depth, load_heads, part_pixels
from portrait_backend.training.prior_evaluation import image_scores
from portrait_backend.training.prior_loss import colour_error
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_backend.training.trainer import TrainOptions, train
from portrait_shared.settings import PriorSettings, RestorationSettings

RAYS, REPEAT = 2048, 2
"""Rays a step; steps in a row on the same head, which takes a while to load."""
FITTED, FIT_STEPS = 0.95, 20
"""Share of heads that are fitted to their photo; steps of that fit."""
EARS = 0.15
"""Share of rays that hit an ear, where the data set says what is one: few random rays do."""
COLOUR, MATTE, DEPTH, SOLID, VARIATION, GUIDANCE = 2.0, 1.0, 2.0, 1.0, 0.05, 0.05
"""Weights. The guidance is weak: the true views say the same, and better. Colours are judged as where the prior was trained: phi must
not turn its means into medians."""
GUIDED = 30
"""The diffusion prior is asked every so many steps."""
GRID = 64
"""Resolution of the lattice that places the samples."""
NEAR, FAR = 2.15, 3.3
"""Depths between which there is anything, head units."""
SLOPE = 4.0
"""What the raw density's distance from the surface's is scaled with for the error of points: it reaches farther than rendering's."""
SHOWN_VIEWS, SHOWN_SIZE = (1, 4, 6), 96


class PhiLoss(nn.Module):
    """phi with its loss: colour over grey, matte and depth of true rays, points on them, smoothness of the change, guidance."""

    def __init__(self, phi: DetailPreservationUNet) -> None:
        super().__init__()
        self.phi = phi

    def forward(
        self, head: Head, rays: dict[str, Tensor], guide: Guide | None, angles: tuple[float, float], level: float
    ) -> dict[str, Tensor]:
        """Return the loss terms; guide None: the diffusion prior is not asked. level: how far its noise is annealed, in [0, 1]."""
        restored = RestoredField(head, self.phi, autocast=True, planes=rays.get("planes"), mirrored=False)
        device = head.geometry.planes.device
        with torch.autocast(device.type, enabled=False):  # rays need exact positions
            grid = head.density_grid(GRID)
            out = render_rays(restored, rays["origin"], rays["direction"], grid, samples=SAMPLES)
            matte, depth = rays["colour"][:, 3], rays["depth"]
            truth = rays["colour"][:, :3] * matte[:, None] + 0.5 * (1 - matte[:, None])
            hit = ((depth > 0) & (matte > 0.9) & (out.alpha.detach() > 0.5)).float()
            terms = {
                "rgb": colour_error(out.rgb + 0.5 * (1 - out.alpha[:, None]) - truth).mean(),
                "matte": (out.alpha - matte).abs().mean(),
                "depth": ((out.depth - depth).abs().clamp_max(0.1) * hit).sum() / hit.sum().clamp_min(1),
                "solid": solid_loss(restored, rays),
                "variation": variation_loss(restored.shape),
            }
            total = COLOUR * terms["rgb"] + MATTE * terms["matte"] + DEPTH * terms["depth"]
            total = total + SOLID * terms["solid"] + VARIATION * terms["variation"]
            if guide is not None:
                view = render_view(restored, *angles, guide.settings.render_size, grid, guide.settings.memory_budget)
                terms["guidance"] = torch.stack(list(guide.losses(view, level).values())).sum()
                total = total + GUIDANCE * terms["guidance"]
        return terms | {"total": total}


def solid_loss(field: RestoredField, rays: dict[str, Tensor]) -> Tensor:
    """Return the L1 error of what is solid at four points of each ray: on the way, just before, around and behind the true surface.

    It reaches where rendering has no samples: matter that must grow out of nothing. L1 decides where it doubts, and leaves no haze.
    Near the surface as many points lie before as behind it: where it is uncertain, an excess of either moves it.
    """
    depth, matte = rays["depth"], rays["colour"][:, 3]
    hit, miss = (depth > 0) & (matte > 0.6), matte < 0.05
    u = rays["places"]
    guided = torch.stack([NEAR + (depth - 0.06 - NEAR) * u[0], depth - 0.06 * u[1], depth + 0.04 * (u[2] - 0.5), depth + 0.06 * u[3]])
    t = torch.where(hit, guided, NEAR + (FAR - NEAR) * u)
    edge = torch.sigmoid((guided - depth) / 0.004) * hit
    counts = torch.stack([hit | miss, hit | miss, hit | miss, hit]).float()
    points = rays["origin"] + rays["direction"] * t[..., None]
    inside = (points.abs() < field.half_extent).all(-1)
    share = torch.sigmoid(SLOPE * (field.raw(points.reshape(-1, 3)).view(4, -1) - field.head.activation.raw_surface))
    return ((share - edge).abs() * counts * inside).sum() / counts.sum().clamp_min(1)


def mirrored(head: Head) -> Head:
    """Return the head mirrored left to right."""

    def flipped(planes: TriPlane) -> TriPlane:
        return planes.with_planes(mirror_planes(planes.planes, planes.axes))

    geometry = flipped(head.geometry)
    appearance = geometry if head.appearance is head.geometry else flipped(head.appearance)
    region = None if head.region is None else head.region.flip(2)
    return replace(head, geometry=geometry, appearance=appearance, region=region, _made={})


class PhiRecipe:
    """Random input views of random sitters, each used for a few steps; one head a step whatever the batch, which multiplies the rays.

    Half of the time head and truth are mirrored.

    heads: how many fitted heads are made (each takes seconds) and kept in the folder heads/ of the run, named by their identity;
    start: weights to go on from, None begins with a zero residual.
    """

    def __init__(self, options: TrainOptions, prior: DiffusionPrior | None, heads: int = 64, start: Path | str | None = None) -> None:
        torch.manual_seed(options.seed)
        self.data = load_heads(options.data, options.limit, options.seed)
        self.ears = part_pixels(options.data, EAR, options.limit)
        self.held_out = load_heads(options.validation, 4, options.seed + 1, input_views=(0,)) if options.validation else None
        self.prior, self.settings, self.folder = prior, RestorationSettings(), options.out / "heads"
        self.folder.mkdir(parents=True, exist_ok=True)
        there = sorted(int(path.stem) for path in self.folder.glob("[0-9]*.safetensors"))
        generator = torch.Generator().manual_seed(options.seed)
        new = [k for k in torch.randperm(len(self.data), generator=generator).tolist() if k not in there]
        self.fitted = [*there, *new][:heads]
        self.current: tuple[Head, int, Tensor, Guide | None] = self._take(False, False, generator)
        self.phi = DetailPreservationUNet(config_for(self.current[0])) if start is None else load_detail_unet(start)
        self.phi.checkpointing = False
        self.module, self.network = PhiLoss(self.phi), self.phi
        self.drawn, self.mirror = 0, False

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw count x `RAYS` true rays of the present sitter from all views, and perhaps a view for the guidance."""
        if self.drawn and self.drawn % REPEAT == 0:
            fitted, mirror = (float(x) for x in torch.rand(2, generator=generator))
            self.mirror = mirror < 0.5
            self.current = self._take(fitted < FITTED, self.mirror, generator)
        head, identity, planes, guide = self.current
        asked = guide if self.drawn % GUIDED == 0 else None
        self.drawn += 1
        offset, level = (float(x) for x in torch.rand(2, generator=generator))
        rays = true_rays(self.data, identity, count * RAYS, generator, self.ears[identity])
        if self.mirror:
            rays |= {name: rays[name] * rays[name].new_tensor([-1.0, 1.0, 1.0]) for name in ("origin", "direction")}
        rays["planes"] = planes
        return {"head": head, "rays": rays, "guide": asked, "angles": draw_angles(0, 360 * offset, generator), "level": level}

    def _take(self, fitted: bool, mirror: bool, generator: torch.Generator) -> tuple[Head, int, Tensor, Guide | None]:
        """Draw a head, fitted or as the network answers, perhaps mirrored: the head, its identity, what phi reads, the guide."""
        count = len(self.fitted) if fitted else len(self.data.input_id)
        drawn = int(torch.randint(0, count, (), generator=generator))
        identity = self.fitted[drawn] if fitted else int(self.data.input_id[drawn])
        rows = (self.data.input_id == identity).nonzero()[:, 0]
        row = int(rows[identity % len(rows)]) if fitted else drawn
        head = self._fitted(self.data, row, f"{identity:05d}") if fitted else _answer(self.data, row, 0)
        head = mirrored(head) if mirror else head
        guide = None
        if self.prior is not None:
            reference = reference_image(portrait_of(self.data, row))
            guide = Guide(self.prior, self.settings, reference.flip(-1) if mirror else reference, generator)
        return head, identity, phi_input(head), guide

    def _fitted(self, data: HeadDataset, row: int, name: str) -> Head:
        """Return the fitted head of an input row, made and kept if it is not there."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            with torch.enable_grad():
                head = _answer(data, row, FIT_STEPS)
            with atomic_path(path) as temporary:
                reduced(head).save(temporary)
        return Head.load(path)

    @torch.no_grad()
    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, float]:
        """Return foreground PSNR, IoU and mean depth error (mm) of held-out heads before and after phi.

        The picture shows truth, before and after.
        """
        assert isinstance(network, DetailPreservationUNet)
        data = self.held_out or self.data
        rows, scores = [], dict.fromkeys([f"{x}_{when}" for x in ("psnr", "iou", "depth") for when in ("before", "after")], 0.0)
        count = min(4, len(data.input_id))
        views = [v for v in SHOWN_VIEWS if v < data.rgba.shape[1]]
        at = ((torch.arange(SHOWN_SIZE) + 0.5) * data.size / SHOWN_SIZE).long()
        for row in range(count):
            identity = int(data.input_id[row])
            before = self._fitted(data, row, f"held-out-{row}")
            tiles = []
            for view in views:
                camera = camera_at(data, identity, view, SHOWN_SIZE)
                rgba = F.interpolate(
                    data.rgba[identity, view].float().permute(2, 0, 1)[None] / 255, size=(SHOWN_SIZE, SHOWN_SIZE), mode="area"
                )[0].permute(1, 2, 0)
                truth = rgba[..., :3] * rgba[..., 3:] + 0.5 * (1 - rgba[..., 3:])
                tiles.append(truth)
                depth = decode_depth(data.depth[identity, view][at][:, at])
                for name, head in (("before", before), ("after", RestoredField(before, network).merged())):
                    out = replace(head, _made={}).render(camera)
                    shown = out.rgb + 0.5 * (1 - out.alpha[..., None])
                    _, psnr, iou = image_scores(shown, out.alpha, truth, rgba[..., 3])
                    scores[f"psnr_{name}"] += psnr / (count * len(views))
                    scores[f"iou_{name}"] += iou / (count * len(views))
                    error = (out.depth - depth).abs()[(depth > 0) & (out.alpha > 0.5)].mean()
                    scores[f"depth_{name}"] += float(error) * METRES_PER_UNIT * 1000 / (count * len(views))
                    tiles.append(shown)
            rows.append(torch.cat(tiles, 1))
        save_picture(torch.cat(rows).permute(2, 0, 1), picture)
        return scores

    def config(self) -> dict[str, Any]:
        """The sizes of phi."""
        return {"channels": self.phi.config.channels}


def reduced(head: Head) -> Head:
    """Return the head with colours as fine as its shape: what phi reads, a quarter of the memory."""
    shape, colour = head.geometry.planes, to_neutral(head.appearance.planes)
    if head.appearance is head.geometry:
        return head
    small = F.interpolate(colour, size=shape.shape[3:5], mode="area")
    return head.with_planes(appearance=head.appearance.with_planes(to_channels_last(small, shape.shape[2])))


def _answer(data: HeadDataset, row: int, fit_steps: int) -> Head:
    """Run stage 1 on an input row."""
    return StarterPrior().initialise(portrait_of(data, row), PriorSettings(fit_steps=fit_steps), cpu_context(row))


def true_rays(data: HeadDataset, identity: int, count: int, generator: torch.Generator, ears: Tensor | None = None) -> dict[str, Tensor]:
    """Draw pixels of all views of an identity: origin, direction (N, 3) in head units, straight colour (N, 4), depth (N,), 0: empty.

    places (4, N) in [0, 1]: where along the rays points are looked at; ears (K, 3): view, y and x of pixels that a share of the rays hits.
    """
    view = torch.randint(0, data.rgba.shape[1], (count,), generator=generator)
    y, x = torch.randint(0, data.size, (2, count), generator=generator)
    if ears is not None and len(ears):
        some = min(round(EARS * count), len(ears))
        view[:some], y[:some], x[:some] = ears[torch.randint(0, len(ears), (some,), generator=generator)].T
    camera = data.cameras[identity, view]
    plane = (torch.stack([x, y], -1) + 0.5) / data.size * 2 - 1
    local = torch.cat([plane / (2 * focal_pixels(1)), torch.ones(count, 1)], 1)
    return {
        "origin": -torch.einsum("nc,ncd->nd", camera[..., 3], camera[..., :3]),
        "direction": torch.einsum("nc,ncd->nd", local, camera[..., :3]),
        "colour": data.rgba[identity, view, y, x].float() / 255,
        "depth": decode_depth(data.depth[identity, view, y, x]),
        "places": torch.rand(4, count, generator=generator),
    }


def train_phi(options: TrainOptions, prior: DiffusionPrior | None, heads: int = 64, start: Path | str | None = None) -> Path:
    """Train (or resume) phi on stage 1's heads; prior None: no guidance. Writes detail_unet.safetensors beside the checkpoint.

    heads: how many of them are fitted to their photo; start: weights to go on from (`PhiRecipe`).
    """
    recipe = PhiRecipe(options, prior, heads, start)
    checkpoint = train(recipe, options)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    facts = {"data": options.data.name, "steps": str(state["step"])}
    save_detail_unet(recipe.phi, options.out / "detail_unet.safetensors", state["average"], **facts)
    return checkpoint
