"""Heads against the truth: synthetic heads or scans with known cameras, in the layout of `training/synthetic.py`.

The input view is treated like a photo (`synthetic_portrait.portrait_of`); the head is seen from the truth's cameras, so that errors of pose
and scale count. Another tool's result for the same input is placed by its face first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from portrait_backend.evaluation.candidates import Candidate, Renderable, ViewImages
from portrait_backend.evaluation.geometry_metrics import SOLID, back_project, chamfer_mm, depth_error_mm, normal_error_degrees
from portrait_backend.evaluation.image_metrics import as_bytes, over_grey, over_white, ssim
from portrait_backend.evaluation.registration import Placing, Similarity, lifted_landmarks, onto_surface
from portrait_backend.evaluation.scores import Score
from portrait_backend.evaluation.view_models import ViewModel
from portrait_backend.portrait.faces import FaceDetector
from portrait_backend.portrait.head_pose import LANDMARKS
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_backend.training.head_dataset import HeadDataset, camera_at, decode_depth
from portrait_backend.training.prior_evaluation import VIEWS, image_scores
from portrait_shared.errors import PortraitDiffusionError

SECTION = "ground_truth"
SIZE = 160
"""Side in pixels at which images are compared."""
SURFACE_VIEWS = (1, 3, 5, 6, 7, 9, 11, 13)
"""Views whose depth maps make the surfaces that the chamfer distance compares."""
STRIP = "truth above, result below"
HALF_EXTENT = 0.5
"""Half the side of the box, head units, in which surfaces are compared: shoulders beyond it don't count."""
SHARED_WITH_PHOTOS = ("lpips_alex", "lpips_vgg", "clip_i", "clip_i_hidden")
"""Learned metrics that make sense between a view and its own truth."""


@dataclass(frozen=True)
class Truth:
    """What a camera of the data set saw, as a render, and that camera."""

    camera: Camera
    view: RenderOutput
    azimuth: float


def truths(data: HeadDataset, identity: int, views: tuple[int, ...], home: Path | None = None, size: int = SIZE) -> Iterator[Truth]:
    """Yield the truth of some views of an identity; `home`, its folder, gives the normals where there are any."""
    at = ((torch.arange(size) + 0.5) * data.size / size).long()
    for view in views:
        rgba = data.rgba[identity, view].float().permute(2, 0, 1)[None] / 255
        small = F.interpolate(torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1), size=(size, size), mode="area")[0].permute(1, 2, 0)
        depth = decode_depth(data.depth[identity, view])[at][:, at]
        normals = None if home is None else _normals(home / f"normal_{view:03d}.png", at)
        seen = RenderOutput(small[..., :3], small[..., 3], depth, None, normals)
        yield Truth(camera_at(data, identity, view, size), seen, float(data.angles[identity, view, 0]))


def _normals(path: Path, at: Tensor) -> Tensor | None:
    """Return world normals (S, S, 3) of a stored map; black, which is no unit vector, stands for nothing."""
    if not path.exists():
        return None
    stored = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32))[at][:, at]
    return (stored / 127.5 - 1) * (stored.sum(-1, keepdim=True) > 0)


def onto_truth(data: HeadDataset, identity: int, detector: FaceDetector) -> Placing:
    """Place another tool's head by its face: on the landmarks that the detector finds in the truth's front view, on the true surface."""

    def place(which: NDArray[np.int64], points: NDArray[np.float64]) -> Similarity:
        (truth,) = truths(data, identity, VIEWS["front"], size=data.size)
        found = lifted_landmarks(truth.view, truth.camera, detector)
        if found is None:
            raise PortraitDiffusionError("peer-no-face", "no face is found in the truth's front view", "Compare it with photos instead")
        landmarks = np.full((LANDMARKS, 3), np.nan)
        landmarks[found[0]] = found[1]
        return onto_surface(landmarks)(which, points)

    return place


def score_identity(
    name: str,
    method: str,
    candidate: Candidate,
    data: HeadDataset,
    identity: int,
    home: Path,
    models: list[ViewModel],
    section: str = SECTION,
) -> tuple[list[Score], dict[str, NDArray[np.uint8]]]:
    """Return the scores of a head against the truth of an identity, and a strip (2 * SIZE, n * SIZE, 3) of truth over render by its name.

    Raises PortraitDiffusionError ``peer-unreadable`` for images: they can't be seen from the truth's cameras.
    """
    if isinstance(candidate, ViewImages):
        raise PortraitDiffusionError("peer-unreadable", "images can't be seen from the truth's cameras", "Give meshes for --ground-truth")
    head: Renderable = candidate
    found: list[tuple[str, str, float | None]] = []
    tiles = []
    for group, views in VIEWS.items():
        for truth in truths(data, identity, views, home):
            out = head.render(truth.camera, normals=truth.view.normals is not None)
            found += [(group, metric, value) for metric, value in view_scores(out, truth.view, models).items()]
            tiles.append(torch.cat([over_white(truth.view.rgb, truth.view.alpha), over_white(out.rgb, out.alpha)]))
    found.append(("all", "chamfer", chamfer(head, data, identity)))
    return [Score(section, name, method, *row) for row in found], {STRIP: as_bytes(torch.cat(tiles, 1))}


def image_figures(out: RenderOutput, truth: RenderOutput) -> dict[str, float]:
    """Return PSNR, PSNR over the true foreground, SSIM and mask IoU of a render (H, W), over grey."""
    shown, real = (over_grey(x.rgb, x.alpha) for x in (out, truth))
    psnr, foreground, iou = image_scores(shown, out.alpha, real, truth.alpha)
    return {"psnr": psnr, "foreground_psnr": foreground, "ssim": ssim(shown, real), "iou": iou}


def view_scores(out: RenderOutput, truth: RenderOutput, models: list[ViewModel]) -> dict[str, float | None]:
    """Return the scores of one render (H, W) against the truth."""
    both = (out.alpha > SOLID) & (truth.depth > 0) & (truth.alpha > SOLID)
    scores = {**image_figures(out, truth), "depth_error": depth_error_mm(out.depth, truth.depth, both)}
    if out.normals is not None and truth.normals is not None:
        known = both & (truth.normals.norm(dim=-1) > 0.5) & (out.normals.norm(dim=-1) > 0.5)
        scores["normal_error"] = normal_error_degrees(out.normals, truth.normals, known)
    for model in models:
        learned = model.compare(model.features(over_white(truth.rgb, truth.alpha)), model.features(over_white(out.rgb, out.alpha)))
        scores |= {name: value for name, value in learned.items() if name in SHARED_WITH_PHOTOS}
    return scores


def chamfer(head: Renderable, data: HeadDataset, identity: int) -> float | None:
    """Return the chamfer distance in mm of the surfaces that the surface views see, inside the box; None where one of them is empty."""
    views = tuple(v for v in SURFACE_VIEWS if v < data.rgba.shape[1])
    real, mine = [], []
    for truth in truths(data, identity, views):
        real.append(back_project(truth.view.depth, truth.camera))
        out = head.render(truth.camera)
        mine.append(back_project(torch.where(out.alpha > 0.5, out.depth, 0.0), truth.camera))
    a, b = (x[(np.abs(x) < HALF_EXTENT).all(1)] for x in (np.concatenate(real), np.concatenate(mine)))
    return chamfer_mm(a, b) if len(a) and len(b) else None
