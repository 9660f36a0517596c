"""Fit the prior `multiview` to all pictures of a synthetic head but one, and compare the one that was left out.

python benchmarks/multiview.py DATA_SET [--identity 0] [--left-out 2] [--size 256] [--steps 500] [--picture FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from PIL import Image

from portrait_backend.context import cpu_context
from portrait_backend.prior.multiview import fit_views
from portrait_backend.prior.posed_images import PosedImage
from portrait_backend.radiance.head import Head
from portrait_backend.training.head_dataset import camera_at, load_heads


def compare(head: Head, view: PosedImage) -> tuple[float, float, torch.Tensor]:
    """Return PSNR over white in dB, silhouette IoU, and the picture (H, W, 3) over white."""
    with torch.no_grad():
        out = head.render(view.camera)
    shown, wanted = out.rgb + 1 - out.alpha[..., None], view.rgb + 1 - view.matte[..., None]
    solid, true = out.alpha > 0.5, view.matte > 0.5
    error = float((shown - wanted).square().mean())
    return -10 * math.log10(error), float((solid & true).sum() / (solid | true).sum()), shown


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    for name, value in (("identity", 0), ("left-out", 2), ("size", 256), ("steps", 500)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--picture", type=Path, help="write truth and result side by side")
    given = parser.parse_args()
    data = load_heads(given.data, given.identity + 1)
    views = []
    for k in range(data.rgba.shape[1]):
        rgba = data.rgba[given.identity, k].float().permute(2, 0, 1)[None] / 255
        rgba = torch.nn.functional.interpolate(torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1), size=2 * (given.size,), mode="area")
        pixels = rgba[0].permute(1, 2, 0)
        views.append(
            PosedImage(str(k), camera_at(data, given.identity, k, given.size), pixels[..., :3].contiguous(), pixels[..., 3].contiguous())
        )
    hidden = views.pop(given.left_out)
    start = time.perf_counter()
    head = fit_views(views, given.steps, cpu_context(0))
    seconds = time.perf_counter() - start
    psnr, iou, shown = compare(head, hidden)
    seen = sum(compare(head, view)[0] for view in views) / len(views)
    azimuth, pitch = data.angles[given.identity, given.left_out].tolist()
    print(
        json.dumps(
            {
                "azimuth": azimuth,
                "pitch": pitch,
                "psnr": round(psnr, 2),
                "iou": round(iou, 3),
                "psnr_seen": round(seen, 2),
                "seconds": round(seconds),
            }
        )
    )
    if given.picture is not None:
        both = torch.cat([hidden.rgb + 1 - hidden.matte[..., None], shown], 1).clamp(0, 1)
        Image.fromarray((both * 255).byte().numpy()).save(given.picture)


if __name__ == "__main__":
    main()
