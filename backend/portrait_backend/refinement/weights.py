"""The Hybrid Priors model's weight file: fp16 safetensors; the metadata has its configuration and which denoiser and codec it is for."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from portrait_backend.diffusion.weights import STARTER, fill_weights, read_weights, write_weights
from portrait_backend.models import weights_path
from portrait_backend.refinement.hybrid_priors import HybridPriors, HybridPriorsConfig
from portrait_shared.errors import PortraitDiffusionError

HYBRID_PRIORS_WEIGHTS, KIND = "hybrid_priors.safetensors", "hybrid priors"
log = logging.getLogger(__name__)


def fingerprint(network: nn.Module) -> str:
    """Return a sha256 of a network's weights at half precision, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_hybrid_priors(model: HybridPriors, path: Path, weights: dict[str, Tensor] | None = None, **facts: str) -> None:
    """Write the model (or another state dict for it) as fp16, with `facts` (steps, data) as metadata."""
    write_weights(path, weights or model.state_dict(), KIND, model.config.as_dict(), facts)


def load_hybrid_priors(where: str | Path = STARTER) -> HybridPriors:
    """Return the model in fp32, evaluation mode, without gradients.

    where: "starter" or a file that `save_hybrid_priors` wrote. PortraitDiffusionError ``weights-missing`` or ``weights-unreadable``.
    """
    path = weights_path(where, HYBRID_PRIORS_WEIGHTS)
    if not path.is_file():
        raise PortraitDiffusionError(
            "weights-missing", f"there are no weights at {path}", "Train them with portrait-diffusion train hybrid-priors"
        )
    config, tensors = read_weights(path, KIND)
    model = HybridPriors(HybridPriorsConfig.from_dict(config))
    fill_weights(model, tensors, path)
    return model.float().requires_grad_(False).eval()


def check_partners(where: str | Path, **networks: nn.Module) -> None:
    """Raise PortraitDiffusionError ``weights-mismatched`` if the file was trained over other networks than these (denoiser=, codec=).

    A file that doesn't say is taken with a warning.
    """
    path = weights_path(where, HYBRID_PRIORS_WEIGHTS)
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
    for name, network in networks.items():
        if name not in facts:
            log.warning("%s doesn't say which %s its branches were trained over", path, name)
        elif facts[name] != fingerprint(network):
            raise PortraitDiffusionError(
                "weights-mismatched",
                f"the branches in {path} were trained over another {name} than the one that is loaded",
                "Use the files that were trained together, or train the branches anew with portrait-diffusion train hybrid-priors",
            )
