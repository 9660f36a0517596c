"""Finding the sitter in real photos, and saying what is wrong where there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from portrait_backend.portrait.faces import Candidate, Face, _unturned, find_face
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_shared.errors import PortraitDiffusionError


@pytest.fixture(scope="module")
def detector() -> Iterator[MediaPipeFaces]:
    """One MediaPipe detector for all tests here."""
    with MediaPipeFaces() as faces:
        yield faces


def error_of(rgb: NDArray[np.uint8], detector: MediaPipeFaces) -> PortraitDiffusionError:
    """Return the error that looking for a face ends in."""
    with pytest.raises(PortraitDiffusionError) as caught:
        find_face(np.ascontiguousarray(rgb), detector)
    return caught.value


def made_up_face(x: float, y: float, width: float) -> NDArray[np.float64]:
    """Return landmarks (468, 2) spread over a disc, with its extremes where the face oval has them."""
    angle = np.linspace(0, 2 * np.pi, 468)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * width / 2 * np.linspace(0, 1, 468)[:, None]
    points[[234, 454, 10, 152]] = np.array([[-1, 0], [1, 0], [0, -1.3], [0, 1.3]]) * width / 2
    points[[33, 263]] = np.array([[-0.7, -0.3], [0.7, -0.3]]) * width / 2
    return np.asarray(points + np.array([x, y]))


def test_astronaut(astronaut: NDArray[np.uint8], detector: MediaPipeFaces) -> None:
    face, others, warnings = find_face(astronaut, detector)
    assert not others and not warnings
    assert 80 < face.width < 110 and abs(face.roll) < 8 and face.spread < 0.012
    np.testing.assert_allclose(face.landmarks[[33, 263]].mean(0), (225, 103), atol=4)  # between her eyes
    np.testing.assert_allclose(face.landmarks[13], (224, 145), atol=4)  # her mouth


def test_landmarks_follow_scale_shift_and_tilt(astronaut: NDArray[np.uint8], detector: MediaPipeFaces) -> None:
    face, _, _ = find_face(astronaut, detector)
    matrix = cv2.getRotationMatrix2D((224, 120), 35, 2.0)
    matrix[:, 2] += (300, 250)
    moved, _, _ = find_face(np.asarray(cv2.warpAffine(astronaut, matrix, (1000, 900))), detector)
    expected = (face.landmarks - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    assert np.linalg.norm(moved.landmarks - expected, axis=1).mean() < 0.02 * moved.width


@pytest.mark.parametrize(
    ("turns", "code", "advice"),
    [
        (1, "photo-sideways", "90 degrees clockwise"),
        (2, "photo-upside-down", "180 degrees"),
        (3, "photo-sideways", "90 degrees counter-clockwise"),
    ],
)
def test_turned_photos_are_named(astronaut: NDArray[np.uint8], detector: MediaPipeFaces, turns: int, code: str, advice: str) -> None:
    error = error_of(np.rot90(astronaut, turns), detector)  # np.rot90 turns counter-clockwise
    assert error.code == code and advice in error.hint


def test_small_face_in_a_large_photo_is_found_and_measured(astronaut: NDArray[np.uint8], detector: MediaPipeFaces) -> None:
    photo = np.full((1800, 2400, 3), 120, np.uint8)
    photo[1200:1712, 300:812] = astronaut
    face, _, _ = find_face(photo, detector)
    np.testing.assert_allclose(face.landmarks[[33, 263]].mean(0), (525, 1303), atol=4)
    photo[1200:1712, 300:812] = 120
    photo[1200:1500, 300:600] = cv2.resize(astronaut, (300, 300), interpolation=cv2.INTER_AREA)
    error = error_of(photo, detector)
    assert error.code == "face-too-small" and any(f"{px} px" in error.message for px in (52, 53, 54, 55, 56))  # 92 * 300 / 512


def test_no_face(detector: MediaPipeFaces) -> None:
    assert error_of(skimage.data.chelsea(), detector).code == "no-face"  # a cat
    assert error_of(np.full((300, 200, 3), 90, np.uint8), detector).code == "no-face"


def test_the_larger_of_two_people_wins(astronaut: NDArray[np.uint8], detector: MediaPipeFaces) -> None:
    small = np.zeros_like(astronaut)
    small[:400, :400] = cv2.resize(astronaut, (400, 400), interpolation=cv2.INTER_AREA)
    face, others, warnings = find_face(np.hstack([small, astronaut]), detector)
    assert len(others) == 1 and face.centre[0] > 512 > others[0].centre[0] and face.width > others[0].width
    assert "1 other face" in warnings[0] and "top left" in warnings[0]


def test_of_equal_faces_the_central_one_wins(scripted: type) -> None:
    photo = np.zeros((600, 1000, 3), np.uint8)
    faces = [made_up_face(150, 300, 120), made_up_face(520, 300, 120), made_up_face(880, 500, 120)]
    face, others, warnings = find_face(photo, scripted(1000, *faces))
    np.testing.assert_allclose(face.landmarks, faces[1])
    assert len(others) == 2 and "left (120 px wide)" in warnings[0] and "bottom right (120 px wide)" in warnings[0]
    face, _, _ = find_face(photo, scripted(1000, faces[1], made_up_face(150, 300, 190)))
    assert face.width == pytest.approx(190)


def test_width_of_a_turned_face_comes_from_its_height() -> None:
    points = made_up_face(0, 0, 100)
    assert Face(points, 0).width == pytest.approx(100)
    assert Face(points * (0.5, 1), 0).width == pytest.approx(0.75 * 130)


@pytest.mark.parametrize("turns", range(4))
def test_candidates_of_turned_tiles_map_back(turns: int) -> None:
    tile = np.zeros((40, 60), np.uint8)
    tile[11, 47] = 1
    (row,), (column,) = np.nonzero(np.rot90(tile, turns))
    back = _unturned(Candidate((column + 0.5, row + 0.5), 10, 5, 1), turns, 60, 40, 0.5, (100, 200))
    assert back.centre == (100 + 47.5 * 2, 200 + 11.5 * 2) and back.width == 20
    assert (back.roll - 5) % 360 == 90 * turns


def test_mediapipe_is_silent() -> None:
    code = (
        "import numpy, skimage.data; from portrait_backend.portrait.faces import find_face;"
        "from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces, MediaPipeSegmenter\n"
        "with MediaPipeFaces() as f, MediaPipeSegmenter() as s: rgb = skimage.data.astronaut(); find_face(rgb, f); s.probability(rgb)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == "" and result.stdout == ""
