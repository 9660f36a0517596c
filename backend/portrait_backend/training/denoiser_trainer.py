"""`portrait-diffusion train denoiser`: views and normal maps of heads, conditioned on view, domain and the sitter's portrait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from portrait_backend.diffusion import BACKGROUND
from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.condition import DOMAINS
from portrait_backend.diffusion.denoiser import Denoiser, starter_denoiser
from portrait_backend.diffusion.weights import load_codec, load_denoiser, save_denoiser
from portrait_backend.precision import bf16_autocast
from portrait_backend.training.augment import degrade_input
from portrait_backend.training.codec_trainer import save_picture
from portrait_backend.training.head_views import HeadViews, over_grey
from portrait_backend.training.textures import draw_look
from portrait_backend.training.trainer import TrainOptions, train

REFERENCE_SIZE = 128
DROP_ALL, DROP_REFERENCE = 0.1, 0.25
"""Shares of samples without any condition, and without the sitter's portrait."""
LOW_NOISE = 1.7
"""Timesteps are drawn as uniform ** this: two thirds of them in the lower half of the schedule, where stages 2 and 3 use the denoiser."""
SHOWN_VIEWS = (1, 4, 6)
"""Views of the held-out identities in the sample pictures."""
SHOWN_STEPS, SHOWN_GUIDANCE = 16, 2.0


class DenoiserLoss(nn.Module):
    """Mean squared error of the UNet's output against its target (Ho et al.; v-prediction by Salimans & Ho)."""

    def __init__(self, denoiser: Denoiser, codec: Codec) -> None:
        super().__init__()
        self.denoiser = denoiser
        self._codec = [codec]  # not a submodule: it is not trained

    def forward(
        self,
        images: Tensor,
        reference: Tensor,
        azimuth: Tensor,
        elevation: Tensor,
        domains: list[Any],
        noise: Tensor,
        t: Tensor,
        drop: Tensor,
    ) -> dict[str, Tensor]:
        """Return the loss of images (B, 3, S, S); drop (B,): under `DROP_ALL` no condition, under the sum of both shares no reference."""
        denoiser = self.denoiser
        encoder = denoiser.condition
        with torch.no_grad():
            z = self._codec[0].encode(images).float()
        known = encoder.encode(azimuth, elevation, domains, reference)
        unknown = encoder.encode(azimuth, elevation, domains)
        null = encoder.null(len(images)).to(known.dtype)
        d = drop[:, None, None]
        condition = torch.where(d < DROP_ALL, null, torch.where(d < DROP_ALL + DROP_REFERENCE, unknown, known))
        output = denoiser.output(denoiser.add_noise(z, noise, t), t, condition).float()
        error = (output - denoiser.target_of(z, noise, t)).pow(2).mean((1, 2, 3))
        low = (t < denoiser.steps // 2).float()
        return {
            "total": error.mean(),
            "low": (error * low).sum() / low.sum().clamp_min(1),
            "high": (error * (1 - low)).sum() / (1 - low).sum().clamp_min(1),
        }


class DenoiserRecipe:
    """Random views of random sitters, half of them normal maps, mirrored half of the time; looks shared by view and reference."""

    def __init__(self, options: TrainOptions, codec: str | Path, small_share: float = 0.5) -> None:
        torch.manual_seed(options.seed)
        self.small_share = small_share
        self.views = HeadViews(options.data, options.limit)
        self.held_out = HeadViews(options.validation, 16) if options.validation else self.views
        self.codec = load_codec(codec)
        self.codec.model.to(memory_format=torch.channels_last)
        self.denoiser = starter_denoiser() if options.scale == "starter" else load_denoiser(codec)
        if options.scale == "starter":
            self.denoiser.unet.set_attn_processor(AttnProcessor())  # on the CPU faster than the fused kernel in bf16
        else:
            self.denoiser.unet.requires_grad_(True).enable_gradient_checkpointing()
        self.module = DenoiserLoss(self.denoiser, self.codec)
        self.network: nn.Module = self.denoiser if options.scale == "starter" else self.denoiser.unet
        self.references = self.views.near.nonzero()

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw views (count, 3, S, S), their references (count, 4, 128, 128), conditions, noise and timesteps.

        A `small_share` of the batches is at half the data's size and twice as large: cheaper, and what stage 2 looks at.
        """
        rand = lambda *s: torch.rand(*s, generator=generator)  # noqa: E731
        small = float(rand(1)) < self.small_share
        count = 2 * count if small else count
        look, mirror = draw_look(count, generator), rand(count) < 0.5
        images, references, mattes, angles = [], [], [], []
        domains = [DOMAINS[k % 2] for k in range(count)]
        for k, row in enumerate(torch.randint(0, len(self.references), (count,), generator=generator)):
            identity, near = (int(x) for x in self.references[row])
            view = int(torch.randint(0, self.views.views, (1,), generator=generator))
            shown = self.views.rgba(identity, view)
            if domains[k] == "rgb":
                images.append(torch.cat([shown[:3], shown[3:]]))
            else:
                images.append(torch.cat([self.views.normals(identity, view, shown[3:]), torch.ones_like(shown[3:])]))
            portrait = self.views.rgba(identity, near)
            mattes.append(portrait[3:])
            references.append(portrait[:3])
            angles.append(self.views.angles[identity, view])
        stacked, matte = torch.stack(images), torch.stack(mattes)
        is_rgb = torch.tensor([d == "rgb" for d in domains])[:, None, None, None]
        rgb = over_grey(look(stacked[:, :3]), stacked[:, 3:])
        shown = _mirrored(torch.where(is_rgb, rgb, stacked[:, :3]), mirror, ~is_rgb)
        shown = F.avg_pool2d(shown, 2) if small else shown
        sitter = torch.cat([look(torch.stack(references)) * matte, matte], 1)
        sitter = _moved(_mirrored(sitter, mirror, torch.zeros_like(is_rgb)), generator)
        reference = degrade_input((sitter[:, :3] / sitter[:, 3:].clamp_min(1e-3)).clamp(0, 1), sitter[:, 3:], generator)
        angle = torch.stack(angles)
        side = shown.shape[-1] // self.codec.factor
        slots = (torch.arange(count) + rand(count)) / count  # stratified over the batch, in random order
        t = (slots[torch.randperm(count, generator=generator)] ** LOW_NOISE * self.denoiser.steps).long()
        return {
            "images": shown,
            "reference": reference,
            "azimuth": torch.where(mirror, -angle[:, 0], angle[:, 0]),
            "elevation": angle[:, 1],
            "domains": domains,
            "noise": torch.randn(count, self.codec.channels, side, side, generator=generator),
            "t": t,
            "drop": rand(count),
        }

    @torch.no_grad()
    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, float]:
        """Return the held-out loss by noise level; the picture shows, per identity, the portrait, then sample and truth of three views."""
        if not isinstance(network, Denoiser):  # full scale: the UNet alone learns
            network = Denoiser(network, self.denoiser.scheduler, self.denoiser.condition)
        else:
            network.unet.set_attn_processor(AttnProcessor())
        generator = torch.Generator().manual_seed(7)
        rows, errors = [], {0.1: [0.0], 0.35: [0.0], 0.7: [0.0]}
        for identity in range(min(4, len(self.held_out))):
            portrait = self.held_out.rgba(identity, 0)
            reference = torch.cat([over_grey(portrait[:3], portrait[3:]), portrait[3:]])[None]
            tiles = [reference[0, :3]]
            for view in (v for v in SHOWN_VIEWS if v < self.held_out.views):
                for domain in DOMAINS:
                    rgba = self.held_out.rgba(identity, view)
                    normals = domain == "normal"
                    truth = self.held_out.normals(identity, view, rgba[3:]) if normals else over_grey(rgba[:3], rgba[3:])
                    truth = F.avg_pool2d(truth, 2) if self.small_share > 0.5 else truth
                    angle = self.held_out.angles[identity, view]
                    condition = network.condition.encode(angle[:1], angle[1:], domain, reference)
                    z = self.codec.encode(truth[None])
                    noise = torch.randn(z.shape, generator=generator)
                    with bf16_autocast(z.device.type):
                        for share, sums in errors.items():
                            t = network.timestep(share)
                            output = network.output(network.add_noise(z, noise, t), t, condition)
                            sums.append(float((output - network.target_of(z, noise, t)).pow(2).mean()))
                        start = network.steps - 1
                        made = self.codec.decode(network.denoise(noise, start, SHOWN_STEPS, condition, SHOWN_GUIDANCE))[0].float()
                    tiles += [made, truth]
            tiles[0] = F.interpolate(tiles[0][None], size=tiles[1].shape[1:], mode="area")[0]
            rows.append(torch.cat(tiles, 2))
        save_picture(torch.cat(rows, 1), picture)
        return {f"loss_{share}": sum(values) / (len(values) - 1) for share, values in errors.items()}

    def config(self) -> dict[str, Any]:
        """Nothing: the starter's sizes are in the code."""
        return {}


def _mirrored(images: Tensor, mirror: Tensor, normals: Tensor) -> Tensor:
    """Mirror the images marked; where they are normal maps, x changes its sign."""
    flipped = images.flip(-1)
    turned = torch.cat([2 * BACKGROUND - flipped[:, :1], flipped[:, 1:]], 1)
    return torch.where(mirror[:, None, None, None], torch.where(normals, turned, flipped), images)


def _moved(sitter: Tensor, generator: torch.Generator) -> Tensor:
    """Scale, turn and shift premultiplied portraits (B, 4, H, W) a little, as the product's alignment errs, at `REFERENCE_SIZE`."""
    r = torch.randn(len(sitter), 4, generator=generator) * torch.tensor([0.03, 0.03, 0.02, 0.02])
    scale = torch.exp(r[:, 0])
    rows = [torch.stack([scale, -r[:, 1], r[:, 2]], 1), torch.stack([r[:, 1], scale, r[:, 3]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(sitter), 4, REFERENCE_SIZE, REFERENCE_SIZE], align_corners=False)
    return F.grid_sample(F.interpolate(sitter, size=(REFERENCE_SIZE,) * 2, mode="area"), grid, align_corners=False)


def train_denoiser(options: TrainOptions, codec: str | Path = "starter", small_share: float = 0.5) -> Path:
    """Train (or resume) the denoiser on latents of `codec`; writes denoiser.safetensors beside the checkpoint.

    At full scale `codec` is a diffusers folder whose UNet goes on learning under its prompts; what comes out is another unet/ for it.
    """
    recipe = DenoiserRecipe(options, codec, small_share)
    checkpoint = train(recipe, options)
    if options.scale == "full":
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        recipe.denoiser.unet.load_state_dict(state["average"])
        recipe.denoiser.unet.save_pretrained(options.out / "unet")
        return checkpoint
    export_denoiser(checkpoint, options.out / "denoiser.safetensors", data=options.data.name)
    return checkpoint


def export_denoiser(checkpoint: Path, out: Path, **facts: str) -> None:
    """Write the averaged weights of a checkpoint as the shipped fp16 file."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    save_denoiser(starter_denoiser(), out, state["average"], steps=str(state["step"]), **facts)
