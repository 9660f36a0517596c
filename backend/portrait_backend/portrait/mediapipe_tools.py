"""MediaPipe behind our interfaces: face detection, face mesh and person segmentation, from the models in its wheel.

MediaPipe is imported on first use (0.8 s) and works offline. Its C++ core writes chatter straight to file
descriptor 2; `quiet_stderr` holds that back and shows it only with an error.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portrait_backend.portrait.crop import sample, transform
from portrait_backend.portrait.faces import LANDMARK_COUNT, Candidate, Face
from portrait_shared.errors import PortraitDiffusionError

DETECTION_SCORE = 0.5
MESH_VIEWS = ((0.40, 0.0), (0.36, -5.0), (0.36, 5.0), (0.45, -5.0), (0.45, 5.0))
"""(face width as a share of the crop, extra turn in degrees) of the crops whose landmarks are averaged."""
MESH_SIZE = 384
BLANK = np.zeros((64, 64, 3), np.uint8)
"""Worker threads print their start-up chatter with the first image: it is processed under `quiet_stderr`."""
MESH_AGREEMENT = 0.02
"""Largest distance, in face widths, of one crop's landmarks from the median of all crops."""
NEIGHBOUR_LIMIT = 0.7
"""A mesh whose centre lies further than this many face widths from the candidate belongs to somebody else."""
GENERAL = 0
"""The segmentation model for any scene; the landscape one (1) bleeds more into the background around hair."""
BOX_TO_FACE = 0.85
"""Face width over detector box width, measured on upright faces."""


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what is written to file descriptor 2; if the block raises, pass the text on (without one, do nothing)."""
    try:
        saved = os.dup(2)
    except OSError:  # a GUI process without a console
        yield
        return
    with tempfile.TemporaryFile() as held:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


@contextmanager
def without_plots() -> Iterator[None]:
    """Let MediaPipe's drawing helpers, which nobody here calls, find an empty `matplotlib.pyplot`: the real one takes as long as the rest.

    Does nothing where matplotlib is loaded already; afterwards it can be imported as ever.
    """
    if "matplotlib" in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in ("matplotlib", "matplotlib.pyplot")}
    stand_ins["matplotlib"].__dict__["pyplot"] = stand_ins["matplotlib.pyplot"]
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def load_solutions() -> ModuleType:
    """Import `mediapipe.solutions`; raises PortraitDiffusionError mediapipe-missing if it isn't installed."""
    os.environ.setdefault("GLOG_minloglevel", "2")
    try:
        with quiet_stderr(), without_plots():
            from mediapipe.python import solutions
    except ImportError as error:
        raise PortraitDiffusionError(
            "mediapipe-missing", f"MediaPipe can't be imported ({error})", "portrait-diffusion doctor says which package is missing"
        ) from error
    return solutions


class MediaPipeFaces:
    """FaceDetector on MediaPipe's full-range face detection and face mesh; a context manager, for one thread."""

    def __init__(self) -> None:
        solutions = load_solutions()
        with quiet_stderr():
            self._detection = solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=DETECTION_SCORE)
            self._mesh = solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True)
            self._detection.process(BLANK)
            self._mesh.process(BLANK)

    def __enter__(self) -> MediaPipeFaces:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with quiet_stderr():
            self._detection.close()
            self._mesh.close()

    def candidates(self, rgb: NDArray[np.uint8]) -> list[Candidate]:
        """Find roughly upright faces (tilted up to about 50 degrees) in rgb (H, W, 3); centres and widths in its pixels."""
        with quiet_stderr():
            found = self._detection.process(np.ascontiguousarray(rgb)).detections or []
        height, width = rgb.shape[:2]
        return [_candidate(detection, width, height) for detection in found]

    def measure(self, rgb: NDArray[np.uint8], candidate: Candidate) -> Face | None:
        """Measure the landmarks of a candidate in rgb (H, W, 3), None if there is no face after all.

        The mesh runs on several upright crops of slightly different scale and turn; their mean has less jitter.
        """
        seen = [points for share, turn in MESH_VIEWS if (points := self._mesh_points(rgb, candidate, share, turn)) is not None]
        if 2 * len(seen) < len(MESH_VIEWS):
            return None
        stack = np.stack(seen)
        distance = np.linalg.norm(stack - np.median(stack, 0), axis=2).mean(1) / candidate.width
        agreeing = distance <= max(MESH_AGREEMENT, float(distance.min()))
        return Face(np.asarray(stack[agreeing].mean(0)), float(distance.mean()))

    def _mesh_points(self, rgb: NDArray[np.uint8], candidate: Candidate, share: float, turn: float) -> NDArray[np.float64] | None:
        to_photo = _upright_crop(candidate, share, turn)
        crop = sample(rgb, to_photo, MESH_SIZE).clip(0, 255).astype(np.uint8)
        with quiet_stderr():
            faces = self._mesh.process(crop).multi_face_landmarks or []
        if not faces:
            return None
        points = transform(to_photo, np.array([[p.x, p.y] for p in faces[0].landmark[:LANDMARK_COUNT]], np.float64) * MESH_SIZE)
        is_neighbour = np.hypot(*(points.mean(0) - candidate.centre)) > NEIGHBOUR_LIMIT * candidate.width
        return None if is_neighbour else points


class MediaPipeSegmenter:
    """PersonSegmenter on MediaPipe's selfie segmentation; a context manager, for one thread."""

    def __init__(self) -> None:
        solutions = load_solutions()
        with quiet_stderr():
            self._model = solutions.selfie_segmentation.SelfieSegmentation(model_selection=GENERAL)
            self._model.process(BLANK)

    def __enter__(self) -> MediaPipeSegmenter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with quiet_stderr():
            self._model.close()

    def probability(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probability (H, W) that a pixel belongs to a person: the mean of the image and its mirror."""
        with quiet_stderr():
            seen = self._model.process(np.ascontiguousarray(rgb)).segmentation_mask.copy()
            mirrored = self._model.process(np.ascontiguousarray(rgb[:, ::-1])).segmentation_mask[:, ::-1]
        return np.clip((seen + mirrored) / 2, 0, 1).astype(np.float32)


def _candidate(detection: Any, width: int, height: int) -> Candidate:
    location = detection.location_data
    eye_a, eye_b = (np.array([p.x * width, p.y * height]) for p in location.relative_keypoints[:2])
    box = location.relative_bounding_box
    centre = (box.xmin + box.width / 2) * width, (box.ymin + box.height / 2) * height
    roll = float(np.degrees(np.arctan2(*(eye_b - eye_a)[::-1])))
    return Candidate(centre, box.width * width * BOX_TO_FACE, roll, float(detection.score[0]))


def _upright_crop(candidate: Candidate, share: float, turn: float) -> NDArray[np.float64]:
    """Return (2, 3): continuous crop px -> photo px, for a crop in which the candidate stands upright."""
    scale = candidate.width / share / MESH_SIZE
    angle = np.radians(candidate.roll + turn)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.concatenate([linear, (np.asarray(candidate.centre) - linear @ np.full(2, MESH_SIZE / 2))[:, None]], 1)
