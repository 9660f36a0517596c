"""`portrait-diffusion train super-resolution`: train psi_SR on the prior's own heads; resumable, seeded.

Each input view of a data set becomes a fitted head as in the product. Its features rendered at 128 px are the input;
the target is the same field rendered at 512 px. (The truth's views would do worse: where the prior only guessed, they
differ by shifts, and a network that is asked to undo shifts learns to blur.)
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.precision import bf16_autocast
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.prior.weights import save_super_resolution
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.super_resolution import SuperResolution, upsample_bicubic
from portrait_backend.training.head_dataset import load_heads
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_shared.settings import PriorSettings

COARSE, SCALE = 128, 4
"""Side in pixels of the feature render, and how much finer the target is."""
ROUNDING = 0.01
"""Below this an error counts squared, above it by its size. With a plain L1 the few pixels at edges never outweigh the many flat ones,
which are right already, and the network learns nothing."""


@dataclass(frozen=True)
class TrainSuperResolutionOptions:
    """What `train super-resolution` is told; the schedule ends at `steps` or `minutes`, whichever comes first.

    The last `held_out` heads only measure.
    """

    data: Path
    out: Path
    heads: int = 24
    views: int = 6
    held_out: int = 4
    fit_steps: int = PriorSettings().fit_steps
    steps: int = 4000
    minutes: float = math.inf
    batch: int = 8
    crop: int = 32
    learning_rate: float = 1e-3
    seed: int = 0
    evaluate_every: int = 200


@torch.no_grad()
def _pair(head: Head, cameras: list[Camera]) -> dict[str, Tensor]:
    """Features (V, 32, 128, 128) fp16 and target (V, 3, 512, 512) u8, both premultiplied."""
    small, large = [], []
    for camera in cameras:
        features = head.render(camera, COARSE, features=True).features
        assert features is not None
        small.append(features.permute(2, 0, 1).half())
        large.append((head.render(camera, COARSE * SCALE).rgb.permute(2, 0, 1).clamp(0, 1) * 255).round().byte())
    return {"features": torch.stack(small), "target": torch.stack(large)}


def render_pairs(options: TrainSuperResolutionOptions) -> list[Path]:
    """Fit `heads` heads and store their renders, one file per head; those that are there stay. Returns the files."""
    folder = options.out / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"head_{k:04d}.pt" for k in range(options.heads)]
    if all(f.exists() for f in files):
        return files
    data = load_heads(options.data, options.heads, options.seed, input_views=(0,))
    for k, file in enumerate(files[: len(data)]):
        if file.exists():
            continue
        generator = torch.Generator().manual_seed(options.seed * 100003 + k)
        portrait = portrait_of(data, k)
        context = Context(torch.device("cpu"), torch.float32, generator)
        head = StarterPrior().initialise(portrait, PriorSettings(fit_steps=options.fit_steps), context)
        turn = torch.rand(options.views - 1, 2, generator=generator)
        around = [Camera.orbit(float(a) * 360, float(p) * 50 - 25, COARSE) for a, p in turn]
        part = file.with_suffix(".part")
        torch.save(_pair(head, [portrait.camera, *around]), part)
        part.replace(file)
        print(f"head {k + 1}/{options.heads}", flush=True)
    return [f for f in files if f.exists()]


def _charbonnier(error: Tensor) -> Tensor:
    return (error.square() + ROUNDING**2).sqrt().mean()


def super_resolution_loss(shown: Tensor, truth: Tensor) -> Tensor:
    """Charbonnier loss of premultiplied rgb (B, 3, h, w) and of its gradients."""
    error = shown - truth
    across, down = error[..., 1:] - error[..., :-1], error[..., 1:, :] - error[..., :-1, :]
    return _charbonnier(error) + (_charbonnier(across) + _charbonnier(down)) / 2


@torch.no_grad()
def foreground_psnr(network: SuperResolution, pairs: list[dict[str, Tensor]]) -> tuple[float, float]:
    """Mean PSNR [dB] where the target is not black: (network, bicubic)."""
    scores = []
    for pair in pairs:
        for features, target in zip(pair["features"].float(), pair["target"].float() / 255, strict=True):
            solid = target.amax(0) > 0.02
            images = network(features[None])[0].clamp(0, 1), upsample_bicubic(features[None, :3], SCALE)[0].clamp(0, 1)
            scores.append([float(-10 * (image - target)[:, solid].square().mean().clamp_min(1e-10).log10()) for image in images])
    ours, bicubic = torch.tensor(scores).mean(0).tolist()
    return ours, bicubic


class _Crops:
    """Draws crops around pixels that show something."""

    def __init__(self, pairs: list[dict[str, Tensor]], crop: int, generator: torch.Generator) -> None:
        self.features = torch.cat([p["features"] for p in pairs])
        self.target = torch.cat([p["target"] for p in pairs])
        self.crop, self.generator = crop, generator
        self.solid = [(t.float().amax(0)[::SCALE, ::SCALE] > 5).nonzero() for t in self.target]

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Features (B, 32, crop, crop) and targets (B, 3, 4 crop, 4 crop)."""
        small, large = [], []
        for k in torch.randint(0, len(self.solid), (batch,), generator=self.generator).tolist():
            if not len(self.solid[k]):
                continue
            at = self.solid[k][int(torch.randint(0, len(self.solid[k]), (1,), generator=self.generator))]
            y, x = ((at - self.crop // 2).clamp(0, COARSE - self.crop)).tolist()
            small.append(self.features[k, :, y : y + self.crop, x : x + self.crop].float())
            y, x, n = y * SCALE, x * SCALE, self.crop * SCALE
            large.append(self.target[k, :, y : y + n, x : x + n].float() / 255)
        return torch.stack(small), torch.stack(large)


def train_super_resolution(options: TrainSuperResolutionOptions) -> Path:
    """Render the pairs, train (or resume), write checkpoint.pt, log.jsonl and super_resolution.safetensors; returns the latter."""
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    files = render_pairs(options)
    pairs = [torch.load(f, weights_only=True) for f in files]
    held_out = min(options.held_out, len(pairs) - 1)
    train, test = pairs[: len(pairs) - held_out], pairs[len(pairs) - held_out :] or pairs
    checkpoint, weights = options.out / "checkpoint.pt", options.out / "super_resolution.safetensors"
    network = SuperResolution()
    optimiser = torch.optim.AdamW(network.parameters(), options.learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    step, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["seconds"]
    crops = _Crops(train, options.crop, torch.Generator().manual_seed(options.seed * 100003 + step * 17))
    clock = time.monotonic()

    def progress() -> float:
        return max(step / options.steps, spent / (60 * options.minutes))

    with (options.out / "log.jsonl").open("a") as log:
        while progress() < 1:
            rate = options.learning_rate * min(1.0, (step + 1) / 50) * (0.485 * (1 + math.cos(math.pi * progress())) + 0.03)
            for group in optimiser.param_groups:
                group["lr"] = rate
            features, truth = crops.draw(options.batch)
            with bf16_autocast("cpu"):
                shown = network(features)
            loss = super_resolution_loss(shown.float(), truth)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            step += 1
            now = time.monotonic()
            spent, clock = spent + now - clock, now
            if step % options.evaluate_every == 0 or progress() >= 1:
                ours, bicubic = foreground_psnr(network, test)
                record = {"step": step, "seconds": round(spent, 1), "loss": float(loss.detach()), "psnr": ours, "bicubic": bicubic}
                print(json.dumps(record), flush=True)
                log.write(json.dumps(record) + "\n")
                log.flush()
                part = checkpoint.with_suffix(".part")
                state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "seconds": spent}
                torch.save(state, part)
                part.replace(checkpoint)
                clock = time.monotonic()
    save_super_resolution(network, weights, steps=str(step), heads=str(len(train)))
    return weights
