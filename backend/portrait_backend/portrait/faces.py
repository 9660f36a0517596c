"""Find the sitter's face: detection at several scales, choice among several people, and what is wrong if there is none.

The photo is upright by now (EXIF was honoured). A face tilted up to 60 degrees is used as it is; a photo
that lies on its side or stands on its head is refused with the turn that rights it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from portrait_shared.errors import PortraitDiffusionError

LANDMARK_COUNT = 468
MIN_FACE_PX = 64
DETECTION_SIDE = 768
"""Detectors work at a fixed small size; larger tiles are reduced first, with averaging."""
TILE_LEVELS = (((1, 1.0), (2, 0.6)), ((4, 0.33),), ((6, 0.22),))
"""(tiles per side, tile side as a share of the image's) of the detection pyramid; a later group only if nothing was found before."""
SMALLEST_TILE = 192
MAX_TILT = 60.0
UPRIGHT_BONUS = 0.1
"""A turned photo must be this much more face-like than the photo as it is: detectors see faces in upside-down ones."""
STEADY, UNSTEADY = 0.012, 0.05
"""Spread of the landmarks between crops, in face widths: 0.003-0.008 on faces, 0.016-0.3 on ones held upside down, measured."""
MAX_FACES = 8
OVAL_LEFT, OVAL_RIGHT, OVAL_TOP, OVAL_CHIN = 234, 454, 10, 152
EYE_A, EYE_B = 33, 263
FACE_ASPECT = 0.75
"""Width of a frontal face over its height (forehead to chin): a turned face is as large as its height says."""


@dataclass(frozen=True)
class Candidate:
    """Where a face may be: centre (x, y) px, outer face width px, roll in degrees (clockwise on the screen), score in [0, 1]."""

    centre: tuple[float, float]
    width: float
    roll: float
    score: float


@dataclass(frozen=True)
class Face:
    """A measured face: landmarks (468, 2) in photo px (pixel centres at +0.5), spread of repeated measurements in face widths."""

    landmarks: NDArray[np.float64]
    spread: float

    @property
    def centre(self) -> NDArray[np.float64]:
        """Mean landmark (2,) px."""
        return np.asarray(self.landmarks.mean(0))

    @property
    def width(self) -> float:
        """Outer face width in px, as if seen from the front."""
        return face_width(self.landmarks)

    @property
    def roll(self) -> float:
        """Tilt of the line between the outer eye corners in degrees, clockwise on the screen."""
        return float(np.degrees(np.arctan2(*(self.landmarks[EYE_B] - self.landmarks[EYE_A])[::-1])))


class FaceDetector(Protocol):
    """What an own landmark network has to offer to replace MediaPipe."""

    def candidates(self, rgb: NDArray[np.uint8]) -> list[Candidate]:
        """Find roughly upright faces in rgb (H, W, 3)."""

    def measure(self, rgb: NDArray[np.uint8], candidate: Candidate) -> Face | None:
        """Measure the landmarks of a candidate in rgb (H, W, 3), None if it is no face."""


def face_width(landmarks: NDArray[np.float64]) -> float:
    """Return the outer face width in px of landmarks (468, 2), as if seen from the front."""
    across = float(np.hypot(*(landmarks[OVAL_RIGHT] - landmarks[OVAL_LEFT])))
    return max(across, FACE_ASPECT * float(np.hypot(*(landmarks[OVAL_CHIN] - landmarks[OVAL_TOP]))))


def find_face(rgb: NDArray[np.uint8], detector: FaceDetector) -> tuple[Face, list[Face], list[str]]:
    """Return the largest and most central face of rgb (H, W, 3), the others, and warnings that name those.

    Raises PortraitDiffusionError with codes no-face, photo-sideways, photo-upside-down, face-too-small.
    """
    candidates: list[Candidate] = []
    faces: list[Face] = []
    for levels in TILE_LEVELS:
        candidates = _candidates(rgb, levels, detector)
        faces = _measure(rgb, candidates[:MAX_FACES], detector)
        if faces:
            break
    if not faces:
        raise _no_face("something like a face was found, but its landmarks could not be measured" if candidates else "no face was found")
    ranked = sorted(faces, key=lambda face: -_importance(face, rgb.shape[1], rgb.shape[0]))
    best = ranked[0]
    _check_upright(best)
    if best.width < MIN_FACE_PX:
        raise PortraitDiffusionError(
            "face-too-small",
            f"the face is only {best.width:.0f} px wide, at least {MIN_FACE_PX} px are needed",
            "Use a larger photo or one taken closer (200 px and more give good results)",
        )
    return best, ranked[1:], _other_faces(ranked, rgb.shape[1], rgb.shape[0])


def _no_face(message: str) -> PortraitDiffusionError:
    return PortraitDiffusionError("no-face", message, "Use a photo that shows one face clearly, turned at most 40 degrees to the side")


def _check_upright(face: Face) -> None:
    if abs(face.roll) <= MAX_TILT:
        return
    if abs(face.roll) > 180 - MAX_TILT:
        raise PortraitDiffusionError("photo-upside-down", "the photo is upside down", "Rotate it by 180 degrees")
    way = "counter-clockwise" if face.roll > 0 else "clockwise"
    raise PortraitDiffusionError(
        "photo-sideways",
        f"the photo lies on its side (the face is tilted by {abs(face.roll):.0f} degrees)",
        f"Rotate it by 90 degrees {way}",
    )


def _importance(face: Face, width: int, height: int) -> float:
    """Face area, weighted down to half from the middle of the photo to its corners."""
    distance = np.hypot(*(face.centre - np.array([width, height]) / 2)) / (np.hypot(width, height) / 2)
    return face.width**2 * float(1 - 0.5 * min(distance, 1))


def _other_faces(ranked: list[Face], width: int, height: int) -> list[str]:
    if len(ranked) < 2:
        return []
    places = ", ".join(f"{_place(face, width, height)} ({face.width:.0f} px wide)" for face in ranked[1:])
    used = f"{_place(ranked[0], width, height)} ({ranked[0].width:.0f} px wide)"
    count = "1 other face was" if len(ranked) == 2 else f"{len(ranked) - 1} other faces were"
    return [f"{count} found: {places}; the largest and most central one, {used}, was used (crop the photo to choose another)"]


def _place(face: Face, width: int, height: int) -> str:
    x, y = face.centre / (width, height)
    row = "top" if y < 1 / 3 else "bottom" if y > 2 / 3 else ""
    column = "left" if x < 1 / 3 else "right" if x > 2 / 3 else ""
    return " ".join(part for part in (row, column) if part) or "centre"


def _candidates(rgb: NDArray[np.uint8], levels: tuple[tuple[int, float], ...], detector: FaceDetector) -> list[Candidate]:
    """Detect at some scales and all quarter turns; one candidate per place, the largest first."""
    found = [candidate for level in levels for turns in range(4) for candidate in _detect_level(rgb, turns, level, detector)]
    return sorted(_distinct(found), key=lambda c: -c.width)


def _detect_level(rgb: NDArray[np.uint8], turns: int, level: tuple[int, float], detector: FaceDetector) -> Iterator[Candidate]:
    height, width = rgb.shape[:2]
    count, share = level
    if count > 1 and max(height, width) * share < SMALLEST_TILE:
        return
    tile_h, tile_w = round(height * share), round(width * share)
    for y in np.linspace(0, height - tile_h, count).astype(int):
        for x in np.linspace(0, width - tile_w, count).astype(int):
            tile = rgb[y : y + tile_h, x : x + tile_w]
            scale = min(1.0, DETECTION_SIDE / max(tile.shape[:2]))
            if scale < 1:
                tile = np.asarray(cv2.resize(tile, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
            for seen in detector.candidates(np.rot90(tile, turns)):
                yield _unturned(seen, turns, tile.shape[1], tile.shape[0], scale, (int(x), int(y)))


def _unturned(seen: Candidate, turns: int, width: int, height: int, scale: float, corner: tuple[int, int]) -> Candidate:
    """Map a candidate from a tile (width x height) that np.rot90 turned counter-clockwise back to the photo."""
    x, y = seen.centre
    for turn in range(turns, 0, -1):
        x, y = (width if turn % 2 else height) - y, x
    return replace(
        seen, centre=(x / scale + corner[0], y / scale + corner[1]), width=seen.width / scale, roll=_wrapped(seen.roll + 90 * turns)
    )


def _wrapped(degrees: float) -> float:
    return (degrees + 180) % 360 - 180


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Keep the best-scored candidate of each place; the photo as it is wins near ties."""

    def value(c: Candidate) -> float:
        return c.score + (UPRIGHT_BONUS if abs(c.roll) <= MAX_TILT else 0)

    kept: list[Candidate] = []
    for candidate in sorted(found, key=lambda c: -value(c)):
        if all(np.hypot(*np.subtract(candidate.centre, other.centre)) > 0.6 * max(candidate.width, other.width) for other in kept):
            kept.append(candidate)
    return kept


def _measure(rgb: NDArray[np.uint8], candidates: list[Candidate], detector: FaceDetector) -> list[Face]:
    faces: list[Face] = []
    for candidate in candidates:
        face = measure_steadily(rgb, candidate, detector)
        if face and all(np.hypot(*(face.centre - other.centre)) > 0.5 * max(face.width, other.width) for other in faces):
            faces.append(face)
    return faces


def measure_steadily(rgb: NDArray[np.uint8], candidate: Candidate, detector: FaceDetector) -> Face | None:
    """Measure a candidate twice, the second time in a crop that its own landmarks place.

    The mesh also finds a face in one that stands on its head, but not the same twice: if the landmarks are
    unsteady, the other ways up are tried and the steadiest measurement counts.
    """
    best: Face | None = None
    for turn in (0.0, 180.0, 90.0, -90.0):
        face = detector.measure(rgb, replace(candidate, roll=_wrapped(candidate.roll + turn)))
        finer = detector.measure(rgb, candidate_of(face)) if face else None
        face = min((f for f in (face, finer) if f), key=lambda f: f.spread, default=None)
        if face and (best is None or face.spread < best.spread):
            best = face
        if best and best.spread < STEADY:
            break
    return best if best and best.spread < UNSTEADY else None


def candidate_of(face: Face) -> Candidate:
    """Return the candidate that describes a measured face."""
    middle = (face.landmarks.min(0) + face.landmarks.max(0)) / 2
    return Candidate((float(middle[0]), float(middle[1])), face.width, face.roll, 1.0)
