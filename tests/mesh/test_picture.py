"""Pictures of a textured mesh, against a square whose image is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from portrait_backend.mesh.picture import picture
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.radiance.cameras import METRES_PER_UNIT, ORBIT_RADIUS, Camera, focal_pixels

SIDE = 0.4
"""Of the square, head units."""


@pytest.fixture
def square() -> HeadMesh:
    """Upright in the plane z = 0, facing +z; its texture is red, green above blue, white, as seen from the front."""
    half = SIDE / 2 * METRES_PER_UNIT
    corners = np.array([[-half, -half, 0], [half, -half, 0], [half, half, 0], [-half, half, 0]], np.float32)
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:32, :32], texture[:32, 32:], texture[32:, :32], texture[32:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    return HeadMesh(
        vertices=corners,
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
        uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        normals=np.tile(np.array([[0, 0, 1]], np.float32), (4, 1)),
        texture=texture,
    )


def test_size_and_colours_are_those_of_the_square(square: HeadMesh) -> None:
    colour, alpha = picture(square, Camera.orbit(0, 0, 96))
    side = SIDE * focal_pixels(96) / ORBIT_RADIUS
    assert float(alpha.sum()) == pytest.approx(side**2, rel=0.03)
    a, b = round(48 - side / 4), round(48 + side / 4)
    assert colour[a, a].tolist() == [1, 0, 0] and colour[a, b].tolist() == [0, 1, 0]
    assert colour[b, a].tolist() == [0, 0, 1] and colour[b, b].tolist() == [1, 1, 1]
    assert colour[0, 0].tolist() == [0, 0, 0] and float(alpha[0, 0]) == 0


def test_edges_are_smooth_and_premultiplied(square: HeadMesh) -> None:
    colour, alpha = picture(square, Camera.orbit(20, 0, 97))
    edge = (alpha > 0) & (alpha < 1)
    assert edge.any()
    assert bool((colour.amax(-1) <= alpha + 1e-6).all())
    assert torch.equal(alpha[edge] * 4, (alpha[edge] * 4).round())
