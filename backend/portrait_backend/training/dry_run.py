"""`train ... --dry-run`: what a step takes, from modules on the meta device; no data and no weights are read.

It counts the trained network with its gradients, AdamW's two moments and the average in fp32, the frozen networks in fp32, and the
activations of one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from portrait_backend.diffusion.denoiser import STARTER_UNET
from portrait_backend.diffusion.memory import PARAMETERS
from portrait_backend.prior.network import PriorNetwork
from portrait_backend.refinement.hybrid_priors import HybridPriors
from portrait_backend.refinement.injection import injected
from portrait_backend.restoration.detail_unet import DetailPreservationUNet
from portrait_backend.training.estimate import cost_of
from portrait_backend.training.hybrid_priors_trainer import IMPLICIT_WIDTH, save_activations
from portrait_backend.training.prior_trainer import CONFIGS
from portrait_backend.training.trainer import Scale

SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
"""Stable Diffusion 1.5's; the rest are diffusers' defaults."""
TOKENS = {"starter": 20, "full": 77}
DEVICES = {"A100 (312 TFLOPS bf16)": 312e12, "RTX 4090 (165 TFLOPS bf16)": 165e12}
UTILISATION = 0.3
"""Share of a device's published arithmetic that a step is assumed to reach."""


@dataclass(frozen=True)
class Step:
    """A training step on the meta device: the network that learns, millions of frozen parameters beside it, one forward pass."""

    network: nn.Module
    frozen: float
    forward: Callable[[int], Tensor] | None


def describe(what: str, scale: Scale, batch: int, accumulate: int, steps: int) -> list[str]:
    """Return the lines of an estimate for `train what --scale scale`: parameters, memory, time, and what is assumed."""
    step = STEPS[what](scale)
    trained = sum(p.numel() for p in step.network.parameters() if p.requires_grad) / 1e6
    everything = sum(p.numel() for p in step.network.parameters()) / 1e6
    held = 4 * (4 * trained + everything + step.frozen) / 1e3
    lines = [
        f"{what}, {scale} scale: {trained:.1f} M parameters learn, {step.frozen:.1f} M are frozen",
        f"weights, gradients, AdamW's moments, average (fp32): {held:.2f} GB on every device (DDP keeps all of it on each)",
    ]
    if step.forward is None:
        return [*lines, "activations and time are not estimated: they are those of the heads that are rendered, and of the guidance"]
    forward = step.forward
    peak, flops = cost_of(lambda: forward(batch).backward())
    grown = 4 * trained / 1e3  # gradients come to be within the pass and are counted above
    activations = max(0.0, peak / 1e9 - grown)
    lines += [
        f"activations of a batch of {batch}: {activations:.2f} GB in fp32, about half of it in bf16",
        f"in all about {held + activations / 2:.1f} GB in bf16",
        f"arithmetic: {flops * accumulate / 1e12:.1f} TFLOP a step ({accumulate} pass{'es' if accumulate > 1 else ''})",
    ]
    for device, rate in DEVICES.items():
        seconds = flops * accumulate / (rate * UTILISATION)
        lines.append(f"time on one {device}: {seconds:.2f} s a step, {seconds * steps / 3600:.1f} h for {steps} steps")
    return [
        *lines,
        f"assumed: {UTILISATION:.0%} of the published arithmetic, attention unfused; not in it: the work of codec and loss, reading data, "
        "the allocator's gaps, traffic between devices",
    ]


def _denoiser(scale: Scale) -> Step:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(STARTER_UNET if scale == "starter" else SD15_UNET))
    if scale == "full":
        unet.enable_gradient_checkpointing()
    return Step(unet, _frozen(scale), lambda batch: unet(*_inputs(unet, scale, batch)).sample.sum())


def _hybrid_priors(scale: Scale) -> Step:
    """Both branches and the frozen UNet, which gradients pass through; the warps cost next to nothing."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(STARTER_UNET if scale == "starter" else SD15_UNET)).requires_grad_(False)
        priors = HybridPriors.of_unet(unet, implicit=1.0 if scale == "full" else IMPLICIT_WIDTH)
    if scale == "full":
        save_activations(unet, priors)
    c = priors.config.latents

    def forward(batch: int) -> Tensor:
        z, t, tokens = _inputs(unet, scale, batch)
        known = torch.empty(batch, c + 1, *z.shape[2:], device="meta")
        features = priors.explicit(torch.cat([z, known], 1), t)
        assert priors.implicit is not None
        around = priors.implicit(torch.cat([z, z], 1), t)
        residuals = [zero(f) + fuse(f, a) for zero, fuse, f, a in zip(priors.zero, priors.fusion, features, around, strict=True)]
        with injected(unet, residuals):
            total: Tensor = unet(z, t, tokens).sample.sum()
        return total

    return Step(priors, _frozen(scale) + _millions(unet), forward)


def _phi(scale: Scale) -> Step:
    with torch.device("meta"):
        phi = DetailPreservationUNet()
    return Step(phi, _frozen(scale) + (2 * PARAMETERS["denoiser"] if scale == "full" else 0.0), None)


def _prior(scale: Scale) -> Step:
    with torch.device("meta"):
        return Step(PriorNetwork(CONFIGS[scale]), 0.0, None)


STEPS: dict[str, Callable[[Scale], Step]] = {"denoiser": _denoiser, "hybrid-priors": _hybrid_priors, "phi": _phi, "prior": _prior}


def _inputs(unet: UNet2DConditionModel, scale: Scale, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    side, width = int(unet.config["sample_size"]), int(unet.config["cross_attention_dim"])
    shapes = ((batch, int(unet.config["in_channels"]), side, side), (batch,), (batch, TOKENS[scale], width))
    latents, t, tokens = (torch.empty(shape, device="meta") for shape in shapes)
    return latents, t, tokens


def _frozen(scale: Scale) -> float:
    """Millions of parameters of codec and text encoder."""
    return PARAMETERS["codec"] + PARAMETERS["text"] if scale == "full" else 1.2


def _millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6
