"""Table 1: a head's five views against its photo, the photo's own view against it, and neighbouring views against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.evaluation.candidates import REFERENCE, Candidate, FieldHead, Renderable, ViewImages
from portrait_backend.evaluation.geometry_metrics import consistency
from portrait_backend.evaluation.image_metrics import as_bytes, mask_iou, over_grey, over_white, psnr, sharpness, ssim
from portrait_backend.evaluation.scores import Score
from portrait_backend.evaluation.view_models import ViewModel
from portrait_backend.outputs import VIEWS
from portrait_backend.portrait.faces import EYE_A, EYE_B, FaceDetector, find_face
from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_shared.errors import PortraitDiffusionError

TABLE_VIEWS = ("right", "right_front", "front", "left_front", "left")
"""The paper's five views, in the order in which the head turns: neighbours stand side by side."""
SHOWN_VIEWS = (*TABLE_VIEWS, "back")
WARP_SIZE = 256
"""Side in pixels of the renders that are warped into one another."""
SECTION = "photos"


@dataclass
class Reference:
    """A photo as the metrics need it: its sharpness at `size` px, its features for every learned metric; a detector for landmarks."""

    portrait: Portrait
    detector: FaceDetector
    size: int
    sharpness: float | None
    features: list[Any] = field(default_factory=list)


def reference_of(portrait: Portrait, models: list[ViewModel], detector: FaceDetector, size: int = PORTRAIT_SIZE) -> Reference:
    """Prepare the photo once for all heads that are compared with it; views are compared at `size` px a side."""
    view = as_output(torch.cat([portrait.rgba[..., :3], (portrait.matte * (portrait.valid > 0.5))[..., None]], -1), size)
    image = over_white(view.rgb, view.alpha)
    return Reference(portrait, detector, size, _sharpness(view), [model.features(image) for model in models])


def score_photo(
    subject: str, method: str, candidate: Candidate, reference: Reference, models: list[ViewModel], section: str = SECTION
) -> tuple[list[Score], dict[str, NDArray[np.uint8]]]:
    """Return all scores of a head against its photo, and its views over white (S, S, 3) u8 by name."""
    found: list[tuple[str, str, float | None]] = []
    if isinstance(candidate, ViewImages):
        outputs = {name: as_output(image, reference.size) for name, image in candidate.images.items() if name != REFERENCE}
        own = candidate.images.get(REFERENCE)
        same = None if own is None else as_output(own, PORTRAIT_SIZE)
    else:
        small = {name: candidate.render(Camera.orbit(*VIEWS[name], WARP_SIZE)) for name in TABLE_VIEWS}
        found += _consistency_figures(small)
        outputs, same = _views(candidate, small, reference.size), candidate.render(reference.portrait.camera)
    if same is not None:
        outputs[REFERENCE] = same
        found += [(REFERENCE, name, value) for name, value in reference_figures(same, reference.portrait, reference.detector).items()]
    for view in TABLE_VIEWS:
        if view in outputs:
            found += [(view, name, value) for name, value in _view_figures(outputs[view], reference, models).items()]
    pictures = {name: _picture(outputs[name]) for name in (*SHOWN_VIEWS, REFERENCE) if name in outputs}
    return [Score(section, subject, method, *row) for row in found], pictures


def _views(candidate: Renderable, small: dict[str, RenderOutput], size: int) -> dict[str, RenderOutput]:
    """Return the shown views at `size` px: the pictures that lie in the job's folder if they are large enough, else renders."""
    stored = candidate.images if isinstance(candidate, FieldHead) else {}
    views = {}
    for name in SHOWN_VIEWS:
        if name in stored and min(stored[name].shape[:2]) >= size:
            views[name] = as_output(stored[name], size)
        elif size == WARP_SIZE and name in small:
            views[name] = small[name]
        else:
            views[name] = candidate.render(Camera.orbit(*VIEWS[name], size))
    return views


def _consistency_figures(views: dict[str, RenderOutput]) -> list[tuple[str, str, float | None]]:
    """Return the consistency of each table view with its neighbour."""
    found: list[tuple[str, str, float | None]] = []
    for a, b in pairwise(TABLE_VIEWS):
        cameras = (Camera.orbit(*VIEWS[name], WARP_SIZE) for name in (a, b))
        error, seen = consistency(views[a], next(cameras), views[b], next(cameras))
        found += [(a, "consistency", error), (a, "consistency_seen", seen)]
    return found


def landmark_error(rendered: NDArray[np.uint8], portrait: Portrait, detector: FaceDetector) -> float | None:
    """Return how far the landmarks of a render of the photo's view (512, 512, 3) lie from the photo's: mean, in outer-eye distances.

    None if no face is found in the render.
    """
    try:
        face, _, _ = find_face(rendered, detector)
    except PortraitDiffusionError:
        return None
    marks = portrait.landmarks.numpy()
    eyes = float(np.linalg.norm(marks[EYE_A] - marks[EYE_B]))
    return float(np.linalg.norm(face.landmarks - marks, axis=1).mean() / eyes)


def matte_iou(alpha: Tensor, portrait: Portrait) -> float:
    """Return intersection over union of a silhouette (512, 512) and the photo's matte at 0.5, where the photo is valid."""
    inside = (portrait.valid > 0.5).float()
    return mask_iou(alpha * inside, portrait.matte * inside)


def reference_figures(view: RenderOutput, portrait: Portrait, detector: FaceDetector) -> dict[str, float | None]:
    """Return landmark error [%], matte IoU, PSNR and SSIM of a render of the photo's own view (512, 512)."""
    shown = over_grey(view.rgb, view.alpha)
    solid = (portrait.matte > 0.9) & (portrait.valid > 0.5)
    marks = landmark_error(as_bytes(shown), portrait, detector)
    photo = over_grey(portrait.rgba[..., :3] * portrait.matte[..., None], portrait.matte)
    return {
        "landmark_error": None if marks is None else 100 * marks,
        "matte_iou": matte_iou(view.alpha, portrait),
        "reference_psnr": psnr(shown, photo, solid),
        "reference_ssim": ssim(shown, photo, solid),
    }


def _view_figures(view: RenderOutput, reference: Reference, models: list[ViewModel]) -> dict[str, float | None]:
    image, mine = over_white(view.rgb, view.alpha), _sharpness(view)
    figures: dict[str, float | None] = {"sharpness": mine / reference.sharpness if mine is not None and reference.sharpness else None}
    for model, features in zip(models, reference.features, strict=True):
        figures |= model.compare(features, model.features(image))
    return figures


def _sharpness(view: RenderOutput) -> float | None:
    return sharpness(view.rgb / view.alpha.clamp_min(1e-6)[..., None], view.alpha)


def as_output(rgba: Tensor, size: int) -> RenderOutput:
    """Return a straight rgba image (H, W, 4) as a render of `size` px a side, without depth."""
    premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1).permute(2, 0, 1)[None]
    way: dict[str, Any] = {"mode": "area"} if rgba.shape[0] >= size else {"mode": "bilinear", "align_corners": False}
    x = F.interpolate(premultiplied, size=(size, size), **way)[0].permute(1, 2, 0)
    return RenderOutput(x[..., :3], x[..., 3], torch.zeros(size, size))


def _picture(view: RenderOutput) -> NDArray[np.uint8]:
    return as_bytes(over_white(view.rgb, view.alpha))
