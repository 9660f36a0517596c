"""The starter prior's weight file: fp16 safetensors with the configuration in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.prior.network import PriorConfig, PriorNetwork

WEIGHTS = "prior.safetensors"


def save_prior(weights: dict[str, Tensor], config: PriorConfig, path: Path, **facts: str) -> None:
    """Write a state dict as fp16 with its configuration and `facts` (steps, data) as metadata."""
    half = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file(half, path, metadata={"config": json.dumps(asdict(config))} | facts)


def load_prior(path: Path) -> PriorNetwork:
    """Read a network written by `save_prior`; float32, no gradients, evaluation mode."""
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118
    network = PriorNetwork(PriorConfig(**values | {"widths": tuple(values["widths"])}))
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()
