"""`portrait-diffusion train phi`: pre-training of the Detail Preservation UNet over many portraits (Eq. 4).

Every step takes the prior's head of one training portrait, adds phi's residual, and compares rays with the sitter's true views:
at starter scale they are known, all around, so L_ref reaches behind the head. The diffusion prior adds its guidance now and then.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from portrait_backend.context import cpu_context
from portrait_backend.evaluation.held_out import camera_at, portrait_of
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.radiance.cameras import focal_pixels
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import render_rays
from portrait_backend.restoration.detail_unet import DetailPreservationUNet, config_for, save_detail_unet
from portrait_backend.restoration.field import RestoredField
from portrait_backend.restoration.fit import reference_image
from portrait_backend.restoration.guide import DiffusionPrior, Guide
from portrait_backend.restoration.losses import variation_loss
from portrait_backend.restoration.views import SAMPLES, draw_angles, render_view
from portrait_backend.training.codec_trainer import save_picture
from portrait_backend.training.head_dataset import HeadDataset, decode_depth, load_heads
from portrait_backend.training.prior_evaluation import image_scores
from portrait_backend.training.trainer import TrainOptions, train
from portrait_shared.settings import PriorSettings, RestorationSettings

RAYS, REPEAT = 2048, 4
"""Rays a step; steps in a row on the same head, which costs more to make than a step."""
MATTE, DEPTH, VARIATION, GUIDANCE = 1.0, 2.0, 0.05, 0.05
"""Weights beside the colour error's 1. The guidance is weak: the true views say the same, and better."""
GUIDED = 4
"""The diffusion prior is asked every so many steps."""
SHOWN_VIEWS, SHOWN_SIZE = (1, 4, 6), 96


class PhiLoss(nn.Module):
    """phi with its loss: L1 on colour over grey, matte and depth of true rays, smoothness of the change, guidance."""

    def __init__(self, phi: DetailPreservationUNet) -> None:
        super().__init__()
        self.phi = phi

    def forward(
        self, head: Head, rays: dict[str, Tensor], guide: Guide | None, angles: tuple[float, float], level: float
    ) -> dict[str, Tensor]:
        """Return the loss terms; guide None: the diffusion prior is not asked. level: how far its noise is annealed, in [0, 1]."""
        restored = RestoredField(head, self.phi, autocast=True)
        device = head.geometry.planes.device
        with torch.autocast(device.type, enabled=False):  # rays need exact positions
            grid = head.density_grid()
            out = render_rays(restored, rays["origin"], rays["direction"], grid, samples=SAMPLES)
            matte, depth = rays["colour"][:, 3], rays["depth"]
            truth = rays["colour"][:, :3] * matte[:, None] + 0.5 * (1 - matte[:, None])
            hit = ((depth > 0) & (matte > 0.9) & (out.alpha.detach() > 0.5)).float()
            terms = {
                "rgb": (out.rgb + 0.5 * (1 - out.alpha[:, None]) - truth).abs().mean(),
                "matte": (out.alpha - matte).abs().mean(),
                "depth": ((out.depth - depth).abs().clamp_max(0.1) * hit).sum() / hit.sum().clamp_min(1),
                "variation": variation_loss(restored.shape),
            }
            total = terms["rgb"] + MATTE * terms["matte"] + DEPTH * terms["depth"] + VARIATION * terms["variation"]
            if guide is not None:
                view = render_view(restored, *angles, guide.settings.render_size, grid, guide.settings.memory_budget)
                terms["guidance"] = torch.stack(list(guide.losses(view, level).values())).sum()
                total = total + GUIDANCE * terms["guidance"]
        return terms | {"total": total}


class PhiRecipe:
    """Random input views of random sitters, each used for a few steps; one head a step whatever the batch, which multiplies the rays."""

    def __init__(self, options: TrainOptions, prior: DiffusionPrior | None) -> None:
        torch.manual_seed(options.seed)
        self.data = load_heads(options.data, options.limit, options.seed)
        self.held_out = load_heads(options.validation, 4, options.seed + 1, input_views=(0,)) if options.validation else None
        self.prior, self.settings = prior, RestorationSettings()
        self.current: tuple[Head, int, Guide | None] = self._take(0, torch.Generator().manual_seed(options.seed))
        self.phi = DetailPreservationUNet(config_for(self.current[0]))
        self.module, self.network = PhiLoss(self.phi), self.phi
        self.drawn = 0

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw count x `RAYS` true rays of the present sitter from all views, and perhaps a view for the guidance."""
        if self.drawn and self.drawn % REPEAT == 0:
            self.current = self._take(int(torch.randint(0, len(self.data.input_id), (1,), generator=generator)), generator)
        head, identity, guide = self.current
        asked = guide if self.drawn % GUIDED == 0 else None
        self.drawn += 1
        offset, level = (float(x) for x in torch.rand(2, generator=generator))
        rays = true_rays(self.data, identity, count * RAYS, generator)
        return {"head": head, "rays": rays, "guide": asked, "angles": draw_angles(0, 360 * offset, generator), "level": level}

    def _take(self, row: int, generator: torch.Generator) -> tuple[Head, int, Guide | None]:
        """Make the head of an input row, as the prior answers without a fit, on the CPU."""
        portrait = portrait_of(self.data, row)
        head = StarterPrior().initialise(portrait, PriorSettings(fit_steps=0), cpu_context())
        guide = None if self.prior is None else Guide(self.prior, self.settings, reference_image(portrait), generator)
        return head, int(self.data.input_id[row]), guide

    @torch.no_grad()
    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, float]:
        """Return foreground PSNR and IoU of held-out heads before and after phi; the picture shows truth, before and after."""
        assert isinstance(network, DetailPreservationUNet)
        data = self.held_out or self.data
        rows, scores = [], dict.fromkeys(("psnr_before", "psnr_after", "iou_before", "iou_after"), 0.0)
        count = min(4, len(data.input_id))
        views = [v for v in SHOWN_VIEWS if v < data.rgba.shape[1]]
        for row in range(count):
            identity = int(data.input_id[row])
            before = StarterPrior().initialise(portrait_of(data, row), PriorSettings(fit_steps=0), cpu_context())
            tiles = []
            for view in views:
                camera = camera_at(data, identity, view, SHOWN_SIZE)
                rgba = torch.nn.functional.interpolate(
                    data.rgba[identity, view].float().permute(2, 0, 1)[None] / 255, size=(SHOWN_SIZE, SHOWN_SIZE), mode="area"
                )[0].permute(1, 2, 0)
                truth = rgba[..., :3] * rgba[..., 3:] + 0.5 * (1 - rgba[..., 3:])
                tiles.append(truth)
                for name, head in (("before", before), ("after", RestoredField(before, network).merged())):
                    out = replace(head, _grids={}).render(camera)
                    shown = out.rgb + 0.5 * (1 - out.alpha[..., None])
                    _, psnr, iou = image_scores(shown, out.alpha, truth, rgba[..., 3])
                    scores[f"psnr_{name}"] += psnr / (count * len(views))
                    scores[f"iou_{name}"] += iou / (count * len(views))
                    tiles.append(shown)
            rows.append(torch.cat(tiles, 1))
        save_picture(torch.cat(rows).permute(2, 0, 1), picture)
        return scores

    def config(self) -> dict[str, Any]:
        """The sizes of phi."""
        return {"channels": self.phi.config.channels, "outputs": self.phi.config.outputs}


def true_rays(data: HeadDataset, identity: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw pixels of all views of an identity: origin, direction (N, 3) in head units, straight colour (N, 4), depth (N,), 0: empty."""
    view = torch.randint(0, data.rgba.shape[1], (count,), generator=generator)
    y, x = torch.randint(0, data.size, (2, count), generator=generator)
    camera = data.cameras[identity, view]
    plane = (torch.stack([x, y], -1) + 0.5) / data.size * 2 - 1
    local = torch.cat([plane / (2 * focal_pixels(1)), torch.ones(count, 1)], 1)
    return {
        "origin": -torch.einsum("nc,ncd->nd", camera[..., 3], camera[..., :3]),
        "direction": torch.einsum("nc,ncd->nd", local, camera[..., :3]),
        "colour": data.rgba[identity, view, y, x].float() / 255,
        "depth": decode_depth(data.depth[identity, view, y, x]),
    }


def train_phi(options: TrainOptions, prior: DiffusionPrior | None) -> Path:
    """Train (or resume) phi on the shipped prior's heads; prior None: no guidance. Writes detail_unet.safetensors beside the checkpoint."""
    recipe = PhiRecipe(options, prior)
    checkpoint = train(recipe, options)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    facts = {"data": options.data.name, "steps": str(state["step"])}
    save_detail_unet(recipe.phi, options.out / "detail_unet.safetensors", state["average"], **facts)
    return checkpoint
