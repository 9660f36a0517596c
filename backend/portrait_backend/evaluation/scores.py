"""The figures of an evaluation: what each means, single scores, and their means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A figure: label, unit, whether more or less of it is better ("": neither), digits to show, what it is."""

    label: str
    unit: str
    better: Literal["more", "less", ""]
    digits: int
    what: str


METRICS: dict[str, Metric] = {
    "clip_i": Metric("CLIP-I", "", "more", 4, "cosine of projected CLIP image features, view against photo"),
    "clip_i_hidden": Metric("CLIP-I (hidden)", "", "more", 4, "the same of the unprojected class token"),
    "lpips_alex": Metric("LPIPS alex", "", "less", 4, "learned perceptual distance on AlexNet, view against photo (or truth)"),
    "lpips_vgg": Metric("LPIPS vgg", "", "less", 4, "learned perceptual distance on VGG-16, view against photo (or truth)"),
    "identity": Metric("ID", "", "more", 4, "cosine of dlib's face-recognition embeddings, view against photo"),
    "identity_distance": Metric("ID distance", "", "less", 3, "their Euclidean distance; dlib takes less than 0.6 for the same person"),
    "landmark_error": Metric(
        "landmarks", "%", "less", 2, "mean distance of the face landmarks at the photo's view, of the outer-eye distance"
    ),
    "matte_iou": Metric("matte IoU", "", "more", 3, "silhouette against the photo's matte at the photo's view"),
    "reference_psnr": Metric("PSNR", "dB", "more", 2, "inside the matte at the photo's view"),
    "reference_ssim": Metric("SSIM", "", "more", 3, "inside the matte at the photo's view"),
    "sharpness": Metric("sharpness", "x", "", 2, "mean absolute Laplacian inside the head, 1 = as in the photo; noise counts too"),
    "consistency": Metric("inconsistency", "", "less", 4, "mean colour error of one view warped to its neighbour, pixels seen by both"),
    "consistency_seen": Metric("seen twice", "", "", 3, "share of a view's surface that its neighbour sees too"),
    "psnr": Metric("PSNR", "dB", "more", 2, "whole image over grey against the truth"),
    "foreground_psnr": Metric("PSNR fg", "dB", "more", 2, "over the true foreground"),
    "ssim": Metric("SSIM", "", "more", 3, "whole image over grey against the truth"),
    "iou": Metric("mask IoU", "", "more", 3, "silhouette against the truth"),
    "depth_error": Metric("depth", "mm", "less", 2, "mean absolute error of z-depth where both have surface"),
    "normal_error": Metric("normals", "degrees", "less", 2, "mean angle where both have surface"),
    "chamfer": Metric("chamfer", "mm", "less", 2, "mean nearest distance between the surfaces, both ways"),
}


@dataclass(frozen=True)
class Score:
    """One figure. subject: photo or identity; view: "front", "left", ... or "all"; value: None where it can't be measured."""

    section: str
    subject: str
    method: str
    view: str
    metric: str
    value: float | None


@dataclass(frozen=True)
class Mean:
    """A mean over the scores that could be measured, and how many could not."""

    value: float | None
    count: int
    missing: int

    def record(self) -> dict[str, float | int | None]:
        """Return the JSON form."""
        return {"value": None if self.value is None else round(self.value, 6), "count": self.count, "missing": self.missing}


def mean(scores: Iterable[Score]) -> Mean:
    """Return the mean of the scores."""
    values = [score.value for score in scores]
    known = [value for value in values if value is not None]
    return Mean(float(np.mean(known)) if known else None, len(known), len(values) - len(known))


def methods_of(scores: Iterable[Score]) -> list[str]:
    """Return the methods in the order of their first score."""
    return list(dict.fromkeys(score.method for score in scores))


def table(scores: list[Score]) -> dict[str, dict[str, Mean]]:
    """Return {method: {metric: mean over subjects and views}}, metrics in the order of METRICS."""
    found: dict[str, dict[str, Mean]] = {}
    for method in methods_of(scores):
        mine = [score for score in scores if score.method == method]
        present = {score.metric for score in mine}
        found[method] = {name: mean(s for s in mine if s.metric == name) for name in METRICS if name in present}
    return found


def by_view(scores: list[Score], metric: str) -> dict[str, dict[str, Mean]]:
    """Return {method: {view: mean over subjects}} of one metric."""
    found: dict[str, dict[str, Mean]] = {}
    for method in methods_of(scores):
        mine = [s for s in scores if s.method == method and s.metric == metric]
        views = dict.fromkeys(s.view for s in mine)
        found[method] = {view: mean(s for s in mine if s.view == view) for view in views}
    return found


def shown(metric: str, average: Mean | None) -> tuple[str, str]:
    """Return a mean for people: rounded, a dash where nothing could be measured; and how many were missing, "" if none was."""
    if average is None:
        return "–", ""
    value = "–" if average.value is None else f"{average.value:.{METRICS[metric].digits}f}"
    return value, f"{average.missing} of {average.count + average.missing} missing" if average.missing else ""


def show(metric: str, average: Mean | None) -> str:
    """Return a mean as one text: "0.90 (1 of 5 missing)"."""
    value, missing = shown(metric, average)
    return f"{value} ({missing})" if missing else value
