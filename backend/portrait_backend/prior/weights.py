"""The starter prior's weight files: fp16 safetensors with the configuration in their metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.prior.network import PriorConfig, PriorNetwork
from portrait_backend.radiance.super_resolution import SuperResolution, SuperResolutionConfig

WEIGHTS, SUPER_RESOLUTION = "prior.safetensors", "super_resolution.safetensors"


def save_prior(weights: dict[str, Tensor], config: PriorConfig, path: Path, **facts: str) -> None:
    """Write a state dict as fp16 with its configuration and `facts` (steps, data) as metadata."""
    half = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file(half, path, metadata={"config": json.dumps(asdict(config))} | facts)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the weights as float32."""
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()["config"])
        return values, {name: file.get_tensor(name).to(torch.float32) for name in file.keys()}  # noqa: SIM118


def load_prior(path: Path) -> PriorNetwork:
    """Read a network written by `save_prior`; float32, no gradients, evaluation mode."""
    values, weights = _read(path)
    network = PriorNetwork(PriorConfig(**values | {"widths": tuple(values["widths"])}))
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()


def save_super_resolution(network: SuperResolution, path: Path, **facts: str) -> None:
    """Write psi_SR as fp16 with its configuration and `facts` as metadata."""
    half = {name: value.detach().half().contiguous() for name, value in network.state_dict().items()}
    save_file(half, path, metadata={"config": json.dumps(network.config_dict())} | facts)


def load_super_resolution(path: Path) -> SuperResolution:
    """Read a network written by `save_super_resolution`; float32, no gradients, evaluation mode."""
    values, weights = _read(path)
    network = SuperResolution(SuperResolutionConfig(**values))
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()
