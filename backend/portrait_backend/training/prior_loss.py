"""Supervision of the starter prior: depth-guided points along rays and small rendered patches (Eq. 3's networks)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.precision import bf16_autocast
from portrait_backend.prior.lift import HALF
from portrait_backend.prior.network import INPUT_SIZE, PriorNetwork, join_planes
from portrait_backend.radiance.cameras import ORBIT_RADIUS, focal_pixels, mirror_cameras
from portrait_backend.radiance.compositing import composite
from portrait_backend.radiance.decoder import DensityActivation
from portrait_backend.radiance.triplane import sample_planes
from portrait_backend.training.augment import apply_appearance, degrade_input, draw_appearance
from portrait_backend.training.head_dataset import HeadDataset, camera_of, decode_depth

NEAR, FAR = 2.15, 3.3
"""Ray range of training samples, head units."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms and counts of samples per person.

    near: share of extra patches in the two near-frontal views; turn: colour error at which the squared loss becomes a linear one.
    """

    rays: int = 1280
    patch: int = 32
    patch_samples: int = 16
    behind: float = 0.06
    rgb: float = 2.0
    alpha: float = 1.0
    gradient: float = 0.5
    near: float = 0.12
    turn: float = 0.2


def decode_planes(network: PriorNetwork, planes: tuple[Tensor, Tensor], points: Tensor, autocast: bool) -> tuple[Tensor, Tensor]:
    """Return the raw density (B, P) and rgb (B, P, 3) of points (B, P, 3) in head units."""
    learned, copied = planes
    features = join_planes(sample_planes(learned, points / HALF), sample_planes(copied, points / HALF))
    with bf16_autocast(points.device.type, autocast):
        raw, rgb = network.decoder(features, outputs=4)
    return raw, rgb


def colour_error(error: Tensor, turn: float = LossWeights.turn) -> Tensor:
    """Squared below `turn`, linear above, with slope 1: what is only guessed tends to its mean, which an outlier can't drag far."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=turn) / turn


def inside(points: Tensor) -> Tensor:
    """Return whether points (..., 3) lie in the box."""
    return (points.abs() < HALF).all(-1)


class Sampler:
    """Draws batches from a data set held in memory; randomness only through its generator."""

    def __init__(self, data: HeadDataset, generator: torch.Generator, weights: LossWeights) -> None:
        self.data, self.generator, self.weights = data, generator, weights

    def _int(self, high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=self.generator)

    def pixels(self, rows: Tensor, view: Tensor, y: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Read pixels (B, N) of views (B, N) of input rows (B,): colour (B, N, 4), depth (B, N), origin and direction (B, N, 3)."""
        data, i = self.data, self.data.input_id[rows, None].expand_as(view)
        mirrored = data.mirrored[rows, None]
        camera = data.cameras[i, view]
        camera = torch.where(mirrored[..., None, None], mirror_cameras(camera), camera)
        g = torch.stack([(x + 0.5) / data.size * 2 - 1, (y + 0.5) / data.size * 2 - 1], -1) / (2 * focal_pixels(1))
        rotation = camera[..., :3]
        direction = torch.einsum("bnc,bncd->bnd", F.pad(g, (0, 1), value=1.0), rotation)
        origin = -torch.einsum("bnc,bncd->bnd", camera[..., 3], rotation)
        x = torch.where(mirrored, data.size - 1 - x, x)
        colour = data.rgba[i, view, y, x].float() / 255
        return {"colour": colour, "depth": decode_depth(data.depth[i, view, y, x]), "origin": origin, "direction": direction}

    def network_input(self, rows: Tensor, appearance: Tensor) -> Tensor:
        """Return the degraded encoder input (B, 4, 128, 128) of input rows (B,)."""
        data, batch = self.data, len(rows)
        identity, view, mirrored = data.input_id[rows], data.input_view[rows], data.mirrored[rows]
        jitter = torch.randn(batch, 2, 3, generator=self.generator) * torch.tensor([0.012, 0.012, 0.008])
        place = data.similarity[rows] + jitter
        grid = F.affine_grid(place, [batch, 4, 2 * INPUT_SIZE, 2 * INPUT_SIZE], align_corners=False)
        flip = torch.stack([1 - 2 * mirrored.float(), torch.ones(batch)], -1)[:, None, None]
        image = data.rgba[identity, view].float().permute(0, 3, 1, 2) / 255
        image = torch.cat([image[:, :3] * image[:, 3:], image[:, 3:]], 1)
        warped = F.avg_pool2d(F.grid_sample(image, grid * flip, align_corners=False), 2)
        matte, rgb = warped[:, 3:], (warped[:, :3] / warped[:, 3:].clamp_min(1e-3)).clamp(0, 1)
        # world points of the crop's pixels, for the light; beside the head, those at its distance
        at = F.affine_grid(place, [batch, 4, INPUT_SIZE, INPUT_SIZE], align_corners=False)
        z = F.grid_sample(decode_depth(data.depth[identity, view])[:, None], at * flip, mode="nearest", align_corners=False)
        z = torch.where(z > 0, z, ORBIT_RADIUS).permute(0, 2, 3, 1)
        camera = data.cameras[identity, view]
        camera = torch.where(mirrored[:, None, None], mirror_cameras(camera), camera)
        local = torch.cat([at / (2 * focal_pixels(1)) * z, z], -1).flatten(1, 2)
        world = ((local - camera[:, None, :, 3]) @ camera[:, :, :3]).view(batch, INPUT_SIZE, INPUT_SIZE, 3)
        rgb = apply_appearance(rgb.permute(0, 2, 3, 1), world, appearance).permute(0, 3, 1, 2)
        return degrade_input(rgb, matte, self.generator)

    def rays(self, rows: Tensor) -> dict[str, Tensor]:
        """Draw random rays with five depth-guided points each: points (5, B, N, 3), occupancy targets and weights (5, B, N)."""
        n, data, w = self.weights.rays, self.data, self.weights
        batch = len(rows)
        view = self._int(data.rgba.shape[1], batch, n)
        p = self.pixels(rows, view, self._int(data.size, batch, n), self._int(data.size, batch, n))
        d, alpha = p["depth"], p["colour"][..., 3]
        hit, miss = (d > 0) & (alpha > 0.6), alpha < 0.05
        u = torch.rand(5, batch, n, generator=self.generator)
        guided = torch.stack(
            [
                NEAR + (d - 0.02 - NEAR) * u[0],
                d - 0.008 - 0.05 * u[1] ** 2,
                d - 0.012 + 0.045 * u[2],
                d + 0.008 * u[3],
                d + 0.035 + 0.5 * u[4] ** 1.5,
            ]
        )
        t = torch.where(hit, guided, NEAR + (FAR - NEAR) * u)
        zero = torch.zeros(batch, n)
        target = torch.stack([zero, zero, torch.sigmoid((guided[2] - d) / 0.004), zero + 0.9, zero + 1]) * hit
        either = hit.float() + miss
        weight = torch.stack([either, either, either, hit * 0.5, hit * w.behind])
        points = p["origin"] + p["direction"] * t[..., None]
        return {"points": points, "target": target, "weight": weight * inside(points), "colour": p["colour"][..., :3], "hit": hit}

    def patches(self, rows: Tensor) -> dict[str, Tensor]:
        """Draw one patch per person: t (B, n, S), origin and direction, target colour (B, n, 4), surface points."""
        data, w, batch = self.data, self.weights, len(rows)
        near = torch.rand(batch, generator=self.generator) < w.near
        view = torch.where(near, self._int(2, batch), self._int(data.rgba.shape[1], batch))
        stride = 1 + self._int(max(1, min(4, (data.size - 1) // (w.patch - 1))), batch)
        span = data.size - 1 - stride * (w.patch - 1)
        y0 = (span * torch.rand(batch, generator=self.generator)).long()
        x0 = (span * torch.rand(batch, generator=self.generator)).long()
        g = torch.arange(w.patch)
        y = (y0[:, None, None] + stride[:, None, None] * g[None, :, None]).expand(batch, w.patch, w.patch).reshape(batch, -1)
        x = (x0[:, None, None] + stride[:, None, None] * g[None, None]).expand(batch, w.patch, w.patch).reshape(batch, -1)
        p = self.pixels(rows, view[:, None].expand_as(y), y, x)
        d, n, s = p["depth"][..., None], y.shape[1], w.patch_samples
        u = torch.rand(batch, n, s, generator=self.generator)
        spread = NEAR + (FAR - NEAR) * (torch.arange(s) + u) / s
        few = s * 3 // 8
        front = NEAR + (d - 0.06 - NEAR) * (torch.arange(few) + u[..., :few]) / few
        close = d - 0.06 + 0.09 * (torch.arange(s - few) + u[..., few:]) / (s - few)
        p["t"] = torch.where(d > 0, torch.cat([front, close], -1), spread)
        p["surface"] = p["origin"] + p["direction"] * d
        return p


class PriorLoss(nn.Module):
    """The network with its loss, so that one forward call does a whole training step's work (also under DDP)."""

    def __init__(self, network: PriorNetwork, weights: LossWeights, activation: DensityActivation, autocast: bool = True) -> None:
        super().__init__()
        self.network, self.weights, self.activation, self.autocast = network, weights, activation, autocast

    def forward(self, sampler: Sampler, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Draw a batch and return the loss terms, `total` among them. `autocast` alone says what may be in bf16."""
        with torch.autocast(device.type, enabled=False):
            return self._terms(sampler, batch, device)

    def _terms(self, sampler: Sampler, batch: int, device: torch.device) -> dict[str, Tensor]:
        data, generator = sampler.data, sampler.generator
        rows = torch.randint(0, len(data.input_id), (batch,), generator=generator)
        appearance = draw_appearance(batch, generator)
        angles = data.fitted_angles[rows]
        image = sampler.network_input(rows, appearance)
        coefficients = data.coefficients[rows] + 0.15 * torch.randn(data.coefficients[rows].shape, generator=generator)
        planes = self.network(
            image.to(device), camera_of(angles).to(device), angles.to(device), coefficients.to(device), autocast=self.autocast
        )
        rays, patch = sampler.rays(rows), sampler.patches(rows)
        near = rays["points"].permute(1, 0, 2, 3).reshape(batch, -1, 3)
        samples = patch["origin"][:, :, None] + patch["direction"][:, :, None] * patch["t"][..., None]
        points = torch.cat([near, samples.reshape(batch, -1, 3)], 1).to(device)
        raw, rgb = decode_planes(self.network, planes, points, self.autocast)
        count = near.shape[1]
        terms = self._point_terms(raw[:, :count], rgb[:, :count], rays, appearance, device)
        terms |= self._patch_terms(raw[:, count:], rgb[:, count:], samples, patch, appearance, device)
        w = self.weights
        terms["total"] = (
            terms["occupancy"] + terms["colour"] + w.rgb * terms["rgb"] + w.alpha * terms["alpha"] + w.gradient * terms["gradient"]
        )
        return terms

    def _point_terms(
        self, raw: Tensor, rgb: Tensor, rays: dict[str, Tensor], appearance: Tensor, device: torch.device
    ) -> dict[str, Tensor]:
        batch, n = rays["hit"].shape
        logits = raw.view(batch, 5, n).transpose(0, 1)
        bce = F.binary_cross_entropy_with_logits(logits, rays["target"].to(device), reduction="none")
        target = apply_appearance(rays["colour"], rays["points"][3], appearance).to(device)
        weight = (rays["hit"] * inside(rays["points"][3])).float().to(device)
        error = colour_error(rgb.view(batch, 5, n, 3)[:, 3] - target, self.weights.turn).mean(-1)
        return {
            "occupancy": (bce * rays["weight"].to(device)).sum() / (batch * n * 3),
            "colour": (error * weight).sum() / weight.sum().clamp_min(1),
        }

    def _patch_terms(
        self, raw: Tensor, rgb: Tensor, samples: Tensor, patch: dict[str, Tensor], appearance: Tensor, device: torch.device
    ) -> dict[str, Tensor]:
        batch, n, s = patch["t"].shape
        density = self.activation(raw.view(batch, n, s)) * inside(samples).to(device)
        image, alpha, _, _ = composite(density, rgb.view(batch, n, s, 3), patch["t"].to(device))
        cut = (patch["depth"] > 0) & ~inside(patch["surface"])
        usable = (~cut).float().to(device)
        matte = patch["colour"][..., 3:]
        target = apply_appearance(patch["colour"][..., :3], patch["surface"], appearance) * matte + 0.5 * (1 - matte)
        error = (image + 0.5 * (1 - alpha[..., None]) - target.to(device)) * usable[..., None]
        side = self.weights.patch
        square = error.view(batch, side, side, 3)
        gradient = (square[:, 1:] - square[:, :-1]).abs().mean() + (square[:, :, 1:] - square[:, :, :-1]).abs().mean()
        silhouette = ((alpha - matte[..., 0].to(device)).abs() * usable).mean()
        return {"rgb": colour_error(error, self.weights.turn).mean(), "alpha": silhouette, "gradient": gradient}
