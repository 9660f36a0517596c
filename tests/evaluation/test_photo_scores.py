"""A head against its photo: one that shows exactly the photo scores perfect, a worse one worse; images take part as far as they go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from portrait_backend.evaluation.candidates import FieldHead, ViewImages
from portrait_backend.evaluation.image_metrics import MAX_PSNR
from portrait_backend.evaluation.photo_scores import SHOWN_VIEWS, TABLE_VIEWS, Reference, reference_of, score_photo
from portrait_backend.evaluation.scores import Score
from portrait_backend.outputs import VIEWS
from portrait_backend.portrait.faces import EYE_A, EYE_B, Candidate, Face
from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from tests.cli import fake_parts
from tests.evaluation.balls import PaintedBall

MARKS = np.random.default_rng(0).uniform(180, 330, (468, 2))
MARKS[EYE_A], MARKS[EYE_B] = (200, 240), (300, 240)


class Marks:
    """Finds the landmarks where they are, moved by `off` px; none in an image of one colour."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def candidates(self, rgb: np.ndarray) -> list[Candidate]:
        whole = len(rgb) == PORTRAIT_SIZE and int(np.ptp(rgb)) > 0
        return [Candidate((256.0, 256.0), 150.0, 0.0, 1.0)] if whole else []

    def measure(self, rgb: np.ndarray, candidate: Candidate) -> Face:
        return Face(MARKS + np.array([self.off, 0.0]), 0.001)


def photo_of(ball: PaintedBall) -> Portrait:
    """The photo that the ball's own render is."""
    sitter = replace(fake_parts.portrait(), landmarks=torch.from_numpy(MARKS).float())
    view = ball.render(sitter.camera)
    rgba = torch.cat([view.rgb, view.alpha[..., None]], -1)
    return replace(sitter, rgba=rgba, image=view.rgb + 0.5 * (1 - view.alpha[..., None]))


def reference(off: float = 0.0, size: int = 128) -> Reference:
    return reference_of(photo_of(PaintedBall()), [], Marks(off), size)


def figures(scores: list[Score], view: str) -> dict[str, float | None]:
    return {score.metric: score.value for score in scores if score.view == view}


def test_a_head_that_shows_the_photo_is_perfect() -> None:
    scores, pictures = score_photo("anna", "exact", PaintedBall(), reference(), [])
    perfect = {"landmark_error": 0, "matte_iou": 1, "reference_psnr": MAX_PSNR, "reference_ssim": 1}
    assert figures(scores, "reference") == pytest.approx(perfect, abs=1e-5)
    assert {score.view for score in scores if score.metric == "sharpness"} == set(TABLE_VIEWS)
    assert figures(scores, "front")["sharpness"] == pytest.approx(1, abs=0.02), "as sharp as the photo"
    assert figures(scores, "right_front")["consistency"] < 2e-3  # type: ignore[operator]
    assert set(pictures) == {*SHOWN_VIEWS, "reference"} and all(picture.dtype == np.uint8 for picture in pictures.values())


def test_landmarks_are_measured_in_outer_eye_distances_and_can_be_missing() -> None:
    scores, _ = score_photo("anna", "off", PaintedBall(), reference(off=5.0), [])
    assert figures(scores, "reference")["landmark_error"] == pytest.approx(5.0)  # 5 px of 100 px, in percent

    class Nothing(PaintedBall):
        def render(self, camera: Camera, size: int | None = None, normals: bool = False) -> RenderOutput:
            view = super().render(camera, size, normals)
            return RenderOutput(0 * view.rgb, 0 * view.alpha, 0 * view.depth, None, view.normals)

    found = figures(score_photo("anna", "nothing", Nothing(), reference(), [])[0], "reference")
    assert found["landmark_error"] is None and found["matte_iou"] == 0


def test_a_wrong_colour_and_a_wrong_outline_cost() -> None:
    darker = PaintedBall(lambda points: 0.4 * torch.ones_like(points))
    small = reference()
    small.portrait = replace(small.portrait, rgba=small.portrait.rgba.clone())
    small.portrait.rgba[:, 256:] = 0  # half a sitter
    dark, half = (
        figures(score_photo("a", "x", head, where, [])[0], "reference") for head, where in ((darker, reference()), (PaintedBall(), small))
    )
    assert dark["reference_psnr"] < 25 and dark["matte_iou"] == 1  # type: ignore[operator]
    assert half["matte_iou"] == pytest.approx(0.5, abs=0.01) and half["reference_psnr"] == MAX_PSNR


def test_images_have_no_consistency_and_need_no_reference() -> None:
    ball = PaintedBall()
    views = {name: ball.render(Camera.orbit(*VIEWS[name], 128)) for name in ("front", "left")}
    images = {name: torch.cat([view.rgb, view.alpha[..., None]], -1) for name, view in views.items()}
    scores, pictures = score_photo("anna", "tool", ViewImages(images), reference(), [])
    assert {(score.view, score.metric) for score in scores} == {("front", "sharpness"), ("left", "sharpness")}
    assert set(pictures) == {"front", "left"}
    own = ball.render(fake_parts.portrait().camera)
    images["reference"] = torch.cat([own.rgb, own.alpha[..., None]], -1)
    assert figures(score_photo("anna", "tool", ViewImages(images), reference(), [])[0], "reference")["matte_iou"] == 1


def test_pictures_that_the_job_holds_are_taken() -> None:
    white = {name: torch.ones(128, 128, 4) for name in SHOWN_VIEWS}
    head: object = PaintedBall()
    field = FieldHead(head, torch.device("cpu"), white)  # type: ignore[arg-type]
    _, pictures = score_photo("anna", "field", field, reference(), [])
    assert all((pictures[name] == 255).all() for name in SHOWN_VIEWS) and pictures["reference"].min() < 200
    _, pictures = score_photo("anna", "field", field, reference(size=256), [])
    assert pictures["front"].min() < 200, "those that are too small are rendered"
