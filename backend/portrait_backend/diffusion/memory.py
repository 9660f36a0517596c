"""How large networks fit into a device: which of them lie on it when, in which precision, and which mode suits how much memory.

resident: everything stays on the device. sequential: one network at a time, both halves of classifier-free guidance one after the
other. streamed: layers come from the computer's memory as they are needed, and the codec works in tiles. The codec itself always stays:
it is small, and stage 2 may differentiate through it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from portrait_backend.precision import computes_bf16
from portrait_shared.settings import DiffusionSettings

Mode = Literal["resident", "sequential", "streamed"]
Precision = Literal["fp32", "bf16", "fp16"]
MODES: tuple[Mode, ...] = ("resident", "sequential", "streamed")
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARAMETERS = {"denoiser": 859.5, "text": 123.1, "codec": 83.7, "explicit": 592.3, "implicit": 592.3, "small": 61.4}
LARGEST_LAYER = 37.9
"""Millions of parameters at full scale. small: zero convolutions, fusion, geometry condition."""
ACTIVATIONS = 825
"""Millions of numbers alive at once in the most demanding call, which stage 2's encoding of 512 px with gradients is in every mode.

tests/diffusion/test_memory.py builds all of these on the meta device and counts again.
"""
HEAD_GB = 1.5
"""An assumption: stage 2's budget of samples (1 GB), planes, lattices and optimisers of the head."""


@dataclass(frozen=True)
class MemoryPlan:
    """A mode and a precision on a device; `auto` is resolved."""

    mode: Mode
    precision: Precision
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights."""
        return DTYPES[self.precision]


def free_memory_gb(device: torch.device) -> float | None:
    """Return a GPU's free memory in 10^9 bytes; None on the CPU. The one place that asks."""
    return torch.cuda.mem_get_info(device)[0] / 1e9 if device.type == "cuda" else None


def plan(settings: DiffusionSettings, device: torch.device) -> MemoryPlan:
    """Return the plan that the settings mean on a device, `auto` by what is free on it now.

    The shipped networks are small: `auto` keeps them as they are. On the CPU nothing is gained by moving or halving.
    """
    precision, mode = settings.precision, settings.memory
    plain = settings.weights == "starter" or device.type == "cpu"
    if precision == "auto":
        precision = "fp32" if plain else "bf16" if computes_bf16("cuda") else "fp16"
    if mode == "auto":
        free = None if plain else free_memory_gb(device)
        mode = "resident" if free is None else recommended(free, precision)
    return MemoryPlan(mode, precision, device)


def resolved(settings: DiffusionSettings, device: torch.device) -> DiffusionSettings:
    """Return the settings with what `auto` means now in its place: a job keeps to it, and notes it."""
    found = plan(settings, device)
    return replace(settings, memory=found.mode, precision=found.precision)


def recommended(free_gb: float, precision: Precision = "bf16") -> Mode:
    """Return the first mode whose need (`needed_gb`) is met by free memory in 10^9 bytes; the last where none is."""
    return next((mode for mode in MODES if needed_gb(mode, precision) <= free_gb), MODES[-1])


def needed_gb(mode: Mode, precision: Precision) -> float:
    """Return about how much free memory stage 2 or 3, whichever needs more, takes at full scale: weights, activations, the head."""
    p, size = PARAMETERS, 4 if precision == "fp32" else 2
    stays = p["codec"] + p["small"]
    both = 2 * (p["denoiser"] + p["text"]), p["denoiser"] + p["text"] + p["explicit"] + p["implicit"]
    moving = {"resident": max(both), "sequential": p["denoiser"], "streamed": LARGEST_LAYER}[mode]
    return round(((stays + moving) * size + ACTIVATIONS * size) / 1e3 + HEAD_GB, 1)
