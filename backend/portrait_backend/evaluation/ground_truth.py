"""Heads against the truth: synthetic heads or scans with known cameras, in the layout of `training/synthetic.py`.

The input view is treated like a photo (`held_out.portrait_of`); the head is seen from the truth's cameras, so that errors of pose
and scale count. Another tool's result for the same input is placed by the truth's own landmarks first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from portrait_backend.evaluation.candidates import Candidate, Renderable, ViewImages
from portrait_backend.evaluation.geometry_metrics import SOLID, depth_error_mm, normal_error_degrees
from portrait_backend.evaluation.held_out import SIZE, SURFACE_VIEWS, back_project, camera_at, chamfer_mm
from portrait_backend.evaluation.image_metrics import over_white, ssim
from portrait_backend.evaluation.scores import Score
from portrait_backend.evaluation.view_models import ViewModel
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_backend.training.head_dataset import HeadDataset, decode_depth
from portrait_backend.training.prior_evaluation import VIEWS, image_scores
from portrait_shared.errors import PortraitDiffusionError

SECTION = "ground_truth"
HALF_EXTENT = 0.5
"""Half the side of the box, head units, in which surfaces are compared: shoulders beyond it don't count."""
SHARED_WITH_PHOTOS = ("lpips_alex", "lpips_vgg", "clip_i", "clip_i_hidden")
"""Learned metrics that make sense between a view and its own truth."""


@dataclass(frozen=True)
class Truth:
    """What a camera of the data set saw, as a render of `SIZE` px a side, and that camera."""

    camera: Camera
    view: RenderOutput
    azimuth: float


def truths(data: HeadDataset, folder: Path, identity: int, views: tuple[int, ...]) -> Iterator[Truth]:
    """Yield the truth of some views of an identity; `folder` is that of the data set, whose normals are read when there are any."""
    home = [f for f in sorted(folder.glob("id*")) if (f / "cameras.json").exists()][identity]
    at = ((torch.arange(SIZE) + 0.5) * data.size / SIZE).long()
    for view in views:
        rgba = data.rgba[identity, view].float().permute(2, 0, 1)[None] / 255
        small = F.interpolate(torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1), size=(SIZE, SIZE), mode="area")[0].permute(1, 2, 0)
        depth = decode_depth(data.depth[identity, view])[at][:, at]
        seen = RenderOutput(small[..., :3], small[..., 3], depth, None, _normals(home / f"normal_{view:03d}.png", at))
        yield Truth(camera_at(data, identity, view, SIZE), seen, float(data.angles[identity, view, 0]))


def _normals(path: Path, at: Tensor) -> Tensor | None:
    """Return world normals (SIZE, SIZE, 3) of a stored map; black, which is no unit vector, stands for nothing."""
    if not path.exists():
        return None
    stored = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32))[at][:, at]
    return (stored / 127.5 - 1) * (stored.sum(-1, keepdim=True) > 0)


def score_identity(
    name: str,
    method: str,
    candidate: Candidate,
    data: HeadDataset,
    folder: Path,
    identity: int,
    models: list[ViewModel],
) -> tuple[list[Score], Tensor]:
    """Return the scores of a head against the truth of an identity, and a strip (2 * SIZE, n * SIZE, 3) of truth over render.

    Raises PortraitDiffusionError ``peer-unreadable`` for images: they can't be seen from the truth's cameras.
    """
    if isinstance(candidate, ViewImages):
        raise PortraitDiffusionError("peer-unreadable", "images can't be seen from the truth's cameras", "Give meshes for --ground-truth")
    head: Renderable = candidate
    found: list[tuple[str, str, float | None]] = []
    tiles = []
    for group, views in VIEWS.items():
        for truth in truths(data, folder, identity, views):
            out = head.render(truth.camera, normals=truth.view.normals is not None)
            found += [(group, metric, value) for metric, value in view_scores(out, truth.view, models).items()]
            tiles.append(torch.cat([over_white(truth.view.rgb, truth.view.alpha), over_white(out.rgb, out.alpha)]))
    found.append(("all", "chamfer", chamfer(head, data, folder, identity)))
    return [Score(SECTION, name, method, *row) for row in found], torch.cat(tiles, 1)


def view_scores(out: RenderOutput, truth: RenderOutput, models: list[ViewModel]) -> dict[str, float | None]:
    """Return the scores of one render (H, W) against the truth."""
    shown, real = ((x.rgb + 0.5 * (1 - x.alpha[..., None])).clamp(0, 1) for x in (out, truth))
    psnr, foreground, iou = image_scores(shown, out.alpha, real, truth.alpha)
    both = (out.alpha > SOLID) & (truth.depth > 0) & (truth.alpha > SOLID)
    scores: dict[str, float | None] = {"psnr": psnr, "foreground_psnr": foreground, "ssim": ssim(shown, real), "iou": iou}
    scores["depth_error"] = depth_error_mm(out.depth, truth.depth, both)
    if out.normals is not None and truth.normals is not None:
        known = both & (truth.normals.norm(dim=-1) > 0.5) & (out.normals.norm(dim=-1) > 0.5)
        scores["normal_error"] = normal_error_degrees(out.normals, truth.normals, known)
    for model in models:
        learned = model.compare(model.features(over_white(truth.rgb, truth.alpha)), model.features(over_white(out.rgb, out.alpha)))
        scores |= {name: value for name, value in learned.items() if name in SHARED_WITH_PHOTOS}
    return scores


def chamfer(head: Renderable, data: HeadDataset, folder: Path, identity: int) -> float | None:
    """Return the chamfer distance in mm of the surfaces that the surface views see, inside the box; None where one of them is empty."""
    views = tuple(v for v in SURFACE_VIEWS if v < data.rgba.shape[1])
    real, mine = [], []
    for truth in truths(data, folder, identity, views):
        real.append(back_project(truth.view.depth, truth.camera))
        out = head.render(truth.camera)
        mine.append(back_project(torch.where(out.alpha > 0.5, out.depth, 0.0), truth.camera))
    a, b = (x[(np.abs(x) < HALF_EXTENT).all(1)] for x in (np.concatenate(real), np.concatenate(mine)))
    return chamfer_mm(a, b) if len(a) and len(b) else None


def names_of(folder: Path) -> list[str]:
    """Return the names of the finished identities, in the order in which `load_heads` reads them."""
    return [f.name for f in sorted(folder.glob("id*")) if (f / "cameras.json").exists()]
