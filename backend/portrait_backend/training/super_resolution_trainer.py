"""Train psi_SR: rendered 128 px features of the starter's heads -> the true 512 px view. Prior and decoder stay frozen.

    python -m portrait_backend.training.super_resolution_trainer DATA -o super_resolution.safetensors

DATA is an evaluation-layout set at 512 px whose identities are not used for figures. Only views near the front are
used: elsewhere the prior's guess and the truth differ by more than resolution.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.evaluation.held_out import camera_at, portrait_of
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.radiance.super_resolution import SuperResolution, upsample_bicubic
from portrait_backend.training.head_dataset import HeadDataset, load_heads
from portrait_shared.settings import PriorSettings

PATCH, BATCH, RATE = 40, 6, 1e-3
VIEWS = (0, 1, 2, 3)
"""The input view, the front and +-45 degrees (`synthetic.view_plan`)."""


def render_pairs(data: HeadDataset, fit_steps: int = 20) -> tuple[Tensor, Tensor]:
    """Fit a head to every identity and return features (N, 32, 128, 128) and true premultiplied rgb (N, 3, 512, 512)."""
    features, truths = [], []
    for row in range(len(data.input_id)):
        identity = int(data.input_id[row])
        context = Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(row))
        head = StarterPrior().initialise(portrait_of(data, row), PriorSettings(fit_steps=fit_steps), context)
        with torch.no_grad():
            for view in VIEWS:
                out = head.render(camera_at(data, identity, view, 128), features=True)
                rgba = data.rgba[identity, view].float().permute(2, 0, 1) / 255
                assert out.features is not None
                features.append(out.features.permute(2, 0, 1))
                truths.append(rgba[:3] * rgba[3:])
        print(f"rendered {row + 1}/{len(data.input_id)}", flush=True)
    return torch.stack(features), torch.stack(truths)


def train(features: Tensor, truths: Tensor, minutes: float, seed: int = 0, held_out: int = 8) -> tuple[SuperResolution, dict[str, float]]:
    """Train on all but the last `held_out` images; returns the network and PSNR of bicubic and network on those, in dB."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = SuperResolution()
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE)
    count, scale = len(features) - held_out, network.config.scale
    start, step = time.monotonic(), 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * (0.5 * (1 + math.cos(math.pi * progress)) + 0.01)
        rows = torch.randint(0, count, (BATCH,), generator=generator).tolist()
        corners = torch.randint(0, features.shape[-1] - PATCH + 1, (BATCH, 2), generator=generator).tolist()
        low = torch.stack([features[r, :, y : y + PATCH, x : x + PATCH] for r, (y, x) in zip(rows, corners, strict=True)])
        high = torch.stack(
            [truths[r, :, scale * y : scale * (y + PATCH), scale * x : scale * (x + PATCH)] for r, (y, x) in zip(rows, corners, strict=True)]
        )
        loss = F.l1_loss(network(low), high)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step += 1
    return network.eval(), {"steps": step} | compare(network, features[count:], truths[count:])


@torch.no_grad()
def compare(network: SuperResolution, features: Tensor, truths: Tensor) -> dict[str, float]:
    """Return mean PSNR [dB] of bicubic upsampling and of the network."""

    def psnr(images: Tensor) -> float:
        return float((-10 * ((images.clamp(0, 1) - truths) ** 2).mean((1, 2, 3)).log10()).mean())

    learned = torch.cat([network(f[None]) for f in features])
    return {"bicubic": round(psnr(upsample_bicubic(features[:, :3], network.config.scale)), 2), "network": round(psnr(learned), 2)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--test", type=Path, help="another set to compare on")
    a = parser.parse_args()
    network, figures = train(*render_pairs(load_heads(a.data, None, seed=1, input_views=(0,))), a.minutes)
    print(json.dumps(figures))
    if a.test is not None:
        print("test", json.dumps(compare(network, *render_pairs(load_heads(a.test, 8, seed=1, input_views=(0,))))))
    save_file(
        {name: value.half().contiguous() for name, value in network.state_dict().items()},
        a.output,
        metadata={"config": json.dumps(network.config_dict()), "figures": json.dumps(figures)},
    )


if __name__ == "__main__":
    main()
