"""The mesh stage: radiance field + photo -> textured head."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portrait_backend.context import Context, Progress
from portrait_backend.geometry.meshes import compact, vertex_normals
from portrait_backend.mesh.bake import Surface, bake_texture
from portrait_backend.mesh.charts import cut_faces
from portrait_backend.mesh.extract import extract_mesh
from portrait_backend.mesh.simplify import simplify
from portrait_backend.mesh.types import Field, Folded, HeadMesh, MeshOptions
from portrait_backend.mesh.unwrap import Unwrapped, unwrap
from portrait_backend.mesh.views import ProjectedView, photo_view
from portrait_backend.portrait.regions import detail_share, face_outline
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import METRES_PER_UNIT

SPANS = {"extract": (0, 45), "simplify": (45, 50), "unwrap": (50, 65), "bake": (65, 100)}
"""Percent of the stage that each step takes, measured with the starter field on a CPU."""

log = logging.getLogger(__name__)


def build_mesh(field: Field, portrait: Portrait, settings: MeshOptions, context: Context, views: Sequence[ProjectedView] = ()) -> HeadMesh:
    """Return the textured mesh of `field` in metres; the photo, then `views`, colour what they saw."""
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    detail = partial(detail_share, portrait) if face_outline(portrait).sum() > 1 else None
    vertices, faces = extract_mesh(field, settings.resolution, _span(context, "extract"), settings.smoothing, detail)
    if isinstance(field, Folded):
        vertices = field.folded(vertices)
    seconds["extract"] = time.perf_counter() - start
    _span(context, "simplify").report(0, 1)
    start = time.perf_counter()
    vertices, faces = simplify(vertices, faces, settings.faces)
    seconds["simplify"] = time.perf_counter() - start
    start = time.perf_counter()
    surface = Surface(vertices, faces, unwrap(vertices, faces, settings.texture_size, _span(context, "unwrap")))
    seconds["unwrap"] = time.perf_counter() - start
    start = time.perf_counter()
    mesh = texture_surface(surface, field, portrait, settings.texture_size, context, views)
    seconds["bake"] = time.perf_counter() - start
    log.info("Mesh of %d faces: %s", len(faces), ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    metrics = {f"{name}_s": value for name, value in seconds.items()}
    context.report(100, 100, None, faces=float(len(faces)), **metrics)
    return mesh


def texture_surface(
    surface: Surface, field: Field, portrait: Portrait, size: int, context: Context, views: Sequence[ProjectedView] = ()
) -> HeadMesh:
    """Bake a texture of `size` texels a side onto an unwrapped surface and return the finished mesh."""
    texture = bake_texture(surface, field, [photo_view(portrait), *views], size, _span(context, "bake"))
    source = surface.unwrapped.source
    return HeadMesh(
        vertices=(surface.vertices[source] * METRES_PER_UNIT).astype(np.float32),
        faces=surface.unwrapped.faces,
        uv=surface.unwrapped.uv,
        normals=shading_normals(surface).astype(np.float32),
        texture=texture,
    )


def shading_normals(surface: Surface) -> NDArray[np.float64]:
    """Return unit normals (V', 3) of the split vertices: smooth across seams, but the flat cut of the neck keeps its edge."""
    split = surface.unwrapped
    cut = cut_faces(surface.vertices, surface.faces)
    normals = vertex_normals(surface.vertices, surface.faces[~cut])[split.source]
    normals[np.unique(split.faces[cut])] = (0.0, -1.0, 0.0)
    return normals


def surface_of(mesh: HeadMesh) -> Surface:
    """Recover the surface of a finished mesh with its UVs kept, for texturing it anew: vertices of equal position become one again."""
    positions, source = np.unique(mesh.vertices, axis=0, return_inverse=True)
    source = source.reshape(-1).astype(np.int64)
    vertices, faces = compact(positions.astype(np.float64) / METRES_PER_UNIT, source[mesh.faces])
    chart = np.zeros(len(faces), dtype=np.int64)
    return Surface(vertices, faces, Unwrapped(source, mesh.faces, mesh.uv, chart))


def _span(context: Context, name: str) -> Context:
    """Return a context whose steps fill the part of the stage's 100 steps that the step `name` has."""
    low, high = SPANS[name]
    forward = context.on_progress

    def on_progress(progress: Progress) -> None:
        if forward is not None:
            done = progress.step / max(progress.steps, 1)
            forward(replace(progress, step=round(low + (high - low) * done), steps=100))

    return replace(context, on_progress=on_progress)
