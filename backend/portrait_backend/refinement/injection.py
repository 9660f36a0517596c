"""Add residuals to a stock, frozen diffusers UNet2DConditionModel by forward hooks, at BrushNet's places; no fork of the UNet is needed.

Tap 0 is added after conv_in but not to conv_in's skip; the others after each layer (resnet + attention) and each sampler, so that
the skips of the way down hold them; the mid tap after the mid block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn


def tap_modules(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Return the module behind every tap, in the order of computing; the first is the first down block, whose *input* is tap 0."""
    blocks: Any = unet
    modules: list[nn.Module] = [blocks.down_blocks[0]]
    for block in blocks.down_blocks:
        modules += [*_layers(block), *(getattr(block, "downsamplers", None) or ())]
    modules.append(blocks.mid_block)
    for block in blocks.up_blocks:
        modules += [*_layers(block), *(getattr(block, "upsamplers", None) or ())]
    return modules


def _layers(block: Any) -> list[nn.Module]:
    """The last module of each layer: its attention where it has one, else its resnet."""
    attentions = getattr(block, "attentions", None)
    return list(block.resnets if attentions is None else attentions)


@contextmanager
def injected(unet: UNet2DConditionModel, residuals: Sequence[Tensor]) -> Iterator[None]:
    """Within the block every call of the UNet adds residuals (B, C_k, h_k, w_k) at the taps; afterwards the UNet is as before.

    A UNet batch that is a multiple of B (both halves of classifier-free guidance) gets the residuals repeated. ValueError if their
    number isn't that of the taps.
    """
    modules = tap_modules(unet)
    if len(residuals) != len(modules):
        raise ValueError(f"the UNet has {len(modules)} taps, got {len(residuals)} residuals")
    first: Any = modules[0]
    handles = [first.register_forward_pre_hook(_before(residuals[0]), with_kwargs=True)]
    handles += [m.register_forward_hook(_after(r)) for m, r in zip(modules[1:], residuals[1:], strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(hidden: Tensor, residual: Tensor) -> Tensor:
    return hidden + residual.to(hidden.dtype).repeat(len(hidden) // len(residual), 1, 1, 1)


def _before(residual: Tensor) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": _add(kwargs["hidden_states"], residual)}
        return (_add(args[0], residual), *args[1:]), kwargs

    return hook


def _after(residual: Tensor) -> Callable[..., Any]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (_add(output[0], residual), *output[1:])
        return _add(output, residual)

    return hook
