"""`portrait-diffusion train codec`: the starter codec on crops of rgb views and normal maps with random looks and textures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from portrait_backend.diffusion.codec import Codec, starter_codec
from portrait_backend.diffusion.weights import save_codec
from portrait_backend.training.head_views import HeadViews, over_grey
from portrait_backend.training.textures import draw_look, paint
from portrait_backend.training.trainer import TrainOptions, train

CROP = 128
"""Side of the training crops in px; the codec is convolutional and encodes any size."""
LATENT_NOISE = 0.08
"""Noise on the latents in training, so that small errors of a denoiser decode into small errors of the image."""


class CodecLoss(nn.Module):
    """L1 on pixels and on their differences, and latents held at zero mean and unit variance per channel."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, images: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the loss terms of images (B, 3, S, S) and latent noise (B, C, s, s)."""
        latents = self.codec.encode(images)
        shown = self.codec.decode(latents + LATENT_NOISE * noise).float()
        error = shown - images
        across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
        z = latents.float()
        mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
        terms = {
            "pixels": error.abs().mean(),
            "edges": across.abs().mean() + down.abs().mean(),
            "scale": mean.pow(2).mean() + var.clamp_min(1e-4).log().pow(2).mean() + 0.01 * z.abs().sub(3).clamp_min(0).mean(),
        }
        terms["total"] = terms["pixels"] + 0.7 * terms["edges"] + 0.02 * terms["scale"]
        return terms


class CodecRecipe:
    """Crops of random views, a third of them normal maps."""

    def __init__(self, options: TrainOptions, decoder_only: bool = False) -> None:
        torch.manual_seed(options.seed)
        self.views = HeadViews(options.data, options.limit)
        self.held_out = HeadViews(options.validation, 16) if options.validation else None
        codec = starter_codec()
        codec.model.to(memory_format=torch.channels_last)
        codec.model.encoder.requires_grad_(not decoder_only)
        self.module, self.network = CodecLoss(codec), codec.model
        self.codec = codec

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw crops (count, 3, CROP, CROP) and latent noise."""
        normals = max(1, count // 3)
        images = [_crop(_view(self.views, k < normals, generator), generator) for k in range(count)]
        maps, rgb = torch.stack(images[:normals]), torch.stack(images[normals:])
        painted = paint(draw_look(len(rgb), generator)(rgb), generator)
        side = CROP // self.codec.factor
        noise = torch.randn(count, self.codec.channels, side, side, generator=generator)
        return {"images": torch.cat([maps, painted]), "noise": noise}

    @torch.no_grad()
    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, float]:
        """Return PSNR of rgb and normals, and the latents' standard deviation; the picture shows images above their reconstructions."""
        views = self.held_out or self.views
        codec, columns = Codec(network), []
        scores: dict[str, list[float]] = {"rgb_psnr": [], "normal_psnr": [], "latent_std": []}
        for k in range(min(8, len(views))):
            rgba = views.rgba(k, k % views.views)
            for name, image in (
                ("rgb_psnr", over_grey(rgba[:3], rgba[3:])),
                ("normal_psnr", views.normals(k, k % views.views, rgba[3:])),
            ):
                latents = codec.encode(image[None])
                shown = codec.decode(latents)[0].clamp(0, 1)
                scores[name].append(float(-10 * (shown - image).pow(2).mean().log10()))
                scores["latent_std"].append(float(latents.std()))
                columns.append(torch.cat([image, shown], 1))
        save_picture(torch.cat(columns, 2), picture)
        return {name: sum(values) / len(values) for name, values in scores.items()}

    def config(self) -> dict[str, Any]:
        """Nothing: the starter's sizes are in the code."""
        return {}


def _view(views: HeadViews, normals: bool, generator: torch.Generator) -> Tensor:
    identity, view = (int(torch.randint(0, n, (1,), generator=generator)) for n in (len(views), views.views))
    rgba = views.rgba(identity, view)
    return views.normals(identity, view, rgba[3:]) if normals else over_grey(rgba[:3], rgba[3:])


def _crop(image: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a crop at random, mirrored at random; mostly around the middle, where the head is."""
    span = image.shape[-1] - CROP
    if span < 0:
        raise ValueError(f"the codec is trained on views of at least {CROP} px, got {image.shape[-1]}")
    y, x = (int(span * (0.5 + 0.5 * float(torch.rand(2, generator=generator).sum() - 1))) for _ in range(2))
    return image[:, y : y + CROP, x : x + CROP]


def save_picture(image: Tensor, path: Path) -> None:
    """Write an image (3, H, W) in [0, 1] as PNG."""
    Image.fromarray((image.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()).save(path)


def train_codec(options: TrainOptions, decoder_only: bool = False) -> Path:
    """Train (or resume) the codec; writes codec.safetensors beside the checkpoint when the schedule is done.

    decoder_only: the latents stay as they are, so that a denoiser trained on them stays right.
    """
    recipe = CodecRecipe(options, decoder_only)
    checkpoint = train(recipe, options)
    export_codec(checkpoint, options.out / "codec.safetensors", data=options.data.name)
    return checkpoint


def export_codec(checkpoint: Path, out: Path, **facts: str) -> None:
    """Write the averaged weights of a checkpoint as the shipped fp16 file."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    save_codec(starter_codec(), out, state["average"], steps=str(state["step"]), **facts)
