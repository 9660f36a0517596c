"""Held-out figures of stage 1 on synthetic heads with known cameras: PSNR, SSIM, mask IoU per view angle, chamfer distance.

The input view is treated like a photo: its landmarks get detector noise, the product fits the pose, crops
and runs the prior. Rendered views are compared with the truth at the truth's cameras, so that pose errors count.
--fit-steps 0 is the network alone. With --true-pose the input's pose and crop are the true ones: that is the prior alone.

    python -m portrait_backend.evaluation.held_out DATA --identities 32 -o held_out.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.evaluation.ground_truth import chamfer, image_figures, truths
from portrait_backend.evaluation.image_metrics import over_grey
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.radiance.cameras import ORBIT_RADIUS
from portrait_backend.radiance.head import Head
from portrait_backend.training.head_dataset import HeadDataset, load_heads
from portrait_backend.training.prior_evaluation import VIEWS
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_shared.settings import PriorSettings

SHOWN = (1, 2, 4, 6)
"""Views on the sheet: the front, 45, 90 and 180 degrees."""


@dataclass(frozen=True)
class Scores:
    """Per view group: rows of (PSNR, foreground PSNR, IoU, SSIM); chamfer in millimetres per identity."""

    views: dict[str, list[tuple[float, float, float, float]]]
    chamfer_mm: list[float]

    def table(self) -> dict[str, object]:
        """Means, ready for JSON."""
        means = {name: [round(float(x), 3) for x in np.mean(rows, 0)] for name, rows in self.views.items()}
        return {
            "views (psnr, foreground psnr, iou, ssim)": means,
            "chamfer_mm": round(float(np.mean(self.chamfer_mm)), 2),
            "identities": len(self.chamfer_mm),
        }


def with_true_pose(data: HeadDataset) -> HeadDataset:
    """Return the data set with the true pose and crop of every input in place of the fitted ones (coefficients stay fitted)."""
    true = torch.deg2rad(data.angles[data.input_id, data.input_view])
    closer = ORBIT_RADIUS / data.cameras[data.input_id, data.input_view, :, 3].norm(dim=-1)
    return replace(data, similarity=closer[:, None, None] * torch.eye(2, 3), fitted_angles=true)


def score_head(head: Head, data: HeadDataset, identity: int, scores: Scores) -> Tensor:
    """Add the scores of one head; returns a strip (SIZE, n * SIZE, 3) of truth and render pairs."""
    strip = []
    for name, views in VIEWS.items():
        for view, truth in zip(views, truths(data, identity, views), strict=True):
            out = head.render(truth.camera)
            found = image_figures(out, truth.view)
            scores.views.setdefault(name, []).append((found["psnr"], found["foreground_psnr"], found["iou"], found["ssim"]))
            if view in SHOWN:
                strip += [over_grey(truth.view.rgb, truth.view.alpha), over_grey(out.rgb, out.alpha)]
    distance = chamfer(head, data, identity)
    if distance is not None:
        scores.chamfer_mm.append(distance)
    return torch.cat(strip, 1)


def _context(seed: int) -> Context:
    return Context(torch.device("cpu"), torch.float32, torch.Generator().manual_seed(seed))


def evaluate(data: HeadDataset, identities: int, fit_steps: int, sheet: Path | None = None) -> dict[str, object]:
    """Score stage 1 on up to `identities` heads; fit_steps 0 is the network alone. Optionally a PNG sheet of the first eight."""
    scores, strips = Scores({}, []), []
    for row in range(min(identities, len(data.input_id))):
        portrait, identity = portrait_of(data, row), int(data.input_id[row])
        head = StarterPrior().initialise(portrait, PriorSettings(fit_steps=fit_steps), _context(row))
        with torch.no_grad():
            strips.append(score_head(head, data, identity, scores))
        print(f"{row + 1}/{identities} foreground PSNR {[round(float(np.mean(v, 0)[1]), 2) for v in scores.views.values()]}", flush=True)
    if sheet is not None:
        Image.fromarray((torch.cat(strips[:8]).clamp(0, 1).numpy() * 255).astype(np.uint8)).save(sheet)
    return scores.table() | {"fit_steps": fit_steps}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--identities", type=int, default=32)
    parser.add_argument("--fit-steps", type=int, default=PriorSettings().fit_steps)
    parser.add_argument("-o", "--output", type=Path, default=None)
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--true-pose", action="store_true", help="take the input's true pose instead of fitting it")
    a = parser.parse_args()
    data = load_heads(a.data, a.identities, seed=1, input_views=(0,))
    data = with_true_pose(data) if a.true_pose else data
    result = evaluate(data, a.identities, a.fit_steps, a.sheet)
    text = json.dumps(result, indent=1)
    print(text)
    if a.output is not None:
        a.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
