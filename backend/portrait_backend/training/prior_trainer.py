"""`portrait-diffusion train prior`: train the starter prior, or a larger one of its kind, on a rendered data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from portrait_backend.prior.network import PriorConfig, PriorNetwork
from portrait_backend.prior.starter import TRAINED
from portrait_backend.prior.weights import save_prior
from portrait_backend.training.head_dataset import load_heads
from portrait_backend.training.prior_evaluation import evaluate_prior
from portrait_backend.training.prior_loss import LossWeights, PriorLoss, Sampler
from portrait_backend.training.proxy_surface import fit_proxy
from portrait_backend.training.trainer import Scale, TrainOptions, train

CONFIGS: dict[Scale, PriorConfig] = {
    "starter": PriorConfig(),
    "full": PriorConfig(planes=128, widths=(128, 256, 512), blocks=12, heads=8),
}
WEIGHT_DECAY = 0.02


class PriorRecipe:
    """Random inputs of all identities; the sampler draws inside the loss, which knows what it needs.

    start: weights to go on from; keep_decoder: the decoder stays as it is, so that networks that read its planes (phi, psi_SR) still fit.
    """

    def __init__(self, options: TrainOptions, start: Path | None = None, keep_decoder: bool = False) -> None:
        torch.manual_seed(options.seed)
        options.out.mkdir(parents=True, exist_ok=True)  # the cache goes there
        self.data = load_heads(options.data, options.limit, options.seed, cache=options.out / "heads.pt", mirror=True)
        self.held_out = load_heads(options.validation, None, options.seed + 1, input_views=(0,)) if options.validation else None
        self.network = PriorNetwork(CONFIGS[options.scale])
        if start is not None:
            print(f"from {start}, newly initialised: {', '.join(start_from(self.network, start)) or 'nothing'}")
        if not (options.out / "checkpoint.pt").exists():
            print(f"proxy surface error {fit_proxy(self.data, self.network.proxy):.4f} units")
        self.network.decoder.requires_grad_(not keep_decoder)
        self.network.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.module = PriorLoss(self.network, LossWeights(), TRAINED)

    def groups(self) -> list[dict[str, Any]]:
        """What lies on the planes themselves learns four times as fast and without weight decay."""
        rest = [p for name, p in self.network.named_parameters() if p.requires_grad and name not in ("mean_planes", "palette.spread")]
        planes = [self.network.mean_planes, self.network.palette.spread]
        return [{"params": rest, "weight_decay": WEIGHT_DECAY}, {"params": planes, "scale": 4.0, "weight_decay": 0.0}]

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Hand the loss what it draws `count` inputs with."""
        device = self.network.mean_planes.device
        return {"sampler": Sampler(self.data, generator, LossWeights()), "batch": count, "device": device}

    def evaluate(self, network: nn.Module, picture: Path) -> dict[str, Any]:
        """Return per view group PSNR, foreground PSNR and IoU of the held-out heads; nothing without such."""
        assert isinstance(network, PriorNetwork)
        return {} if self.held_out is None else evaluate_prior(network, self.held_out, picture=picture)

    def config(self) -> dict[str, Any]:
        """The network's sizes."""
        return asdict(self.network.config)


def start_from(network: PriorNetwork, path: Path) -> list[str]:
    """Copy the weights of a prior's file whose names and shapes fit; returns the names of those that stay as they are."""
    weights, own = load_file(path), network.state_dict()
    fitting = {name: value.float() for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(own | fitting)
    return sorted(own.keys() - fitting.keys())


def train_prior(options: TrainOptions, start: Path | None = None, keep_decoder: bool = False) -> Path:
    """Train (or resume) the prior (`PriorRecipe`); returns the checkpoint's path."""
    return train(PriorRecipe(options, start, keep_decoder), options)


def export_prior(checkpoint: Path, out: Path, **facts: str) -> None:
    """Write the averaged weights of a checkpoint as the shipped fp16 file."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = PriorConfig(**state["config"] | {"widths": tuple(state["config"]["widths"])})
    save_prior(state["average"], config, out, steps=str(state["step"]), **facts)
