"""Placing a prior's head in our world: the same field, seen the same way; scale and shift are found again from landmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from portrait_backend.portrait.faces import Candidate, Face
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.prior import panohead
from portrait_backend.prior.placement import Placement, fit_placement, five_points, lifted_landmarks, measure_placement
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.decoder import DensityActivation
from portrait_backend.radiance.head import Head

MOVE = Placement(0.8, (0.05, -0.1, 0.02))


def ours(points: torch.Tensor, placement: Placement = MOVE) -> torch.Tensor:
    return points * placement.scale + torch.tensor(placement.shift)


def test_a_placed_head_has_the_same_field_elsewhere() -> None:
    head = ellipsoid_head(depth=2, size=16)
    head = replace(head, activation=DensityActivation("softplus", bias=-1.0, surface=9.0), bounds=(0.3, 0.5, 0.4))
    placed = MOVE.head(head)
    points = (torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 1.1
    torch.testing.assert_close(placed.density(ours(points)), head.density(points) / 0.8, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(placed.colour(ours(points)), head.colour(points), atol=1e-4, rtol=1e-4)
    assert placed.surface_density == pytest.approx(9 / 0.8) and placed.half_extent == pytest.approx(0.4 + 0.1)
    assert bool(placed.inside(ours(points)).equal(head.inside(points))), "the box and the bounds moved too"


def test_a_placed_head_is_seen_as_before() -> None:
    """A camera that moved with the head sees the same picture; the planes' box need not be around the origin for the renderer."""
    head = ellipsoid_head(depth=2, size=32)
    head = replace(head, activation=replace(head.activation, kind="softplus", bias=0.0, surface=1.0))
    camera = Camera.orbit(20, 10, 16)
    pose = camera.world_to_camera
    moved = torch.cat([pose[:, :3], (0.8 * pose[:, 3] - pose[:, :3] @ torch.tensor(MOVE.shift))[:, None]], 1)
    before, after = head.render(camera, samples=48), MOVE.head(head).render(replace(camera, world_to_camera=moved), samples=48)
    assert float(before.alpha.max()) > 0.1
    torch.testing.assert_close(after.alpha, before.alpha, atol=0.02, rtol=0)
    torch.testing.assert_close(after.rgb, before.rgb, atol=0.02, rtol=0)


def test_placing_twice_is_placing_once_by_both(tmp_path: Path) -> None:
    twice = MOVE.head(MOVE.head(ellipsoid_head(size=16)))
    assert twice.geometry.half_extent == pytest.approx(0.32)
    assert twice.geometry.centre == pytest.approx([0.8 * d + d for d in MOVE.shift])
    twice.save(tmp_path / "head.safetensors")
    assert Head.load(tmp_path / "head.safetensors").geometry.centre == pytest.approx(twice.geometry.centre)


def test_scale_and_shift_are_found_in_spite_of_outliers() -> None:
    random = torch.Generator().manual_seed(0)
    theirs = torch.randn(200, 3, generator=random) * 0.2
    wanted = ours(theirs)
    theirs[:15] += torch.tensor([0.0, 0.0, -0.3])  # depth at the silhouette
    placement, error = fit_placement(theirs, wanted)
    assert placement.scale == pytest.approx(0.8, abs=0.03) and placement.shift == pytest.approx(MOVE.shift, abs=0.02) and error < 0.02


class Seer:
    """A detector that finds the landmarks where a camera sees these points (468, 3)."""

    def __init__(self, points: torch.Tensor, camera: Camera) -> None:
        self.pixels = camera.resized(256).project(points)[0].double().numpy()

    def candidates(self, rgb: np.ndarray) -> list[Candidate]:
        return [Candidate((128.0, 128.0), 100.0, 0.0, 0.9)]

    def measure(self, rgb: np.ndarray, candidate: Candidate) -> Face:
        return Face(self.pixels, 0.001)


def test_landmarks_are_lifted_onto_the_head_and_place_it() -> None:
    """Landmarks on an ellipsoid's front: lifted they lie on it, and a head of another unit is brought to where they are in ours."""
    head = ellipsoid_head(depth=2, size=64)
    camera = Camera.orbit(0, 0, 256)
    front = load_landmark_model().mean.float()
    out = head.render(camera)
    pixels = camera.project(front)[0]
    depth = out.depth[pixels[:, 1].long(), pixels[:, 0].long()]
    assert bool((depth > 0).all())
    origin, directions = camera.rays_through(pixels)
    on_head = origin + directions * depth[:, None]
    found = lifted_landmarks(head, camera, Seer(on_head, camera))
    assert found is not None and bool(found[1].all())
    assert float((found[0] - on_head).norm(dim=1).median()) < 0.004
    placement = measure_placement(head, camera, Seer(on_head, camera), ours(on_head))
    assert placement is not None and placement.measured
    assert placement.scale == pytest.approx(0.8, abs=0.02) and placement.shift == pytest.approx(MOVE.shift, abs=0.01)
    far = ours(on_head) * torch.tensor([3.0, 0.2, 1.0])
    assert measure_placement(head, camera, Seer(on_head, camera), far) is None, "a face that doesn't fit is no face"


def test_panoheads_nominal_placement_follows_its_crop() -> None:
    """Seen by its training camera, the mean eyes are 1 / 4.4 of the picture apart."""
    placement = panohead.nominal()
    eyes = five_points(load_landmark_model().mean)[:2].float()
    theirs = (eyes - torch.tensor(placement.shift)) / placement.scale
    pixels, _ = panohead.front_camera(440).project(theirs)
    assert float((pixels[1] - pixels[0]).norm()) == pytest.approx(100, abs=1)
    assert float(pixels[:, 0].mean()) == pytest.approx(220, abs=2) and 200 < float(pixels[:, 1].mean()) < 240
