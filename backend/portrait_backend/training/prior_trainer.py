"""`portrait-diffusion train prior`: train the starter prior on a rendered data set; resumable, seeded, CPU or GPU."""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from portrait_backend.prior.network import PriorConfig, PriorNetwork
from portrait_backend.prior.starter import RENDERING
from portrait_backend.prior.weights import save_prior
from portrait_backend.training.head_dataset import load_heads
from portrait_backend.training.prior_evaluation import evaluate_prior
from portrait_backend.training.prior_loss import LossWeights, PriorLoss, Sampler
from portrait_backend.training.proxy_surface import fit_proxy


@dataclass(frozen=True)
class TrainPriorOptions:
    """What `train prior` is told; the schedule ends at `steps` or `minutes` of training, whichever comes first."""

    data: Path
    out: Path
    validation: Path | None = None
    steps: int = 20000
    minutes: float = math.inf
    batch: int = 8
    learning_rate: float = 1.2e-3
    seed: int = 0
    threads: int = 0
    limit: int | None = None
    evaluate_every: int = 500
    save_every: int = 200
    start_from: Path | None = None


def _schedule(progress: float, step: int) -> float:
    """Warm-up over 100 steps, then a cosine to 3 %."""
    return min(1.0, (step + 1) / 100) * (0.485 * (1 + math.cos(math.pi * min(1.0, progress))) + 0.03)


def _groups(network: PriorNetwork, rate: float) -> list[dict[str, object]]:
    """What lies on the planes themselves learns four times as fast and without weight decay."""
    rest = [p for name, p in network.named_parameters() if name not in ("mean_planes", "palette.spread")]
    return [
        {"params": rest, "lr": rate, "base": rate, "weight_decay": 0.02},
        {"params": [network.mean_planes, network.palette.spread], "lr": 4 * rate, "base": 4 * rate, "weight_decay": 0.0},
    ]


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, step: int) -> None:
    keep = min(0.998, (1 + step) / (10 + step))
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(b.detach().to(a.device), 1 - keep)


def _save(path: Path, state: dict[str, object]) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def start_from(network: PriorNetwork, path: Path) -> list[str]:
    """Copy the weights of a prior's file whose names and shapes fit; returns the names of those that stay as they are."""
    weights, own = load_file(path), network.state_dict()
    fitting = {name: value.float() for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(own | fitting)
    return sorted(own.keys() - fitting.keys())


def train_prior(options: TrainPriorOptions) -> Path:
    """Train (or resume) the prior; writes checkpoint.pt, log.jsonl and prior.safetensors-ready weights in `options.out`.

    Returns the checkpoint's path. Interrupt it at any time: the next call continues from the last checkpoint.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    device = accelerator.device
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"

    data = load_heads(options.data, options.limit, options.seed, cache=options.out / "heads.pt", mirror=True)
    validation = load_heads(options.validation, None, options.seed + 1, input_views=(0,)) if options.validation else None
    network = PriorNetwork(PriorConfig())
    if options.start_from:
        new = start_from(network, options.start_from)
        accelerator.print(f"from {options.start_from}, newly initialised: {', '.join(new) or 'nothing'}")
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else None
    if saved is None:
        accelerator.print(f"proxy surface error {fit_proxy(data, network.proxy):.4f} units")
    else:
        network.load_state_dict(saved["network"])
    average = copy.deepcopy(network).eval()
    network.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(_groups(network, options.learning_rate), betas=(0.9, 0.98))
    model = PriorLoss(network, LossWeights(), RENDERING)
    model, optimiser = accelerator.prepare(model, optimiser)
    step, spent = 0, 0.0
    if saved is not None:
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["seconds"]
    generator = torch.Generator().manual_seed(options.seed * 100003 + step * 17 + accelerator.process_index)
    sampler = Sampler(data, generator, LossWeights())
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    accelerator.print(f"{len(data)} identities, {len(data.input_id)} inputs, {millions:.2f} M parameters, step {step}")

    log = (options.out / "log.jsonl").open("a")
    sums: dict[str, Tensor] = {}
    clock, reported = time.monotonic(), step
    while True:
        progress = max(step / options.steps, spent / (60 * options.minutes))
        if progress >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = group["base"] * _schedule(progress, step)
        terms = model(sampler, options.batch, device)
        accelerator.backward(terms["total"])
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if not torch.isfinite(terms["total"]):
            raise FloatingPointError(f"the loss became {float(terms['total'])} at step {step}; the last good checkpoint is {checkpoint}")
        step += 1
        _update_average(average, accelerator.unwrap_model(model).network, step)
        sums = {k: sums.get(k, torch.zeros(())) + v.detach().cpu() for k, v in terms.items()}
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        last = max(step / options.steps, spent / (60 * options.minutes)) >= 1
        if not accelerator.is_main_process:
            continue
        if step % 100 == 0 or last:
            means = {k: round(float(v) / (step - reported), 4) for k, v in sums.items()}
            record: dict[str, Any] = {"step": step, "seconds": round(spent, 1), **means}
            sums, reported = {}, step
            if validation is not None and (step % options.evaluate_every == 0 or last):
                record["validation"] = evaluate_prior(average, validation, picture=options.out / f"validation_{step:06d}.png")
                clock = time.monotonic()
            accelerator.print(json.dumps(record), flush=True)
            log.write(json.dumps(record) + "\n")
            log.flush()
        if step % options.save_every == 0 or last:
            plain = accelerator.unwrap_model(model).network
            state = {"network": plain.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
            _save(
                checkpoint,
                state
                | {
                    "step": step,
                    "seconds": spent,
                    "config": asdict(average.config),
                    "options": {"seed": options.seed, "batch": options.batch},
                },
            )
    log.close()
    return checkpoint


def export_prior(checkpoint: Path, out: Path, **facts: str) -> None:
    """Write the averaged weights of a checkpoint as the shipped fp16 file."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    config = PriorConfig(**state["config"] | {"widths": tuple(state["config"]["widths"])})
    save_prior(state["average"], config, out, steps=str(state["step"]), **facts)
