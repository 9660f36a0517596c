"""Start stage 3's branches from a BrushNet checkpoint (Ju et al. 2024): which of its tensors goes where.

BrushNet for Stable Diffusion 1.5 is the Explicit branch's shape: conv_in_condition reads [z_t, masked latents, mask], blocks without
attention have the UNet's own names, and a zero 1x1 convolution per tap is named by its part of the way (brushnet_down_blocks.0-11,
brushnet_mid_block, brushnet_up_blocks.0-14). The Implicit branch is started from the same blocks, its conv_in without the mask column;
its fusion stays at zero. Names and shapes were looked up in the public repository; no checkpoint was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from portrait_backend.refinement.hybrid_priors import HybridPriors
from portrait_shared.errors import PortraitDiffusionError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONV_IN, DOWN, MID, UP = "conv_in_condition", "brushnet_down_blocks", "brushnet_mid_block", "brushnet_up_blocks"


@dataclass(frozen=True)
class WarmStart:
    """What became of the tensors. copied: ours that were filled; new: ours that nothing was found for; left: the checkpoint's unused ones.

    Names are sorted.
    """

    copied: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.copied)} tensors copied, {len(self.new)} new, {len(self.left)} of the checkpoint left"


def source_names(model: HybridPriors) -> dict[str, str]:
    """Return {our tensor: BrushNet's} for every tensor that BrushNet has a counterpart of, by name alone."""
    down = _taps_down(model)
    found = {}
    for name in model.state_dict():
        part, _, rest = name.partition(".")
        if part in ("explicit", "implicit"):
            found[name] = rest.replace("conv_in.", f"{CONV_IN}.") if rest.startswith("conv_in.") else rest
        elif part == "zero":
            number, _, kind = rest.partition(".")
            tap = int(number)
            place = f"{DOWN}.{tap}" if tap < down else MID if tap == down else f"{UP}.{tap - down - 1}"
            found[name] = f"{place}.{kind}"
    return found


@torch.no_grad()
def start_from_brushnet(model: HybridPriors, weights: Mapping[str, Tensor]) -> WarmStart:
    """Copy a BrushNet state dict into the branches and zero convolutions, in place, wherever name and shape fit."""
    own, copied, used = model.state_dict(), [], set()
    for name, source in source_names(model).items():
        value = weights.get(source)
        if value is None:
            continue
        if name == "implicit.conv_in.weight" and value.shape[1] == own[name].shape[1] + 1:
            value = value[:, :-1]  # the mask's column: the Implicit branch has none
        if value.shape == own[name].shape:
            own[name].copy_(value)
            copied.append(name)
            used.add(source)
    new, left = own.keys() - set(copied), weights.keys() - used
    return WarmStart(tuple(sorted(copied)), tuple(sorted(new)), tuple(sorted(left)))


def read_brushnet(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a BrushNet folder; PortraitDiffusionError ``weights-missing`` or ``weights-unreadable``."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise PortraitDiffusionError("weights-missing", f"{folder} has no {WEIGHTS}", "Run portrait-diffusion models download brushnet")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PortraitDiffusionError(
            "weights-unreadable", f"{path} is not a safetensors file ({error})", "Run portrait-diffusion models verify brushnet"
        ) from error
    if f"{CONV_IN}.weight" not in weights:
        raise PortraitDiffusionError("weights-unreadable", f"{path} is no BrushNet: it has no {CONV_IN}", "Name the folder of a BrushNet")
    return weights


def _taps_down(model: HybridPriors) -> int:
    """Taps of the way down: conv_in, every layer, every downsampler."""
    layers = model.config.explicit.layers
    return sum(layers) + len(layers)
