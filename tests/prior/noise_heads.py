"""Random weights make noise; with a density that is high everywhere in the box it is a noise that has a surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

from portrait_backend.context import cpu_context
from portrait_backend.mesh.build import build_mesh
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head
from portrait_shared.settings import MeshSettings

SOLID = 60.0


def make_solid(path: Path, bias: str) -> None:
    """Raise the density's bias in a converted checkpoint."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    tensors[bias] = tensors[bias].clone()
    tensors[bias][0] = SOLID
    save_file(tensors, path, metadata=metadata)


def assert_meshes(head: Head, portrait: Portrait) -> None:
    """The head becomes a closed, textured mesh inside its box."""
    mesh = build_mesh(head, portrait, MeshSettings(resolution=48, faces=2000, texture_size=256, smoothing=0), cpu_context())
    assert len(mesh.faces) > 100 and mesh.texture.shape[:2] == (256, 256) and bool(np.isfinite(mesh.vertices).all())
    assert float(np.ptp(mesh.texture.astype(float))) > 0
