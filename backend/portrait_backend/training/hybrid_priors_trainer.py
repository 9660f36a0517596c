"""`portrait-diffusion train hybrid-priors`: both branches of stage 3 on pairs of neighbouring views, the denoiser frozen.

The branches shall transport and continue what they are shown, not remember painted skins: every pair is painted anew
(`hybrid_priors_data`), alike in both views.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.denoiser import Denoiser
from portrait_backend.diffusion.sources import Sources
from portrait_backend.diffusion.weights import load_codec, load_denoiser
from portrait_backend.geometry.reprojection import find_warp
from portrait_backend.geometry.surface_views import SurfaceView
from portrait_backend.precision import bf16_autocast
from portrait_backend.refinement.brushnet import read_brushnet, start_from_brushnet
from portrait_backend.refinement.hybrid_priors import Conditions, HybridPriors, HybridPriorsConfig, tap_warps
from portrait_backend.refinement.injection import injected
from portrait_backend.refinement.noise_resampling import anchor_noise
from portrait_backend.refinement.view_images import normal_image
from portrait_backend.refinement.weights import fingerprint, save_hybrid_priors
from portrait_backend.training.augment import degrade_input
from portrait_backend.training.codec_trainer import save_picture
from portrait_backend.training.denoiser_trainer import REFERENCE_SIZE
from portrait_backend.training.head_views import over_grey
from portrait_backend.training.hybrid_priors_data import LARGEST_STEP, Paint, SeenView, ViewPairs, degraded, draw_paint
from portrait_backend.training.textures import Look, draw_look
from portrait_backend.training.trainer import TrainOptions, train

IMPLICIT_WIDTH = 0.5
"""Share of the denoiser's channels in the starter's Implicit branch: both branches, their fusion and the zero convolutions are 5.2 M."""
LARGEST_SIGMA = 0.8
"""Noise is resampled around the anchor by up to this much."""
DROP_IMPLICIT, DROP_GEOMETRY, DROP_REFERENCE = 0.15, 0.15, 0.25
"""Shares of batches without the Implicit branch, without the geometry condition, without the sitter's portrait: every switch is trained."""
COARSE_SHARE = 0.6
"""Share of pairs that take depth, normals and coarse image from the prior provider's set, where there is one."""
SHOWN_STEPS, SHOWN_STRENGTH = 8, 0.7


@dataclass(frozen=True)
class HybridPriorsOptions:
    """What this training is told besides the loop's options: networks (as in `load_codec`), coarse views, largest angle in degrees.

    small_share: share of the batches at half the views' size, a quarter of the work. brushnet: a BrushNet's folder to start from;
    checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    codec: str | Path = "starter"
    denoiser: str | Path = "starter"
    coarse: Path | None = None
    largest_step: float = LARGEST_STEP
    small_share: float = 0.7
    implicit_width: float = IMPLICIT_WIDTH
    brushnet: Path | None = None
    checkpointing: bool = False

    @classmethod
    def full(cls, sources: Sources, coarse: Path | None = None, largest_step: float = LARGEST_STEP) -> HybridPriorsOptions:
        """Return the options of full scale: a downloaded denoiser, whole branches that start from BrushNet's, the views' own size."""
        return cls(sources.codec, sources.denoiser, coarse, largest_step, 0.0, 1.0, sources.brushnet, checkpointing=True)


@dataclass(frozen=True)
class Pair:
    """A batch of pairs as images: driver, target and coarse (B, 3, S, S) over grey, their surfaces.

    angles (B, 2): the target's azimuth and elevation in degrees; reference (B, 4, R, R): the sitter's portrait.
    """

    driver: Tensor
    target: Tensor
    coarse: Tensor
    driver_surface: SurfaceView
    target_surface: SurfaceView
    angles: Tensor
    reference: Tensor

    def to(self, device: torch.device) -> Pair:
        """Return the batch on `device`."""
        return Pair(*(getattr(self, field.name).to(device) for field in fields(self)))


class HybridPriorsLoss(nn.Module):
    """Mean squared error of the frozen UNet's output under the branches' residuals."""

    def __init__(self, priors: HybridPriors, denoiser: Denoiser, codec: Codec) -> None:
        super().__init__()
        self.priors = priors
        self._frozen = (denoiser, codec)  # not submodules: they are not trained

    def forward(self, pair: Pair, noise: Tensor, sigma: Tensor, t: Tensor, drop: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the loss; noise (B, C, h, w) is the driver's, sigma (B, 1, 1, 1) how far it is resampled, drop (3,) uniform draws."""
        denoiser, codec = self._frozen
        pair, generator = pair.to(noise.device), torch.Generator(noise.device).manual_seed(seed)
        with torch.no_grad():
            z = codec.encode(pair.target).float()
            told, anchor = conditions_of(self.priors, codec, pair, noise, generator)
            fresh = torch.randn(anchor.shape, generator=generator, device=anchor.device)
            noise = (1 - sigma**2).sqrt() * anchor + sigma * fresh
            reference = None if float(drop[2]) < DROP_REFERENCE else pair.reference
            tokens = denoiser.condition.encode(pair.angles[:, 0], pair.angles[:, 1], "rgb", reference)
        told = told.without(geometry=bool(drop[1] < DROP_GEOMETRY), implicit=bool(drop[0] < DROP_IMPLICIT))
        z_t = denoiser.add_noise(z, noise, t)
        residuals = self.priors(z_t, t, denoiser.alpha_bar(t), told)
        with injected(denoiser.unet, residuals):
            output = denoiser.output(z_t, t, tokens).float()
        error = (output - denoiser.target_of(z, noise, t)).pow(2).mean(1, keepdim=True)
        known = told.mask
        return {
            "total": error.mean(),
            "known": (error * known).sum() / known.sum().clamp_min(1),
            "void": (error * (1 - known)).sum() / (1 - known).sum().clamp_min(1),
        }


@torch.no_grad()
def conditions_of(priors: HybridPriors, codec: Codec, pair: Pair, noise: Tensor, generator: torch.Generator) -> tuple[Conditions, Tensor]:
    """Return what the target's denoiser is told of a batch of pairs, and the anchor noise carried from the driver's."""
    width = noise.shape[-1]
    warp = find_warp(pair.driver_surface, pair.target_surface)
    told = Conditions(
        projected=codec.encode(warp.apply(pair.driver)).float(),
        mask=F.interpolate(warp.mask, size=(width, width), mode="nearest"),
        render=codec.encode(pair.coarse).float(),
        normal=codec.encode(normal_image(pair.target_surface)).float(),
        driver=codec.encode(pair.driver).float(),
        driver_noise=noise,
        warps=tap_warps(priors.config, pair.driver_surface, pair.target_surface, width),
    )
    return told, anchor_noise(noise, pair.driver_surface, pair.target_surface, generator)


def save_activations(unet: UNet2DConditionModel, priors: HybridPriors) -> None:
    """Keep activations at the borders of layers only, in the branches and in the frozen UNet that gradients pass through."""
    unet.enable_gradient_checkpointing()
    for branch in (priors.explicit, priors.implicit):
        if branch is not None:
            branch.checkpointing = True


class HybridPriorsRecipe:
    """Random pairs of neighbouring views, painted alike, depth from the truth or from the prior provider's heads."""

    def __init__(self, options: TrainOptions, more: HybridPriorsOptions) -> None:
        torch.manual_seed(options.seed)
        self.small_share = more.small_share
        self.views = ViewPairs(options.data, options.limit, more.largest_step, more.coarse)
        self.held_out = ViewPairs(options.validation, 16, 60.0) if options.validation else self.views
        self.codec, self.denoiser = load_codec(more.codec), load_denoiser(more.denoiser)
        self.codec.model.to(memory_format=torch.channels_last)
        if options.scale == "starter":
            self.denoiser.unet.set_attn_processor(AttnProcessor())  # on the CPU faster than the fused kernel in bf16
        self.priors = HybridPriors.of_unet(self.denoiser.unet, implicit=more.implicit_width)
        if more.brushnet is not None:
            print(f"from {more.brushnet}: {start_from_brushnet(self.priors, read_brushnet(more.brushnet))}")
        if more.checkpointing:
            save_activations(self.denoiser.unet, self.priors)
        self.module, self.network = HybridPriorsLoss(self.priors, self.denoiser, self.codec), self.priors

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw a batch of pairs, the driver's noise, timesteps stratified over the batch."""
        rand = lambda *s: torch.rand(*s, generator=generator)  # noqa: E731
        rows = self.views.pairs[torch.randint(0, len(self.views.pairs), (count,), generator=generator)].tolist()
        pair = self._pair(self.views, rows, generator, small=float(rand(1)) < self.small_share)
        side = pair.target.shape[-1] // self.codec.factor
        slots = (torch.arange(count) + rand(count)) / count
        return {
            "pair": pair,
            "noise": torch.randn(count, self.codec.channels, side, side, generator=generator),
            "sigma": LARGEST_SIGMA * rand(count, 1, 1, 1),
            "t": (slots[torch.randperm(count, generator=generator)] * self.denoiser.steps).long(),
            "drop": rand(3),
            "seed": int(torch.randint(0, 2**62, (1,), generator=generator)),
        }

    def _pair(self, views: ViewPairs, rows: list[list[int]], generator: torch.Generator, paint: bool = True, small: bool = False) -> Pair:
        """Read pairs (identity, driver, target), `small` at half their size; with `paint` they get random looks and textures."""
        drivers = [views.seen(identity, driver) for identity, driver, _ in rows]
        targets = [views.seen(identity, target) for identity, _, target in rows]
        references = [views.seen(identity, self._near(views, identity, driver, generator)) for identity, driver, _ in rows]
        used = [list(group) for group in (drivers, targets)]  # whose depth, normals and (target) coarse image count
        for k, row in enumerate(rows):
            coarse = [views.coarse_seen(row[0], view) for view in row[1:]]
            if coarse[0] is not None and coarse[1] is not None and float(torch.rand(1, generator=generator)) < COARSE_SHARE:
                used[0][k], used[1][k] = coarse[0], coarse[1]
        look = draw_look(len(rows), generator, 1.0 if paint else 0.0)
        groups = [_stacked(group, small) for group in (drivers, targets, references, *used)]
        brush = draw_paint(groups[1][0][:, :3], generator, 0.6 if paint else 0.0)
        images = [_painted(*groups[k], look, brush) for k in (0, 1, 2, 4)]
        return Pair(
            driver=images[0],
            target=images[1],
            coarse=degraded(images[3], generator),
            driver_surface=groups[3][1],
            target_surface=groups[4][1],
            angles=torch.stack([views.angles[identity, target] for identity, _, target in rows]),
            reference=_reference(images[2], groups[2][0][:, 3:], generator),
        )

    @staticmethod
    def _near(views: ViewPairs, identity: int, otherwise: int, generator: torch.Generator) -> int:
        """A view of the identity that can be its portrait."""
        near = views.near[identity].nonzero()[:, 0].tolist() or [otherwise]
        return int(near[int(torch.randint(0, len(near), (1,), generator=generator))])

    @torch.no_grad()
    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, float]:
        """Return the held-out loss and the PSNR of denoised views; the picture shows driver, projection, coarse, result, truth."""
        assert isinstance(network, HybridPriors)
        generator = torch.Generator().manual_seed(7)
        rows = self.held_out.pairs[:: max(1, len(self.held_out.pairs) // 6)][:6].tolist()
        losses, scores, plain, sheet = [], [], [], []
        loss = HybridPriorsLoss(network, self.denoiser, self.codec)
        for row in rows:
            pair = self._pair(self.held_out, [row], generator, paint=False)
            side = pair.target.shape[-1] // self.codec.factor
            noise = torch.randn(1, self.codec.channels, side, side, generator=generator)
            with bf16_autocast(noise.device.type):
                for t in (100, 350, 700):
                    out = loss(pair, noise, torch.zeros(1, 1, 1, 1), torch.tensor([t]), torch.ones(3), 1)
                    losses.append(float(out["total"]))
                told, anchor = conditions_of(network, self.codec, pair, noise, generator)
                made = [self._denoised(network, pair, told, anchor, w) for w in (1.0, 0.0)]
            scores.append(_psnr(made[0], pair.target))
            plain.append(_psnr(made[1], pair.target))
            warp = find_warp(pair.driver_surface, pair.target_surface)
            tiles = [pair.driver, warp.apply(pair.driver), pair.coarse, made[1], made[0], pair.target]
            sheet.append(torch.cat([F.avg_pool2d(tile[0].float().clamp(0, 1), 2) for tile in tiles], 2))
        save_picture(torch.cat(sheet, 1), picture)
        mean = lambda x: sum(x) / len(x)  # noqa: E731
        return {"loss": mean(losses), "psnr": mean(scores), "psnr_without": mean(plain)}

    def _denoised(self, network: HybridPriors, pair: Pair, told: Conditions, noise: Tensor, w_ex: float) -> Tensor:
        """Denoise the target from its coarse image; w_ex 0 is the denoiser without the branches."""
        denoiser = self.denoiser
        start = denoiser.timestep(SHOWN_STRENGTH)
        z_t = denoiser.add_noise(self.codec.encode(pair.coarse).float(), noise, start)
        tokens = denoiser.condition.encode(pair.angles[:, 0], pair.angles[:, 1], "rgb", pair.reference)
        times = [round(start * (1 - k / SHOWN_STEPS)) for k in range(SHOWN_STEPS)]
        for t, earlier in zip(times, [*times[1:], None], strict=True):
            at = torch.full((len(z_t),), t)
            residuals = network(z_t, at, denoiser.alpha_bar(at), told, w_ex)
            with injected(denoiser.unet, residuals):
                eps = denoiser.predict_noise(z_t, t, tokens)
            z_t = denoiser.ddim_step(z_t, t, earlier, eps)
        return self.codec.decode(z_t)

    def config(self) -> dict[str, Any]:
        """Return the layouts."""
        return self.priors.config.as_dict()


def _stacked(seen: list[SeenView], small: bool) -> tuple[Tensor, SurfaceView]:
    """Return straight rgba (B, 4, S, S) and the surfaces of views as one batch, at half their size if `small`."""
    rgba, depth, normals = (torch.stack(maps) for maps in zip(*((s.rgba, s.depth, s.normals) for s in seen), strict=True))
    surface = SurfaceView.from_cameras(depth, rgba[:, 3], [s.camera for s in seen], normals)
    if not small:
        return rgba, surface
    half = F.avg_pool2d(torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1), 2)
    return torch.cat([half[:, :3] / half[:, 3:].clamp_min(1e-3), half[:, 3:]], 1), surface.shrunk(surface.width // 2)


def _painted(rgba: Tensor, surface: SurfaceView, look: Look, brush: Paint) -> Tensor:
    """Return images over grey (B, 3, S, S) of straight rgba with the look and the paint."""
    return over_grey(brush(look(rgba[:, :3]), surface.points().view(surface.normals.shape)), rgba[:, 3:])


def _reference(images: Tensor, matte: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sitter's portraits as the denoiser sees them: degraded, over grey, with matte (B, 4, R, R)."""
    stacked = torch.cat([images, matte], 1)
    small = F.interpolate(stacked, size=(REFERENCE_SIZE, REFERENCE_SIZE), mode="area")
    matte = small[:, 3:]
    straight = ((small[:, :3] - 0.5 * (1 - matte)) / matte.clamp_min(1e-3)).clamp(0, 1)
    return degrade_input(straight, matte, generator)


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a.float().clamp(0, 1) - b).pow(2).mean().clamp_min(1e-10).log10())


def train_hybrid_priors(options: TrainOptions, more: HybridPriorsOptions | None = None) -> Path:
    """Train (or resume) the branches; writes hybrid_priors.safetensors beside the checkpoint when the schedule is done."""
    recipe = HybridPriorsRecipe(options, more or HybridPriorsOptions())
    checkpoint = train(recipe, options)
    partners = {"denoiser": fingerprint(recipe.denoiser), "codec": fingerprint(recipe.codec)}
    export_hybrid_priors(checkpoint, options.out / "hybrid_priors.safetensors", data=options.data.name, **partners)
    return checkpoint


def export_hybrid_priors(checkpoint: Path, out: Path, **facts: str) -> None:
    """Write the averaged weights of a checkpoint as the shipped fp16 file."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = HybridPriors(HybridPriorsConfig.from_dict(state["config"]))
    save_hybrid_priors(model, out, state["average"], steps=str(state["step"]), **facts)
