"""Camera conventions: rays and projection are inverses, orbits turn the right way, the landmark fit sees the same camera."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from portrait_backend.portrait.head_pose import LandmarkModel, predict_landmarks
from portrait_backend.radiance.cameras import ORBIT_RADIUS, Camera, focal_pixels


@pytest.mark.parametrize(("azimuth", "pitch"), [(0, 0), (37, -20), (-140, 60)])
def test_projecting_points_on_rays_gives_their_pixels_and_depth(azimuth: float, pitch: float) -> None:
    camera = Camera.orbit(azimuth, pitch, 24)
    origin, directions = camera.rays()
    z = torch.linspace(1, 4, len(directions))
    pixels, depth = camera.project(origin + directions * z[:, None])
    assert torch.allclose(pixels, camera.pixel_centres(), atol=1e-3)
    assert torch.allclose(depth, z, atol=1e-5)


def test_skewed_off_centre_intrinsics_round_trip() -> None:
    camera = Camera(torch.eye(3, 4), torch.tensor([[50.0, 3.0, 9.0], [0.0, 40.0, 7.0], [0.0, 0.0, 1.0]]), 20, 12)
    origin, directions = camera.rays()
    assert directions.shape == (240, 3)
    assert torch.allclose(camera.project(origin + 2 * directions)[0], camera.pixel_centres(), atol=1e-4)


def test_the_front_camera_has_the_subjects_left_on_the_right_and_up_on_top() -> None:
    camera = Camera.orbit(0, 0, 100)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.0, 0.2, 0.0]])
    pixels, z = camera.project(points)
    assert torch.allclose(pixels[0], torch.tensor([50.0, 50.0]), atol=1e-4)
    assert pixels[1, 0] > 60 and abs(pixels[1, 1] - 50) < 1e-4
    assert pixels[2, 1] < 40 and abs(pixels[2, 0] - 50) < 1e-4
    assert torch.allclose(z, torch.full((3,), ORBIT_RADIUS), atol=1e-6)


def test_positive_azimuth_stands_on_the_subjects_left_and_positive_pitch_above() -> None:
    assert torch.allclose(Camera.orbit(90, 0, 8).centre, torch.tensor([ORBIT_RADIUS, 0, 0]), atol=1e-5)
    assert Camera.orbit(0, 30, 8).centre[1].item() == pytest.approx(ORBIT_RADIUS / 2, abs=1e-5)
    _, z = Camera.orbit(60, 0, 8).project(torch.tensor([[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0]]))
    assert z[0] < z[1]


def test_the_rotation_is_proper() -> None:
    rotation = Camera.orbit(77, 33, 8).world_to_camera[:, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-6)
    assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-6)


def test_resizing_scales_the_projection() -> None:
    camera, points = Camera.orbit(20, 10, 128), torch.tensor([[0.1, -0.2, 0.3]])
    large = camera.resized(512)
    assert (large.width, large.height) == (512, 512)
    assert torch.allclose(large.project(points)[0], camera.project(points)[0] * 4, atol=1e-3)


def test_the_field_of_view_spans_the_image() -> None:
    half = ORBIT_RADIUS * math.tan(math.radians(18.837) / 2)
    pixels, _ = Camera.orbit(0, 0, 64).project(torch.tensor([[half, 0.0, 0.0], [0.0, half, 0.0]]))
    assert pixels[0, 0].item() == pytest.approx(64, abs=1e-3)
    assert pixels[1, 1].item() == pytest.approx(0, abs=1e-3)
    assert focal_pixels(64) == pytest.approx(3.014 * 64, rel=1e-3)


@pytest.mark.parametrize(("azimuth", "pitch"), [(0, 0), (25, 0), (0, 15), (-35, -12)])
def test_the_landmark_fit_predicts_what_the_orbit_camera_projects(azimuth: float, pitch: float) -> None:
    points = torch.randn(468, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.15
    model = LandmarkModel(points, torch.zeros(1, 468, 3, dtype=torch.float64))
    parameters = torch.tensor([math.radians(azimuth), math.radians(pitch), 1, 0, 0, 0, 0], dtype=torch.float64)
    pixels, _ = Camera.orbit(azimuth, pitch, 512).to(torch.device("cpu"), torch.float64).project(points)
    assert torch.allclose(predict_landmarks(model, parameters[None])[0][0], pixels / 256 - 1, atol=1e-5)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        Camera(torch.eye(4), torch.eye(3), 8, 8)


@given(st.floats(-180, 180), st.floats(0.2, 5), st.floats(-500, 500), st.floats(-500, 500), st.floats(-60, 60), st.floats(-40, 40))
def test_a_turned_and_scaled_image_has_a_turned_camera(
    angle: float, scale: float, x: float, y: float, azimuth: float, pitch: float
) -> None:
    camera = Camera.orbit(azimuth, pitch, 512)
    c, s = scale * math.cos(math.radians(angle)), scale * math.sin(math.radians(angle))
    similarity = torch.tensor([[c, -s, x], [s, c, y]])
    points = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.1, 0.4], [-0.4, 0.3, -0.2]])
    pixels, depth = camera.project(points)
    larger = camera.in_image(similarity, 3000, 2000)
    mapped, same_depth = larger.project(points)
    assert torch.allclose(mapped, pixels @ similarity[:, :2].T + similarity[:, 2], atol=2e-2)
    assert torch.allclose(depth, same_depth, atol=1e-5) and (larger.width, larger.height) == (3000, 2000)
    stretched = larger.stretched(1500, 500).project(points)[0]
    assert torch.allclose(stretched, mapped * torch.tensor([0.5, 0.25]), atol=1e-2)


@pytest.mark.parametrize("matrix", [[[-1.0, 0, 0], [0, 1, 0]], [[1.0, 0.3, 0], [0, 1, 0]], [[2.0, 0, 0], [0, 1, 0]]])
def test_an_image_that_is_mirrored_or_sheared_has_no_camera(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="turned and scaled only"):
        Camera.orbit(0, 0, 64).in_image(torch.tensor(matrix), 64, 64)
