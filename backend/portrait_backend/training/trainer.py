"""The one training loop: resumable, seeded, averaged weights, mixed precision, gradient accumulation, CPU, a GPU or several (DDP).

A recipe says what is trained and on what; the loop does the rest. Interrupt it at any time: the next call with the same
folder continues from the last checkpoint.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from portrait_backend.precision import computes_bf16
from portrait_shared.errors import PortraitDiffusionError

Precision = Literal["no", "bf16", "fp16"]
Scale = Literal["starter", "full"]

WARM_UP, FLOOR = 100, 0.03
"""Steps of warm-up; share of the learning rate at the end of the cosine."""


@dataclass(frozen=True)
class TrainOptions:
    """What a training run is told; the schedule ends at `steps` or `minutes` of training, whichever comes first.

    batch: per process and forward pass; `accumulate` of these make a step. log_with: a tracker of accelerate besides log.jsonl, by name.
    precision: bf16 only where the device multiplies in it (`precision.computes_bf16`).
    """

    data: Path
    out: Path
    validation: Path | None = None
    steps: int = 20000
    minutes: float = math.inf
    batch: int = 8
    learning_rate: float = 1e-3
    seed: int = 0
    threads: int = 0
    limit: int | None = None
    evaluate_every: int = 500
    save_every: int = 200
    precision: Precision = "bf16"
    accumulate: int = 1
    log_with: str = ""
    scale: Scale = "starter"


class Recipe(Protocol):
    """What is trained. `module(**draw(...))` returns the loss terms, `total` among them; `network`, a part of it, is averaged and saved."""

    @property
    def module(self) -> nn.Module:
        """The network with its loss, so that one forward call does a whole step's work (also under DDP)."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    def draw(self, count: int, generator: torch.Generator) -> dict[str, Any]:
        """Draw a batch on the CPU."""

    def evaluate(self, network: nn.Module, picture: Path) -> Mapping[str, Any]:
        """Measure the averaged network on held-out data and write a picture of what it makes."""

    def config(self) -> dict[str, Any]:
        """Return what is needed to build the network again, as JSON data."""


@runtime_checkable
class Grouped(Protocol):
    """A recipe whose parameters don't all learn alike."""

    def groups(self) -> list[dict[str, Any]]:
        """Return AdamW's parameter groups; `scale` multiplies the learning rate."""


def schedule(progress: float, step: int) -> float:
    """Return the share of the learning rate: a linear warm-up, then a cosine to `FLOOR`."""
    return min(1.0, (step + 1) / WARM_UP) * ((1 - FLOOR) / 2 * (1 + math.cos(math.pi * min(1.0, progress))) + FLOOR)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, longest: float = 0.998) -> None:
    """Move the averaged weights towards the current ones; the memory grows with the steps up to `longest`."""
    keep = min(longest, (1 + step) / (10 + step))
    for a, b in zip(average.parameters(), network.parameters(), strict=True):
        a.lerp_(b.detach().to(a.device), 1 - keep)


def train(recipe: Recipe, options: TrainOptions) -> Path:
    """Train, or resume; writes checkpoint.pt, log.jsonl and pictures in `options.out`. Returns the checkpoint's path.

    FloatingPointError if the loss is not finite any more; the last good checkpoint stays.
    """
    accelerator = _accelerator(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint.exists() else None
    if saved is not None:
        recipe.network.load_state_dict(saved["network"])
    average = copy.deepcopy(recipe.network).eval()
    trained = [p for p in recipe.network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = recipe.groups() if isinstance(recipe, Grouped) else [{"params": trained}]
    scales = [float(group.pop("scale", 1.0)) for group in groups]
    optimiser = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    step, spent = 0, 0.0
    if saved is not None:
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["seconds"]
    module, optimiser = accelerator.prepare(recipe.module, optimiser)
    average.to(accelerator.device)
    generator = torch.Generator().manual_seed(options.seed * 100003 + step * 17 + accelerator.process_index)
    log = _Log(options.out / "log.jsonl", accelerator, step)
    clock = time.monotonic()
    while (progress := max(step / options.steps, spent / (60 * options.minutes))) < 1:
        for group, scale in zip(optimiser.param_groups, scales, strict=True):
            group["lr"] = scale * options.learning_rate * schedule(progress, step)
        for part in range(options.accumulate):
            drawn = recipe.draw(options.batch, generator)
            batch = {k: v.to(accelerator.device) if isinstance(v, Tensor) else v for k, v in drawn.items()}
            with nullcontext() if part == options.accumulate - 1 else accelerator.no_sync(module):
                terms = module(**batch)
                total = terms["total"]
                if not torch.isfinite(total):
                    raise FloatingPointError(f"the loss became {float(total)} at step {step}; the last good checkpoint is {checkpoint}")
                accelerator.backward(total / options.accumulate)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        update_average(average, recipe.network, step)
        log.add(terms)
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        last = max(step / options.steps, spent / (60 * options.minutes)) >= 1
        if not accelerator.is_main_process:
            continue
        if step % options.save_every == 0 or last:
            _save(checkpoint, recipe, average, optimiser, step, spent, options)
        if step % options.evaluate_every == 0 or last:
            measured = recipe.evaluate(average, options.out / f"samples_{step:06d}.png")
            log.write(step, spent, {"validation": {k: round(v, 4) if isinstance(v, float) else v for k, v in measured.items()}})
        elif step % 100 == 0:
            log.write(step, spent, {})
        clock = time.monotonic()
    accelerator.end_training()
    return checkpoint


def _accelerator(options: TrainOptions) -> Accelerator:
    """Return accelerate's view of the processes, with the tracker asked for; PortraitDiffusionError where it is not installed."""
    if options.log_with and importlib.util.find_spec(options.log_with) is None:
        raise PortraitDiffusionError(
            "extra-missing", f"the tracker {options.log_with} is not installed", f"Run python3 -m pip install {options.log_with}"
        )
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    accelerator = Accelerator(
        cpu=kind == "cpu",
        mixed_precision="no" if options.precision == "bf16" and not computes_bf16(kind) else options.precision,
        log_with=options.log_with or None,
        project_dir=options.out,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # whole branches are left out of some batches
    )
    if options.log_with:
        accelerator.init_trackers("portrait-diffusion", {"batch": options.batch, "learning_rate": options.learning_rate})
    return accelerator


class _Log:
    """Means of the loss terms since the last record, one JSON line each."""

    def __init__(self, path: Path, accelerator: Accelerator, step: int) -> None:
        self.path, self.accelerator, self.since = path, accelerator, step
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor]) -> None:
        self.sums = {k: self.sums.get(k, torch.zeros(())) + v.detach().float().cpu() for k, v in terms.items()}

    def write(self, step: int, seconds: float, more: dict[str, Any]) -> None:
        means = {k: round(float(v) / max(1, step - self.since), 5) for k, v in self.sums.items()}
        line = json.dumps({"step": step, "seconds": round(seconds, 1), **means, **more})
        self.accelerator.print(line, flush=True)
        numbers = {f"validation/{k}": v for k, v in more.get("validation", {}).items() if isinstance(v, float)}
        self.accelerator.log(means | numbers, step=step)
        with self.path.open("a") as log:
            log.write(line + "\n")
        self.sums, self.since = {}, step


def _save(
    path: Path, recipe: Recipe, average: nn.Module, optimiser: torch.optim.Optimizer, step: int, spent: float, options: TrainOptions
) -> None:
    part = path.with_suffix(".part")
    state = {
        "network": recipe.network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": spent,
        "config": recipe.config(),
        "options": {"seed": options.seed, "batch": options.batch, "learning_rate": options.learning_rate},
    }
    torch.save(state, part)
    part.replace(path)
