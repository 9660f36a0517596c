"""Bring networks to where a memory plan wants them: on the device, or under hooks that fetch them when they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.condition import PromptCondition
from portrait_backend.diffusion.denoiser import Denoiser
from portrait_backend.diffusion.memory import MemoryPlan

TILE = 256
"""Side in px of the tiles in which a streamed codec works."""


def place(
    plan: MemoryPlan, codec: Codec, denoisers: Sequence[Denoiser], branches: Sequence[nn.Module] = (), rest: Sequence[nn.Module] = ()
) -> None:
    """Bring frozen networks into the plan's precision, in place, to the device or under the hooks that fetch them when they are called.

    branches: networks that may wait elsewhere; rest: small parts that stay on the device.
    """
    heavy: list[nn.Module] = list(branches)
    for denoiser in dict.fromkeys(denoisers):
        denoiser.alphas_cumprod = denoiser.alphas_cumprod.to(plan.device)
        denoiser.split_guidance = plan.mode != "resident"
        heavy.append(denoiser.unet)
        if isinstance(denoiser.condition, PromptCondition):
            heavy.append(denoiser.condition.text_encoder)
        else:
            denoiser.condition.to(plan.device)
    for module in (codec, *rest):
        module.to(plan.device, plan.dtype)
    for module in heavy:
        if next(module.parameters()).dtype != plan.dtype:
            module.to(dtype=plan.dtype)
    if plan.mode == "resident":
        for module in heavy:
            module.to(plan.device)
    elif plan.mode == "sequential":
        one_at_a_time(heavy, plan.device)
    else:
        codec.work_in_tiles(TILE)
        for module in heavy:
            apply_group_offloading(module, plan.device, torch.device("cpu"), offload_type="leaf_level")


def one_at_a_time(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Keep modules in the computer's memory; a call fetches its module to `device` and sends the one before back."""
    on_device: list[nn.Module] = []

    def fetch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if module not in on_device:
            while on_device:
                on_device.pop().to("cpu")
            module.to(device)
            on_device.append(module)
        return _moved(args, device), _moved(kwargs, device)

    for module in modules:
        module.to("cpu")
        module.register_forward_pre_hook(fetch, with_kwargs=True)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(v, device) for v in value)
    return {k: _moved(v, device) for k, v in value.items()} if isinstance(value, dict) else value
