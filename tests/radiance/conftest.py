"""Solids whose images are known in closed form, and a small head."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head


@dataclass(frozen=True)
class Sphere:
    """A sphere at `centre`: `solid` density inside, a sigmoid edge; its colour is the position."""

    radius: float = 0.3
    solid: float = 1000.0
    sharpness: float = 4000.0
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    half_extent: float = 0.5

    @property
    def surface_density(self) -> float:
        return self.solid / 2

    def density(self, points: Tensor) -> Tensor:
        distance = (points - points.new_tensor(self.centre)).norm(dim=-1) - self.radius
        return self.solid * torch.sigmoid(-self.sharpness * distance) * (points.abs() <= self.half_extent).all(-1)

    def decode(self, points: Tensor, features: bool = False) -> tuple[Tensor, Tensor]:
        return self.density(points), points + 0.5


@pytest.fixture(scope="session")
def make_sphere() -> type[Sphere]:
    """The class itself: tests choose radius, density and edge."""
    return Sphere


@pytest.fixture(scope="session")
def head() -> Head:
    """An ellipsoid head with two depth slices; share it, don't change it."""
    return ellipsoid_head(depth=2, size=64)
