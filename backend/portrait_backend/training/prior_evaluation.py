"""Held-out figures of the feed-forward prior: PSNR on the foreground and mask IoU per view angle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from portrait_backend.prior.network import INPUT_SIZE, PriorNetwork
from portrait_backend.prior.starter import TRAINED
from portrait_backend.radiance.cameras import focal_pixels
from portrait_backend.radiance.compositing import composite
from portrait_backend.training.head_dataset import HeadDataset, camera_of
from portrait_backend.training.prior_loss import FAR, NEAR, decode_planes, inside

VIEWS = {"front": (1,), "45": (2, 3), "90": (4, 5), "180": (6,)}
"""Views of an evaluation identity (`synthetic.view_plan`); view 0 is the input."""


def clean_input(data: HeadDataset, row: int) -> Tensor:
    """Return the undegraded encoder input (1, 4, 128, 128) of an input row."""
    rgba = data.rgba[data.input_id[row], data.input_view[row]].float().permute(2, 0, 1)[None] / 255
    image = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    grid = F.affine_grid(data.similarity[row : row + 1], [1, 4, 2 * INPUT_SIZE, 2 * INPUT_SIZE], align_corners=False)
    x = F.avg_pool2d(F.grid_sample(image, grid, align_corners=False), 2)
    return torch.cat([x[:, :3] + 0.5 * (1 - x[:, 3:]), x[:, 3:]], 1)


@torch.no_grad()
def march(
    network: PriorNetwork, planes: tuple[Tensor, Tensor], pose: Tensor, size: int, coarse: int = 48, fine: int = 24
) -> tuple[Tensor, Tensor]:
    """Render rgb (size, size, 3) premultiplied and alpha (size, size) by dense marching from pose (3, 4)."""
    g = ((torch.arange(size) + 0.5) / size * 2 - 1) / (2 * focal_pixels(1))
    y, x = torch.meshgrid(g, g, indexing="ij")
    direction = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3) @ pose[:, :3]
    origin = -pose[:, :3].T @ pose[:, 3]

    def decode(t: Tensor) -> tuple[Tensor, Tensor]:
        points = origin + direction[:, None] * t[..., None]
        raw, rgb = decode_planes(network, planes, points.reshape(1, -1, 3), False)
        return TRAINED(raw.view(t.shape)) * inside(points), rgb.view(*t.shape, 3)

    step = (FAR - NEAR) / coarse
    t = (NEAR + step * (torch.arange(coarse) + 0.5)).expand(size * size, coarse)
    density, rgb = decode(t)
    weight = composite(density, rgb, t)[3] + 1e-4
    cdf = torch.cumsum(weight, -1) / weight.sum(-1, keepdim=True)
    u = ((torch.arange(fine) + 0.5) / fine).expand(size * size, fine).contiguous()
    cell = torch.searchsorted(cdf.contiguous(), u).clamp(max=coarse - 1)
    low = F.pad(cdf, (1, 0))[..., :-1].gather(-1, cell)
    width = (cdf.gather(-1, cell) - low).clamp_min(1e-7)
    t2 = NEAR + step * (cell + ((u - low) / width).clamp(0, 1))
    density2, rgb2 = decode(t2)
    order = torch.argsort(torch.cat([t, t2], -1), -1)
    merged = torch.cat([rgb, rgb2], 1).gather(1, order[..., None].expand(-1, -1, 3))
    out, alpha, _, _ = composite(torch.cat([density, density2], -1).gather(-1, order), merged, torch.cat([t, t2], -1).gather(-1, order))
    return out.view(size, size, 3), alpha.view(size, size)


@torch.no_grad()
def evaluate_prior(
    network: PriorNetwork, data: HeadDataset, count: int = 16, size: int = 64, picture: Path | None = None
) -> dict[str, list[float]]:
    """Return per view group [PSNR, foreground PSNR, IoU] over `count` identities at size x size px; optionally a PNG sheet."""
    scores: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VIEWS}
    rows = []
    for row in range(min(count, len(data.input_id))):
        identity, angles = data.input_id[row], data.fitted_angles[row : row + 1]
        image = clean_input(data, row)
        planes = network(image, camera_of(angles), angles, data.coefficients[row : row + 1], autocast=False)
        tiles = [F.interpolate(image[:, :3], size=size, mode="area")[0].permute(1, 2, 0)]
        for name, views in VIEWS.items():
            for v in views:
                target = F.interpolate(data.rgba[identity, v].float().permute(2, 0, 1)[None] / 255, size=size, mode="area")[0].permute(
                    1, 2, 0
                )
                rgb, alpha = march(network, planes, data.cameras[identity, v], size)
                truth = target[..., :3] * target[..., 3:] + 0.5 * (1 - target[..., 3:])
                shown = rgb + 0.5 * (1 - alpha[..., None])
                scores[name].append(image_scores(shown, alpha, truth, target[..., 3]))
                tiles += [truth, shown] if v in (1, 2, 4, 6) else []
        rows.append(torch.cat(tiles, 1))
    if picture is not None:
        Image.fromarray((torch.cat(rows[:8]).clamp(0, 1).numpy() * 255).astype(np.uint8)).save(picture)
    return {name: [round(float(x), 3) for x in np.mean(values, 0)] for name, values in scores.items()}


def image_scores(shown: Tensor, alpha: Tensor, truth: Tensor, matte: Tensor) -> tuple[float, float, float]:
    """PSNR, PSNR over the true foreground [dB] and mask IoU at 0.5 of images (H, W, 3) with alpha (H, W)."""
    error, solid = ((shown - truth) ** 2).mean(-1), matte > 0.5
    both, either = ((alpha > 0.5) & solid).sum(), ((alpha > 0.5) | solid).sum()
    psnr = [float(-10 * e.clamp_min(1e-10).log10()) for e in (error.mean(), error[solid].mean())]
    return psnr[0], psnr[1], float(both / either.clamp_min(1))
