"""What goes into the mesh stage (a field) and what comes out of it (a textured head)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
ByteArray = NDArray[np.uint8]


class Field(Protocol):
    """The part of a radiance field that meshing needs: a box [-half_extent, half_extent]^3 in head units."""

    @property
    def half_extent(self) -> float:
        """Half the side of the box."""

    @property
    def surface_density(self) -> float:
        """Density per head unit at the surface; a solid is about twice as dense."""

    @property
    def mesh_level(self) -> float:
        """Log-odds of the density, in densities of a solid, where the mesh is cut: 0 at `surface_density`, below 0 farther out."""

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit at points (N, 3)."""

    def colour(self, points: Tensor) -> Tensor:
        """Colour (N, 3) in [0, 1] at points (N, 3)."""


@runtime_checkable
class Folded(Protocol):
    """A field whose surface has forms that its density can't hold."""

    def folded(self, vertices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return vertices (V, 3) of the density's surface with these forms, head units."""


class MeshOptions(Protocol):
    """The settings of the mesh stage (`portrait_shared.settings.MeshSettings` has them)."""

    @property
    def resolution(self) -> int:
        """Lattice cells along the box side."""

    @property
    def faces(self) -> int:
        """Face budget, 0 for no limit."""

    @property
    def texture_size(self) -> int:
        """Texture side in texels."""

    @property
    def smoothing(self) -> int:
        """Taubin smoothing passes."""


@dataclass(frozen=True)
class HeadMesh:
    """A textured head: +y up, the face looks along +z.

    vertices (V, 3) f32 metres, split at UV seams; faces (F, 3) i64, counter-clockwise seen from outside; uv (V, 2) f32,
    origin at the bottom left; normals (V, 3) f32, unit length, smooth across seams; texture (T, T, 3) u8, row 0 on top.
    """

    vertices: FloatArray
    faces: IntArray
    uv: FloatArray
    normals: FloatArray
    texture: ByteArray

    def __post_init__(self) -> None:
        count = len(self.vertices)
        shapes = {"vertices": (count, 3), "uv": (count, 2), "normals": (count, 3), "faces": (len(self.faces), 3)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"HeadMesh.{name} must be {shape}, got {getattr(self, name).shape}")
        if self.texture.ndim != 3 or self.texture.shape[2] != 3 or self.texture.dtype != np.uint8:
            raise ValueError(f"HeadMesh.texture must be (T, T, 3) uint8, got {self.texture.shape} {self.texture.dtype}")
        if len(self.faces) and not 0 <= int(self.faces.min()) <= int(self.faces.max()) < count:
            raise ValueError(f"HeadMesh.faces must index {count} vertices, got {self.faces.min()} .. {self.faces.max()}")
