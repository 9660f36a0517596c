"""Read a textured mesh of any tool (GLB, OBJ, PLY, ... through trimesh) and render it unlit and opaque."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.geometry.meshes import vertex_normals
from portrait_backend.geometry.rasterise import Fragments, rasterise
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_shared.errors import PortraitDiffusionError

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
SUPERSAMPLING = 2


@dataclass(frozen=True)
class MeshPart:
    """Triangles with one material: vertices (V, 3), faces (F, 3), normals (V, 3); colours (V, 3) in [0, 1] times the texture.

    uv (V, 2) has its origin at the bottom left; texture (H, W, 3) in [0, 1] or None.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    colours: Tensor
    uv: Tensor
    texture: Tensor | None


@dataclass(frozen=True)
class MeshHead:
    """A mesh in head units that renders like a radiance field: the same cameras, the same channels."""

    parts: tuple[MeshPart, ...]

    def transformed(self, scale: float, rotation: Tensor, translation: Tensor) -> MeshHead:
        """Return the mesh with every vertex p at scale * rotation @ p + translation; rotation (3, 3), translation (3,)."""
        return MeshHead(
            tuple(
                replace(part, vertices=scale * part.vertices @ rotation.T + translation, normals=part.normals @ rotation.T)
                for part in self.parts
            )
        )

    @torch.no_grad()
    def render(self, camera: Camera, size: int | None = None, *, normals: bool = False) -> RenderOutput:
        """Render unlit: rgb premultiplied by coverage, alpha, z-depth (0: nothing hit) and, on request, world normals."""
        camera = camera if size is None else camera.resized(size)
        fine = camera.resized(SUPERSAMPLING * camera.width)
        faces, part = self._faces()
        pixels, z = fine.project(torch.cat([p.vertices for p in self.parts]))
        found = rasterise(torch.cat([pixels, z[:, None]], 1), faces, fine.height, fine.width)
        hit = found.covered.float()
        rgb = torch.zeros(fine.height, fine.width, 3)
        rgb[found.covered] = self._colours(found, faces, part)
        depth = torch.where(found.covered, found.depth, 0.0)
        facing = found.interpolate(faces, torch.cat([p.normals for p in self.parts])) if normals else None
        alpha = _reduced(hit[..., None])[..., 0]
        share = alpha.clamp_min(1e-6)
        return RenderOutput(
            rgb=_reduced(rgb),
            alpha=alpha,
            depth=_reduced(depth[..., None])[..., 0] / share,
            normals=None if facing is None else F.normalize(_reduced(facing), dim=-1),
        )

    def _faces(self) -> tuple[Tensor, Tensor]:
        """Return the faces of all parts in one numbering (F, 3) and the part of each (F,)."""
        starts = np.cumsum([0, *(len(p.vertices) for p in self.parts)])
        faces = torch.cat([p.faces + int(start) for p, start in zip(self.parts, starts[:-1], strict=True)])
        return faces, torch.cat([torch.full((len(p.faces),), k) for k, p in enumerate(self.parts)])

    def _colours(self, found: Fragments, faces: Tensor, part: Tensor) -> Tensor:
        """Return the colour (n, 3) of every covered pixel."""
        colour = found.gather(faces, torch.cat([p.colours for p in self.parts]))
        uv = found.gather(faces, torch.cat([p.uv for p in self.parts]))
        owner = part[found.face[found.covered]]
        for k, p in enumerate(self.parts):
            if p.texture is not None:
                mine = owner == k
                colour[mine] *= _sample(p.texture, uv[mine])
        return colour


def _sample(texture: Tensor, uv: Tensor) -> Tensor:
    """Sample a texture (H, W, 3), repeated beyond [0, 1], at uv (n, 2): (n, 3)."""
    uv = torch.where((uv < 0) | (uv > 1), uv - uv.floor(), uv)
    at = torch.stack([uv[:, 0] * 2 - 1, 1 - uv[:, 1] * 2], -1)[None, None]
    return F.grid_sample(texture.permute(2, 0, 1)[None], at, padding_mode="border", align_corners=False)[0, :, 0].T


def _reduced(image: Tensor) -> Tensor:
    return F.avg_pool2d(image.permute(2, 0, 1)[None], SUPERSAMPLING)[0].permute(1, 2, 0)


def load_mesh(path: Path) -> MeshHead:
    """Read a mesh in its own units and axes; raises PortraitDiffusionError ``mesh-unreadable``."""
    import trimesh

    try:
        scene = trimesh.load_scene(path, process=False)
        geometries = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, AttributeError, ImportError) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from error
    if not geometries:
        raise _unreadable(path, "it holds no triangles")
    return MeshHead(tuple(_part(geometry) for geometry in geometries))


def load_own_mesh(path: Path) -> MeshHead:
    """Read a mesh that this program wrote (metres, face along +z) into head units."""
    return load_mesh(path).transformed(1 / METRES_PER_UNIT, torch.eye(3), torch.zeros(3))


def from_head_mesh(mesh: HeadMesh) -> MeshHead:
    """Return a mesh of this program (metres) in head units, without the detour over a file."""
    part = MeshPart(
        vertices=torch.from_numpy(mesh.vertices).float() / METRES_PER_UNIT,
        faces=torch.from_numpy(mesh.faces),
        normals=torch.from_numpy(mesh.normals).float(),
        colours=torch.ones(len(mesh.vertices), 3),
        uv=torch.from_numpy(mesh.uv).float(),
        texture=torch.from_numpy(mesh.texture).float() / 255,
    )
    return MeshHead((part,))


def _unreadable(path: Path, reason: str) -> PortraitDiffusionError:
    return PortraitDiffusionError(
        "mesh-unreadable", f"can't read a mesh from {path} ({reason.splitlines()[0]})", f"Give a mesh of type {', '.join(SUFFIXES)}"
    )


def _part(geometry: Any) -> MeshPart:
    vertices, faces = np.asarray(geometry.vertices, np.float64), np.asarray(geometry.faces, np.int64)
    visual, count = geometry.visual, len(vertices)
    uv = getattr(visual, "uv", None)
    texture, factor = _material(visual) if uv is not None else (None, np.ones(3))
    colours = np.tile(factor, (count, 1))
    if visual.kind in ("vertex", "face"):
        colours = np.asarray(visual.to_color().vertex_colors if visual.kind == "face" else visual.vertex_colors)[:, :3] / 255
    return MeshPart(
        vertices=torch.from_numpy(vertices).float(),
        faces=torch.from_numpy(faces),
        normals=torch.from_numpy(vertex_normals(vertices, faces)).float(),
        colours=torch.from_numpy(np.ascontiguousarray(colours, np.float32)),
        uv=torch.zeros(count, 2) if uv is None else torch.from_numpy(np.asarray(uv, np.float32)),
        texture=texture,
    )


def _material(visual: Any) -> tuple[Tensor | None, np.ndarray]:
    """Return the colour texture (H, W, 3), or None, and the colour (3,) that it is multiplied by, both as displays show them (sRGB)."""
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    factor, scale = getattr(material, "baseColorFactor", None), np.ones(3)
    if factor is not None:
        scale = _displayed(_share(factor))  # glTF's factors are linear
    elif image is None and getattr(material, "diffuse", None) is not None:
        scale = _share(material.diffuse)
    if image is None:
        return None, scale
    pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels), scale


def _share(colour: Any) -> np.ndarray:
    """Return a colour (3,) in [0, 1] of 8-bit or floating values."""
    values = np.asarray(colour)
    return np.asarray(values[:3], np.float64) / (255 if values.dtype.kind in "ui" else 1)


def _displayed(linear: np.ndarray) -> np.ndarray:
    """Return linear light as sRGB values (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)
