"""Spheres: their chamfer distance, depth and normals are known, and their views agree with one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait_backend.evaluation.geometry_metrics import chamfer_mm, consistency, depth_error_mm, normal_error_degrees
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from tests.cli.fake_parts import RADIUS
from tests.evaluation.balls import PaintedBall, waves


def sphere_points(radius: float, count: int = 20000) -> np.ndarray:
    """Points spread evenly over a sphere (Fibonacci lattice)."""
    k = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * k / count), np.pi * (1 + 5**0.5) * k
    return radius * np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], 1)


def test_chamfer_of_a_sphere_against_scaled_ones() -> None:
    truth = sphere_points(0.3)
    assert chamfer_mm(truth, truth) == 0
    for scale in (1.05, 0.9):
        expected = 0.3 * abs(scale - 1) * METRES_PER_UNIT * 1000
        assert chamfer_mm(truth, sphere_points(0.3 * scale)) == pytest.approx(expected, rel=0.02)


def test_depth_and_normals() -> None:
    view = PaintedBall().render(Camera.orbit(20, 10, 96), normals=True)
    solid = view.alpha > 0.5
    assert view.normals is not None
    assert depth_error_mm(view.depth, view.depth, solid) == 0
    assert depth_error_mm(view.depth + 0.01, view.depth, solid) == pytest.approx(3.7, rel=1e-3)
    assert normal_error_degrees(view.normals, view.normals, solid) == pytest.approx(0, abs=1e-4)
    turned = view.normals @ Camera.orbit(30, 0, 8).world_to_camera[:, :3].T @ Camera.orbit(0, 0, 8).world_to_camera[:, :3]
    axis = solid & (view.normals[..., 1].abs() < 0.02)
    assert normal_error_degrees(turned, view.normals, axis) == pytest.approx(30, abs=0.1)
    assert depth_error_mm(view.depth, view.depth, solid & ~solid) is None
    assert normal_error_degrees(view.normals, view.normals, solid & ~solid) is None


def test_views_of_one_sphere_are_consistent() -> None:
    errors = []
    for size in (64, 128, 256):
        cameras = Camera.orbit(0, 0, size), Camera.orbit(45, 0, size)
        views = [PaintedBall().render(camera) for camera in cameras]
        error, seen = consistency(views[0], cameras[0], views[1], cameras[1])
        assert error is not None and 0.4 < seen < 0.9
        errors.append(error)
    assert errors[0] > errors[1] > errors[2], "what is left is the sampling of the colours"
    assert errors[2] < 3e-4


def test_a_flat_colour_is_consistent_exactly() -> None:
    cameras = Camera.orbit(0, 0, 128), Camera.orbit(-45, 0, 128)
    views = [PaintedBall(lambda points: torch.full_like(points, 0.4)).render(camera) for camera in cameras]
    assert consistency(views[0], cameras[0], views[1], cameras[1])[0] == pytest.approx(0, abs=1e-6)


def test_views_that_disagree_show_by_how_much() -> None:
    cameras = Camera.orbit(0, 0, 128), Camera.orbit(45, 0, 128)
    brighter = PaintedBall(lambda points: waves(points) + 0.1)
    error, _ = consistency(PaintedBall().render(cameras[0]), cameras[0], brighter.render(cameras[1]), cameras[1])
    assert error == pytest.approx(0.1, abs=2e-3)


def test_the_far_side_is_not_seen() -> None:
    cameras = Camera.orbit(0, 0, 128), Camera.orbit(180, 0, 128)
    views = [PaintedBall().render(camera) for camera in cameras]
    error, seen = consistency(views[0], cameras[0], views[1], cameras[1])
    assert error is None and seen == 0


def test_a_moved_surface_is_not_taken_for_the_same() -> None:
    """Depth that disagrees between the views is not seen twice: it can't hide in a good colour error."""
    cameras = Camera.orbit(0, 0, 128), Camera.orbit(20, 0, 128)
    near, far = (PaintedBall().render(camera) for camera in cameras)
    moved = type(far)(far.rgb, far.alpha, far.depth + 0.1 * RADIUS * (far.alpha > 0))
    assert consistency(near, cameras[0], moved, cameras[1])[1] < 0.02 < consistency(near, cameras[0], far, cameras[1])[1]
