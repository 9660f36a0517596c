"""Held-out figures of stage 3 on synthetic heads: PSNR, SSIM and sharpness per view, before and after, and the ablations' rows.

Sharpness is the mean gradient magnitude inside the true silhouette, divided by the truth's: 1 is as crisp as the truth, less is
blurred, more is noise or invented texture. The input view is treated as in `held_out`; every row starts from the same stage 1 result.

    python -m portrait_backend.evaluation.refinement DATA --rows stage1 transport full -o refinement.json --sheet sheet.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from portrait_backend.context import cpu_context
from portrait_backend.evaluation.ablations import ABLATIONS, FULL, Ablation
from portrait_backend.evaluation.ground_truth import Truth, image_figures, truths
from portrait_backend.evaluation.held_out import with_true_pose
from portrait_backend.evaluation.image_metrics import over_grey
from portrait_backend.evaluation.restoration import kept
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.radiance.head import Head
from portrait_backend.refinement.refine import refine
from portrait_backend.refinement.sampling import Refiner, load_refiner
from portrait_backend.training.head_dataset import HeadDataset, load_heads
from portrait_backend.training.prior_evaluation import VIEWS
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_shared.settings import PriorSettings, RefinementSettings

GROUP = "refinement."


def _changes(row: Ablation) -> dict[str, Any]:
    return {path.removeprefix(GROUP): value for path, value in row.overrides.items() if path.startswith(GROUP)}


ROWS: dict[str, dict[str, Any] | None] = {
    "stage1": None,
    "transport": {"method": "transport", "iterations": 1, "between_views": 0},
    "full": FULL,
    **{row.method: _changes(row) for row in ABLATIONS if row.figure != "stages" and _changes(row) != FULL},
    "literal implicit": {"literal_implicit": True},
}
"""Changes of the preset's settings per row; None is the head as stage 1 (or 2) leaves it. "full" is the last row of both figures."""
SIZE = 256
"""Side in pixels at which images are compared, at most."""
SHOWN = (2, 3, 4, 6)
"""Views on the contact sheet: +-45, 90 and 180 degrees."""


def gradient_magnitude(image: Tensor, region: Tensor) -> float:
    """Mean length of the grey level's gradient of an image (H, W, 3) over a region (H, W) bool, per pixel."""
    grey = image.mean(-1)
    dx, dy = grey[1:, 1:] - grey[1:, :-1], grey[1:, 1:] - grey[:-1, 1:]
    inside = region[1:, 1:] & region[1:, :-1] & region[:-1, 1:]
    return float((dx**2 + dy**2).sqrt()[inside].mean()) if bool(inside.any()) else 0.0


def truths_of(data: HeadDataset, identity: int, views: tuple[int, ...]) -> Iterator[Truth]:
    """Yield the truth of some views, at most `SIZE` px wide."""
    return truths(data, identity, views, size=min(data.size, SIZE))


@torch.no_grad()
def score(head: Head, data: HeadDataset, identity: int, table: dict[str, list[list[float]]]) -> list[Tensor]:
    """Add (foreground PSNR, SSIM, sharpness) per view group; returns the renders of the SHOWN views."""
    tiles = []
    for name, views in VIEWS.items():
        for view, truth in zip(views, truths_of(data, identity, views), strict=True):
            out = head.render(truth.camera)
            shown, real = (over_grey(x.rgb, x.alpha) for x in (out, truth.view))
            solid = -F.max_pool2d(-truth.view.alpha[None, None], 9, 1, 4)[0, 0] > 0.9
            sharpness = gradient_magnitude(shown, solid) / max(gradient_magnitude(real, solid), 1e-6)
            found = image_figures(out, truth.view)
            table.setdefault(name, []).append([found["foreground_psnr"], found["ssim"], sharpness])
            if view in SHOWN:
                tiles.append(shown)
    return tiles


def evaluate(
    data: HeadDataset,
    identities: int,
    rows: list[str],
    base: RefinementSettings,
    refiner: Refiner | None,
    sheet: Path | None = None,
    cache: Path | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """Score the rows on up to `identities` heads, from number `first` on; optionally a PNG sheet (six heads): truth above every row.

    cache: a folder in which stage 1's heads are kept, so that several runs can share them.
    """
    tables: dict[str, dict[str, list[list[float]]]] = {name: {} for name in rows}
    strips: list[Tensor] = []
    for done, row in enumerate(range(first, min(first + identities, len(data.input_id)))):
        portrait, identity = portrait_of(data, row), int(data.input_id[row])
        head = kept(
            cache and cache / f"{row:03d}.safetensors",
            lambda p=portrait, seed=row: StarterPrior().initialise(p, PriorSettings(), cpu_context(seed)),  # type: ignore[misc]
        )
        columns = [torch.cat([over_grey(t.view.rgb, t.view.alpha) for t in truths_of(data, identity, SHOWN)], 1)]
        for name in rows:
            changes = ROWS[name]
            refined = head
            if changes is not None:
                settings = replace(base, **changes)
                refined = refine(head, portrait, settings, cpu_context(row), refiner if settings.method == "diffusion" else None).head
            columns.append(torch.cat(score(refined, data, identity, tables[name]), 1))
        strips.append(torch.cat(columns))
        print(done + 1, {n: {v: np.round(np.mean(x, 0), 3).tolist() for v, x in t.items()} for n, t in tables.items()}, flush=True)
        if sheet is not None and done < 6:
            picture = (torch.cat(strips).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
            Image.fromarray(picture).save(sheet)
    means = {name: {v: [round(float(x), 3) for x in np.mean(s, 0)] for v, s in t.items()} for name, t in tables.items()}
    return {"rows (foreground psnr, ssim, sharpness)": means, "identities": len(strips), "size": min(data.size, SIZE)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--identities", type=int, default=32)
    parser.add_argument("--first", type=int, default=0, help="number of the first identity")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["stage1", "transport", "full"])
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--denoiser", default="starter")
    parser.add_argument("--priors", default="starter")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help='changes of the refinement settings as JSON, e.g. {"iterations": 4}'
    )
    parser.add_argument("-o", "--output", type=Path, default=None)
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=None, help="keep stage 1's heads in this folder")
    parser.add_argument("--true-pose", action="store_true", help="take the input's true pose instead of fitting it")
    a = parser.parse_args()
    data = load_heads(a.data, a.first + a.identities, seed=1, input_views=(0,))
    data = with_true_pose(data) if a.true_pose else data
    base = RefinementSettings(**a.settings)
    needed = any(replace(base, **(ROWS[r] or {})).method == "diffusion" for r in a.rows if ROWS[r] is not None)
    refiner = load_refiner(a.codec, a.denoiser, a.priors) if needed else None
    result = evaluate(data, a.identities, a.rows, base, refiner, a.sheet, a.cache, a.first) | {
        "settings": a.settings,
        "true_pose": a.true_pose,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if a.output is not None:
        a.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
