"""Tiny models of random weights in the layout of the published ones: a folder of models that full scale runs on in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.models.catalogue import find_model
from portrait_backend.models.store import RECORD
from portrait_backend.refinement.hybrid_priors import HybridPriors

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
"""Stable Diffusion 1.5's UNet; the rest are diffusers' defaults."""
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408}
TINY_UNET = SD15_UNET | {"block_out_channels": (8, 8, 16, 16), "cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 4}
TINY_VAE = SD15_VAE | {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
TINY_TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
"""As the published folder has it; every denoiser here runs it as DDIM."""


def brushnet_names(unet: UNet2DConditionModel) -> dict[str, torch.Size]:
    """{name: shape} of a BrushNet over a UNet with two layers a block, written down from the public repository."""
    own = {
        name: value.shape
        for name, value in unet.state_dict().items()
        if "attentions" not in name and not name.startswith(("conv_in", "conv_out", "conv_norm_out"))
    }
    c = tuple(unet.config["block_out_channels"])
    down = [c[0]] * 4 + [c[1]] * 3 + [c[2]] * 3 + [c[3]] * 2
    up = [c[3]] * 4 + [c[2]] * 4 + [c[1]] * 4 + [c[0]] * 3
    named = {f"brushnet_down_blocks.{k}": n for k, n in enumerate(down)} | {"brushnet_mid_block": c[3]}
    named |= {f"brushnet_up_blocks.{k}": n for k, n in enumerate(up)}
    for name, n in named.items():
        own |= {f"{name}.weight": torch.Size((n, n, 1, 1)), f"{name}.bias": torch.Size((n,))}
    own["conv_in_condition.weight"] = torch.Size((c[0], 9, 3, 3))
    own["conv_in_condition.bias"] = torch.Size((c[0],))
    return own


def brushnet_weights(unet: UNet2DConditionModel, seed: int = 5) -> dict[str, Tensor]:
    """A BrushNet checkpoint of small random weights."""
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in brushnet_names(unet).items()}


def write_pipeline(folder: Path, seed: int, safe: bool = True) -> UNet2DConditionModel:
    """Write unet/, vae/, text_encoder/, tokenizer/ and scheduler/ of random weights; safe False: as pickled .bin files."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet2DConditionModel(**TINY_UNET)
        codec = AutoencoderKL(**TINY_VAE)
        encoder = CLIPTextModel(CLIPTextConfig(**TINY_TEXT))
    model.save_pretrained(folder / "unet", safe_serialization=safe)
    codec.save_pretrained(folder / "vae", safe_serialization=safe)
    encoder.save_pretrained(folder / "text_encoder")
    if not safe:
        torch.save(encoder.state_dict(), folder / "text_encoder/pytorch_model.bin")
        (folder / "text_encoder/model.safetensors").unlink()
    write_scheduler(folder)
    return model


def write_scheduler(home: Path) -> None:
    """Write scheduler/ and tokenizer/; the tokenizer knows single letters only."""
    (home / "scheduler").mkdir()
    (home / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    folder = home / "tokenizer"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}')


def register(models: Path, name: str) -> Path:
    """Make what lies in the model's folder count as installed."""
    home = models / name
    files = [p for p in sorted(home.rglob("*")) if p.is_file()]
    listed = [{"path": p.relative_to(home).as_posix(), "size": p.stat().st_size, "sha256": f"{name}-{p.name}"} for p in files]
    find_model(name)
    (home / RECORD).write_text(json.dumps({"name": name, "files": listed}))
    return home


def write_models(models: Path, names: tuple[str, ...] = ("sd15", "sd15-normal", "brushnet")) -> Path:
    """Install tiny models; the normal-adapted one as pickles, as it is published."""
    unet = UNet2DConditionModel(**TINY_UNET)
    for number, name in enumerate(names):
        if name.startswith("brushnet"):
            (models / name).mkdir(parents=True)
            (models / name / "config.json").write_text("{}")
            save_file(brushnet_weights(unet), models / name / "diffusion_pytorch_model.safetensors")
        else:
            write_pipeline(models / name, number, safe=name != "sd15-normal")
        register(models, name)
    return models


def full_size_branches(**shares: float) -> HybridPriors:
    """The branches for Stable Diffusion 1.5 on the meta device: shapes without contents."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
        return HybridPriors.of_unet(unet, **shares)
