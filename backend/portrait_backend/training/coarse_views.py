"""Render a data set's views from a prior provider's heads: stage 3 then trains on the depth and images it will really get.

For every identity, stage 1 makes a head from view 0 (with its true pose), which is rendered at all the cameras of the set, in the same
layout. What was made is skipped; identities are independent, so several runs can share the work.
"""

from __future__ import annotations

import json
from pathlib import Path

from portrait_backend.context import cpu_context
from portrait_backend.evaluation.held_out import with_true_pose
from portrait_backend.prior import create_prior
from portrait_backend.radiance.cameras import METRES_PER_UNIT
from portrait_backend.training.head_dataset import load_heads
from portrait_backend.training.hybrid_priors_data import read_view
from portrait_backend.training.prior_dataset import write_view
from portrait_backend.training.synthetic import DEPTH_SCALE_M
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_shared.settings import PriorSettings


def render_coarse_views(data: Path, out: Path, count: int | None, fit_steps: int) -> int:
    """Render up to `count` identities of `data` into `out`; returns how many were made now."""
    folders = [f for f in sorted(data.glob("id*")) if (f / "cameras.json").exists()][:count]
    heads = with_true_pose(load_heads(data, count, seed=1, input_views=(0,)))
    prior, settings, made = create_prior("starter"), PriorSettings(fit_steps=fit_steps), 0
    for row, folder in enumerate(folders):
        home = out / folder.name
        if (home / "cameras.json").exists():
            continue
        home.mkdir(parents=True, exist_ok=True)
        head = prior.initialise(portrait_of(heads, row), settings, cpu_context(row))
        meta = json.loads((folder / "cameras.json").read_text())
        for record in meta["views"]:
            write_view(head, read_view(folder, record["view"]).camera, home, record["view"])
        meta |= {"metres_per_unit": METRES_PER_UNIT, "depth_scale_m": DEPTH_SCALE_M, "provider": "starter"}
        for record in meta["views"]:
            camera = read_view(folder, record["view"]).camera
            pose = camera.world_to_camera.clone()
            pose[:, 3] *= METRES_PER_UNIT
            record["world_to_camera"] = pose.tolist()
        part = home / "cameras.json.part"
        part.write_text(json.dumps(meta))
        part.rename(home / "cameras.json")
        made += 1
    return made
