"""What the renderer needs of a radiance field; `head.Head` is one, the tests' analytic solids are others."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class RadianceField(Protocol):
    """Density and colour in the box [-half_extent, half_extent]^3, head units; nothing outside it."""

    @property
    def half_extent(self) -> float:
        """Half the side of the box."""

    @property
    def surface_density(self) -> float:
        """Density per head unit at the surface."""

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit at points (N, 3); 0 outside the box."""

    def decode(self, points: Tensor, features: bool = False) -> tuple[Tensor, Tensor]:
        """Density (N,) and rgb (N, 3), or all features (N, 32), whose first three are rgb, at points (N, 3)."""


class LayeredField(RadianceField, Protocol):
    """A field that tells density and colours apart, so that each can be asked for only where it counts."""

    @property
    def colours_apart(self) -> bool:
        """Whether asking for both costs as much as asking for one, then the other."""

    def values(self, points: Tensor, features: bool = False) -> Tensor:
        """Colours (N, 3), or all features (N, 32), at points (N, 3)."""
