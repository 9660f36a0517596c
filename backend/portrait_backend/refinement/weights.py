"""The Hybrid Priors model's weight file: fp16 safetensors with its configuration in the metadata."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from portrait_backend.diffusion.weights import STARTER, fill_weights, read_weights, write_weights
from portrait_backend.models import starter_path
from portrait_backend.refinement.hybrid_priors import HybridPriors, HybridPriorsConfig
from portrait_shared.errors import PortraitDiffusionError

HYBRID_PRIORS_WEIGHTS, KIND = "hybrid_priors.safetensors", "hybrid priors"


def save_hybrid_priors(model: HybridPriors, path: Path, weights: dict[str, Tensor] | None = None, **facts: str) -> None:
    """Write the model (or another state dict for it) as fp16, with `facts` (steps, data) as metadata."""
    write_weights(path, weights or model.state_dict(), KIND, model.config.as_dict(), facts)


def load_hybrid_priors(where: str | Path = STARTER) -> HybridPriors:
    """Return the model in fp32, evaluation mode, without gradients.

    where: "starter" or a file that `save_hybrid_priors` wrote. PortraitDiffusionError ``weights-missing`` or ``weights-unreadable``.
    """
    path = starter_path(HYBRID_PRIORS_WEIGHTS) if where == STARTER else Path(where)
    if not path.is_file():
        raise PortraitDiffusionError(
            "weights-missing", f"there are no weights at {path}", "Train them with portrait-diffusion train hybrid-priors"
        )
    config, tensors = read_weights(path, KIND)
    model = HybridPriors(HybridPriorsConfig.from_dict(config))
    fill_weights(model, tensors, path)
    return model.float().requires_grad_(False).eval()
