"""Another tool's head finds its place by its face, whatever its axes and units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from portrait_backend.evaluation.registration import LOOK_SIZE, onto_photo, onto_surface, register, similarity
from portrait_backend.portrait.faces import EYE_A, EYE_B, OVAL_CHIN, OVAL_LEFT, OVAL_RIGHT, OVAL_TOP, Candidate, Face
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError
from tests.cli.fake_parts import RADIUS
from tests.evaluation.balls import ball_mesh


def landmarks() -> torch.Tensor:
    """468 points on the front of the ball, those that the finder looks at where a face has them."""
    rng = np.random.default_rng(0)
    across = rng.uniform(-0.6, 0.6, (468, 2))
    places = {EYE_A: (-0.4, 0.3), EYE_B: (0.4, 0.3), OVAL_LEFT: (-0.6, 0), OVAL_RIGHT: (0.6, 0), OVAL_TOP: (0, 0.6), OVAL_CHIN: (0, -0.6)}
    for index, place in places.items():
        across[index] = place
    depth = np.sqrt(1 - (across**2).sum(1))
    return torch.from_numpy(RADIUS * np.concatenate([across, depth[:, None]], 1)).float()


def where(points: torch.Tensor) -> torch.Tensor:
    """Paint a point with its own coordinates, so that a picture tells which point each pixel shows."""
    return points / RADIUS * 0.45 + 0.5


class CoordinateReader:
    """Finds the landmarks in a picture of a ball painted by `where`: the pixel of the right colour. Colours off by more: not in sight."""

    def candidates(self, rgb: np.ndarray) -> list[Candidate]:
        whole = len(rgb) == LOOK_SIZE and int(np.ptp(rgb)) > 128  # no tile, no single colour
        return [Candidate((LOOK_SIZE / 2, LOOK_SIZE / 2), 200.0, 0.0, 1.0)] if whole else []

    def measure(self, rgb: np.ndarray, candidate: Candidate) -> Face | None:
        row, column = np.nonzero(np.abs(rgb.astype(int) - 128).max(-1) > 1)  # the background is grey
        distance, pixel = cKDTree(rgb[row, column] / 255).query(where(landmarks()).numpy())
        if distance.max() > 0.03:
            return None
        marks = np.stack([column[pixel] + 0.5, row[pixel] + 0.5], 1)
        return Face(marks, 0.001)


def test_similarity_is_recovered_exactly() -> None:
    rng = np.random.default_rng(1)
    source = rng.normal(size=(50, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    scale, turn, move = similarity(source, 2.5 * source @ rotation.T + [1, 2, 3])
    assert scale == pytest.approx(2.5)
    np.testing.assert_allclose(turn, rotation, atol=1e-12)
    np.testing.assert_allclose(move, [1, 2, 3], atol=1e-12)
    mirrored = source * [1, 1, -1]
    assert np.linalg.det(similarity(source, mirrored)[1]) == pytest.approx(1), "never a mirror image"


def test_a_face_is_placed_where_the_photo_s_camera_sees_it() -> None:
    """Some landmarks are wrong, and the size is that of the fitted shape: the rest tells the pose."""
    points, camera = landmarks().double().numpy(), Camera.orbit(25, -10, 512)
    seen = camera.project(torch.from_numpy(points).float())[0].double().numpy()
    seen[::10] += 40
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    moved = 7.0 * points @ turn.T + [1.0, 2.0, 3.0]
    which = np.arange(20, 468)
    scale, rotation, translation = onto_photo(seen, camera, points)(which, moved[which])
    np.testing.assert_allclose(scale * moved @ rotation.T + translation, points, atol=5e-4)


def test_landmarks_that_are_not_known_do_not_count() -> None:
    points = landmarks().double().numpy()
    target = points.copy()
    target[100:] = np.nan
    scale, rotation, translation = onto_surface(target)(np.arange(468), 2.0 * points)
    assert scale == pytest.approx(0.5)
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(translation, 0, atol=1e-9)


AXES = {
    "metres, as glTF": (0.37, np.eye(3)),
    "Blender: z up, face along -y": (10.0, np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])),
    "y up, face along -x": (1.0, np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])),
}


@pytest.mark.slow
@pytest.mark.parametrize("axes", AXES)
def test_any_axes_and_units(axes: str) -> None:
    scale, rotation = AXES[axes]
    foreign = ball_mesh(paint=where).transformed(scale, torch.from_numpy(rotation).float(), torch.tensor([5.0, -3, 1]))
    placed = register(foreign, onto_surface(landmarks().double().numpy()), CoordinateReader())
    expected, found = ball_mesh().parts[0].vertices, placed.parts[0].vertices
    assert float((found - expected).norm(dim=-1).max()) < 0.005


@pytest.mark.slow
def test_a_mesh_without_a_face_is_named() -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        register(
            ball_mesh(paint=lambda points: torch.full_like(points, 0.2), subdivisions=2),
            onto_surface(np.zeros((468, 3))),
            CoordinateReader(),
        )
    assert caught.value.code == "peer-no-face"
