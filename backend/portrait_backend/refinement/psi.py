"""Psi as stage 3 optimises it: the head's colour planes, and its shape planes where they may change."""

from __future__ import annotations

import torch
from torch import Tensor

from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_shared.settings import RefinementSettings

GRID = 96
"""Cells per side of the density lattice while refining."""


class Psi:
    """The head with leaf planes. Colour and shape are separate even where the head shares its planes: an rgb loss shatters a surface."""

    def __init__(self, head: Head, settings: RefinementSettings) -> None:
        self._head = head
        self.colour = head.appearance.planes.detach().clone().requires_grad_()
        self.shape = head.geometry.planes.detach().clone().requires_grad_() if settings.shape_rate > 0 else None
        groups = [{"params": [self.colour], "lr": settings.learning_rate}]
        if self.shape is not None:
            groups.append({"params": [self.shape], "lr": settings.shape_rate})
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
        self._grid: DensityGrid | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """The leaves, colour first."""
        return [self.colour] if self.shape is None else [self.colour, self.shape]

    def head(self) -> Head:
        """Return the head made of the leaves as they are now."""
        geometry = self._head.geometry if self.shape is None else self._head.geometry.with_planes(self.shape)
        return self._head.with_planes(geometry=geometry, appearance=self._head.appearance.with_planes(self.colour))

    def grid(self) -> DensityGrid:
        """Return the density lattice; built once where the shape doesn't change, else by `refresh`."""
        if self._grid is None:
            planes = self.colour
            self._grid = DensityGrid.build(self.head(), GRID, device=planes.device, dtype=planes.dtype)
        return self._grid

    def refresh(self) -> None:
        """Forget the lattice if the shape may have changed."""
        if self.shape is not None:
            self._grid = None

    def finished(self) -> Head:
        """Return the head with planes that carry no gradients."""
        head = self._head
        geometry = head.geometry if self.shape is None else head.geometry.with_planes(self.shape.detach())
        return head.with_planes(geometry=geometry, appearance=head.appearance.with_planes(self.colour.detach()))
