"""Photo -> Portrait: find the face, fit its pose, crop it upright to 512 x 512, cut the sitter out.

The crop is where the fitted landmark model says that the reference camera's image lies (an FFHQ-like
crop, 1.34 times wider); the camera orbits to the face's yaw and pitch, the photo is never warped to the front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.portrait.crop import PADDED, ZERO, crop_to_photo, inverse, sample, transform
from portrait_backend.portrait.faces import Face, FaceDetector, candidate_of, find_face, measure_steadily
from portrait_backend.portrait.head_pose import HeadPose, LandmarkModel, fit_head_pose, load_landmark_model
from portrait_backend.portrait.matte import Matte, PersonSegmenter, make_matte, use_own_alpha
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces, MediaPipeSegmenter
from portrait_backend.portrait.parts import hair_pixels
from portrait_backend.portrait.read_image import Photo, read_photo
from portrait_backend.portrait.spill import clear_hair
from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError

MAX_YAW = 45.0
GOOD_YAW = 40.0
MAX_OUTSIDE = 0.35
LOW_DETAIL_PX = 128
BEHIND_ALPHA = 0.5
"""Grey put behind a photo's own alpha: whatever the file holds under clear pixels must not be looked at."""
SEED = 0
"""Seed of the matte's colour samples when no context is given."""


@dataclass(frozen=True)
class Alignment:
    """A fitted face: the face, its pose, crop px -> photo px (2, 3), and the other faces of the photo."""

    face: Face
    pose: HeadPose
    to_photo: NDArray[np.float64]
    others: tuple[Face, ...] = ()
    warnings: tuple[str, ...] = ()


def prepare_portrait(
    path: Path,
    context: Context | None = None,
    detector: FaceDetector | None = None,
    segmenter: PersonSegmenter | None = None,
) -> Portrait:
    """Read the photo at `path` and return its aligned Portrait; MediaPipe is used where no detector or segmenter is given.

    Raises PortraitDiffusionError: the codes of `read_photo` and `find_face`, and face-turned-away.
    """
    photo = read_photo(path)
    _report(context, 1)
    alignment = align(photo, detector)
    _report(context, 2)
    rng = np.random.default_rng(SEED if context is None else context.generator.initial_seed() % 2**63)
    return _cut_out(photo, alignment, segmenter, rng, context)


def align(photo: Photo, detector: FaceDetector | None = None) -> Alignment:
    """Find the sitter's face and fit pose and crop, refining the landmarks in the crop of the first fit."""
    if detector is None:
        with MediaPipeFaces() as own:
            return align(photo, own)
    model = load_landmark_model()
    seen = _over_grey(photo)
    face, others, warnings = find_face(seen, detector)
    pose = fit_head_pose(face.landmarks, model)
    face, pose = _refined(seen, face, pose, model, detector)
    if abs(pose.yaw) > MAX_YAW:
        raise PortraitDiffusionError(
            "face-turned-away",
            f"the face is turned {abs(pose.yaw):.0f} degrees to the side, more than {MAX_YAW:.0f}",
            f"Use a photo in which the face is turned at most {GOOD_YAW:.0f} degrees from the camera",
        )
    if face.width < LOW_DETAIL_PX:
        warnings = [*warnings, f"the face is only {face.width:.0f} px wide: expect little detail (200 px and more are good)"]
    return Alignment(face, pose, crop_to_photo(pose.similarity, PORTRAIT_SIZE), tuple(others), tuple(warnings))


def _refined(seen: NDArray[np.uint8], face: Face, pose: HeadPose, model: LandmarkModel, detector: FaceDetector) -> tuple[Face, HeadPose]:
    """Measure the face once more in its crop, where it has the size and turn that the mesh knows best."""
    to_photo = crop_to_photo(pose.similarity, PORTRAIT_SIZE)
    crop = _bytes(sample(seen, to_photo, PORTRAIT_SIZE))
    in_crop = replace(face, landmarks=transform(inverse(to_photo), face.landmarks))
    finer = measure_steadily(crop, candidate_of(in_crop), detector)
    if finer is None or finer.spread > face.spread:
        return face, pose
    finer = replace(finer, landmarks=transform(to_photo, finer.landmarks))
    return finer, fit_head_pose(finer.landmarks, model)


def _cut_out(
    photo: Photo, alignment: Alignment, segmenter: PersonSegmenter | None, rng: np.random.Generator, context: Context | None
) -> Portrait:
    if segmenter is None:
        with MediaPipeSegmenter() as own:
            return _cut_out(photo, alignment, own, rng, context)
    to_photo, to_crop = alignment.to_photo, inverse(alignment.to_photo)
    image = sample(_over_grey(photo), to_photo, PORTRAIT_SIZE, PADDED).clip(0, 255) / 255
    valid = sample(np.ones(photo.rgb.shape[:2], np.float32), to_photo, PORTRAIT_SIZE, ZERO).clip(0, 1)
    landmarks = transform(to_crop, alignment.face.landmarks)
    others = [transform(to_crop, other.landmarks) for other in alignment.others]
    probability = segmenter.probability(_bytes(image * 255)).astype(np.float64)
    matte = make_matte(image.astype(np.float64), valid, probability, landmarks, others, rng)
    _report(context, 3)
    if photo.alpha is not None:
        matte = _own_alpha(photo, alignment, matte, probability, landmarks)
    warnings = (*photo.warnings, *alignment.warnings, *_outside_warning(valid), *matte.warnings)
    return _with_clear_hair(_portrait(photo, alignment, image, valid, landmarks, matte, warnings))


def _with_clear_hair(portrait: Portrait) -> Portrait:
    """Return the portrait without background that shines through its hair."""
    rgb, alpha = portrait.rgba[..., :3].numpy().astype(np.float64), portrait.matte.numpy()
    hair = (alpha > 0.5) & hair_pixels(portrait).numpy()
    cleared = clear_hair(rgb, portrait.image.numpy(), hair, (alpha < 0.05) & (portrait.valid.numpy() > 0.5))
    return replace(portrait, rgba=_tensor(np.concatenate([cleared, alpha[..., None]], -1)))


def _own_alpha(photo: Photo, alignment: Alignment, matte: Matte, probability: NDArray[np.float64], landmarks: NDArray[np.float64]) -> Matte:
    assert photo.alpha is not None
    weight = photo.alpha.astype(np.float32) / 255
    alpha = sample(weight, alignment.to_photo, PORTRAIT_SIZE, ZERO).clip(0, 1)
    colour = sample(photo.rgb.astype(np.float32) / 255 * weight[..., None], alignment.to_photo, PORTRAIT_SIZE, ZERO).clip(0, 1)
    return use_own_alpha(colour.astype(np.float64), alpha.astype(np.float64), matte, probability, landmarks)


def _portrait(
    photo: Photo,
    alignment: Alignment,
    image: NDArray[np.float32],
    valid: NDArray[np.float32],
    landmarks: NDArray[np.float64],
    matte: Matte,
    warnings: tuple[str, ...],
) -> Portrait:
    pose = alignment.pose
    return Portrait(
        image=_tensor(image),
        rgba=_tensor(np.concatenate([matte.foreground, matte.alpha[..., None]], -1)),
        valid=_tensor(valid),
        landmarks=_tensor(landmarks),
        camera=Camera.orbit(pose.yaw, pose.pitch, PORTRAIT_SIZE),
        coefficients=_tensor(pose.coefficients),
        yaw=pose.yaw,
        pitch=pose.pitch,
        roll=pose.roll,
        source=photo.source,
        sha256=photo.sha256,
        warnings=warnings,
        to_photo=_tensor(alignment.to_photo),
        photo_size=(photo.rgb.shape[1], photo.rgb.shape[0]),
    )


def _outside_warning(valid: NDArray[np.float32]) -> list[str]:
    outside = 1 - float(valid.mean())
    if outside <= MAX_OUTSIDE:
        return []
    share = math.floor(100 * outside)
    return [f"{share} % of the head's crop lies outside the photo and is invented (use a photo with more space around the head)"]


def _over_grey(photo: Photo) -> NDArray[np.uint8]:
    if photo.alpha is None:
        return photo.rgb
    a = photo.alpha[..., None].astype(np.float32) / 255
    return _bytes(photo.rgb * a + 255 * BEHIND_ALPHA * (1 - a))


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.round(values).clip(0, 255).astype(np.uint8)


def _tensor(values: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _report(context: Context | None, step: int) -> None:
    if context is not None:
        context.report(step, 3)
