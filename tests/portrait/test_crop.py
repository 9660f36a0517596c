"""Crops: coordinates to a fraction of a pixel, no aliasing, padding."""

from __future__ import annotations

import numpy as np
import pytest

from portrait_backend.portrait.crop import ZERO, crop_to_photo, inverse, sample, transform


def test_similarity_places_the_corners_and_the_centre() -> None:
    angle, scale, centre = 0.3, 100.0, np.array([40.0, 70.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_photo = crop_to_photo(np.concatenate([turn, centre[:, None]], 1), 512)
    photo = transform(to_photo, np.array([[0.0, 0.0], [256.0, 256.0], [512.0, 512.0]]))
    np.testing.assert_allclose(photo, centre + np.array([[-1, -1], [0, 0], [1, 1]]) @ turn.T, atol=1e-9)
    np.testing.assert_allclose(transform(inverse(to_photo), photo), [[0, 0], [256, 256], [512, 512]], atol=1e-9)


def test_identity_crop_is_the_photo() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(sample(photo, np.eye(2, 3), 32), photo.astype(np.float32))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5, 6.0])
def test_a_linear_ramp_is_sampled_at_pixel_centres(scale: float) -> None:
    y, x = np.mgrid[0:300, 0:300] + 0.5
    to_photo = np.array([[scale, 0.0, 40.25], [0.0, scale, 60.5]])
    crop = sample(2 * x + y, to_photo, 32)
    expected = transform(to_photo, np.stack(np.meshgrid(np.arange(32) + 0.5, np.arange(32) + 0.5), -1).reshape(-1, 2))
    np.testing.assert_allclose(crop.ravel(), 2 * expected[:, 0] + expected[:, 1], atol=0.1)  # OpenCV places samples to 1/32 px


def test_shrinking_averages_fine_patterns() -> None:
    checks = ((np.indices((320, 320)).sum(0) % 2) * 255).astype(np.uint8)
    crop = sample(checks, np.array([[5.0, 0, 0], [0, 5.0, 0]]), 64)
    assert np.abs(crop[1:-1, 1:-1] - 127.5).max() < 12


def test_outside_is_zero_or_continues_the_edge() -> None:
    photo = np.full((20, 20), 200, np.uint8)
    shifted = np.array([[1.0, 0, -10], [0, 1.0, 0]])
    assert (sample(photo, shifted, 20) == 200).all()
    outside = sample(photo, shifted, 20, ZERO)
    assert (outside[:, :9] == 0).all() and (outside[:, 11:] == 200).all()
