"""Bake the texture: posed images where they saw the surface, the field's own colour elsewhere, no seam between.

Sources form layers by priority, the field is the last. Where a layer meets the ones above it, its colours are
shifted by a smooth offset: the screened Poisson solution, over the surface, of the differences where both
are known. The offset fades with distance from the seam and hardly crosses edges between colours (skin, hair).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.linalg import splu
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.geometry.meshes import face_normals, neighbour_mean, normalised, unique_edges, vertex_normals
from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.mesh.types import Field
from portrait_backend.mesh.unwrap import Unwrapped
from portrait_backend.mesh.views import ProjectedView, Projector, blend_views

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

INSIDE = 0.008
"""The field's colour is read this far below the surface (head units; 3 mm): at the surface itself it fades into empty space."""
OFFSET_REACH = 0.18
"""Distance (head units) over which a colour offset fades."""
OFFSET_DETAIL = 0.025
"""Detail of the offsets (head units): features of the photo smaller than this don't enter."""
COLOUR_EDGE = 0.12
"""Colour difference at which an edge of the mesh hardly passes an offset on."""
NORMAL_SMOOTHING = 8
TEXELS_PER_CHUNK = 1 << 17
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class Surface:
    """A closed mesh and its unwrapping: vertices (V, 3) head units, faces (F, 3), both before the split at seams."""

    vertices: FloatArray
    faces: IntArray
    unwrapped: Unwrapped


@dataclass(frozen=True)
class _Points:
    """Points to be coloured: position, unit normal, low-frequency unit normal, each (N, 3)."""

    position: Tensor
    normal: Tensor
    smooth_normal: Tensor

    def __getitem__(self, index: slice | Tensor) -> _Points:
        return _Points(self.position[index], self.normal[index], self.smooth_normal[index])


class _Layer:
    """Views of one priority; relative: they say what to change in the field's own colours."""

    def __init__(self, projectors: list[Projector]) -> None:
        kinds = {projector.view.change is not None for projector in projectors}
        if len(kinds) > 1:
            raise ValueError("views of one priority must all be colours or all be changes of the field's")
        self.projectors, self.relative = projectors, kinds == {True}

    def blend(self, points: _Points) -> tuple[Tensor, Tensor]:
        return blend_views(self.projectors, points.position, points.normal, points.smooth_normal)


@torch.no_grad()
def bake_texture(surface: Surface, field: Field, views: Sequence[ProjectedView], size: int, context: Context) -> NDArray[np.uint8]:
    """Return the texture (size, size, 3) uint8, row 0 on top, of a surface seen in `views` and coloured by `field` elsewhere.

    Texels off the charts repeat the nearest texel of a chart, so that filtering and mip-maps find no border.
    """
    vertices, faces = torch.from_numpy(surface.vertices).float(), torch.from_numpy(surface.faces)
    layers = [
        _Layer([Projector(view, vertices, faces) for view in views if view.priority == priority])
        for priority in sorted({view.priority for view in views}, reverse=True)
    ]
    at_vertices = _vertex_points(surface)
    context.report(1, 4)
    offsets = _match_layers(surface, field, layers, at_vertices, context)
    context.report(2, 4)
    texels = torch.from_numpy(surface.unwrapped.uv).double() * size
    texels[:, 1] = size - texels[:, 1]
    fragments = rasterise(texels, torch.from_numpy(surface.unwrapped.faces), size, size)
    attributes = torch.cat([at_vertices.position, at_vertices.normal, at_vertices.smooth_normal, *offsets], 1)
    values = fragments.gather(faces, attributes)
    points = _Points(values[:, :3], _unit(values[:, 3:6]), _unit(values[:, 6:9]))
    colours = _composite(points, values[:, 9:].split(3, 1), layers, field, context)
    if not bool(torch.isfinite(colours).all()):
        raise ValueError("the field returned colours that are not finite: the head is damaged, run the earlier stages again")
    covered = fragments.covered.numpy()
    texture = np.zeros((size, size, 3), dtype=np.uint8)
    texture[covered] = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return dilate(texture, covered)


def dilate(texture: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the texture with every texel outside `covered` replaced by the nearest covered one."""
    if not covered.any():
        raise ValueError(f"no texel of the {texture.shape[0]} px texture is covered by a chart: raise the texture size")
    rows, columns = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return np.ascontiguousarray(texture[rows, columns])


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=1)


def _vertex_points(surface: Surface) -> _Points:
    normals = vertex_normals(surface.vertices, surface.faces)
    smooth, mean = normals, neighbour_mean(surface.faces, len(surface.vertices))
    for _ in range(NORMAL_SMOOTHING):
        smooth = mean @ smooth
    return _Points(*(torch.from_numpy(a).float() for a in (surface.vertices, normals, normalised(smooth))))


def _field_colour(field: Field, points: _Points, context: Context) -> Tensor:
    inner = (points.position - INSIDE * points.normal).clamp(-field.half_extent, field.half_extent)
    colours = []
    for start in range(0, len(inner), TEXELS_PER_CHUNK):
        context.report(3, 4)
        colours.append(field.colour(inner[start : start + TEXELS_PER_CHUNK].to(context.device)).float().cpu())
    return torch.cat(colours) if colours else inner.new_zeros(0, 3)


def _match_layers(surface: Surface, field: Field, layers: list[_Layer], points: _Points, context: Context) -> list[Tensor]:
    """Return one offset (V, 3) per layer below the first, the field last."""
    known, trust = torch.zeros(len(points.position), 3), torch.zeros(len(points.position))
    own = _field_colour(field, points, context)
    offsets = []
    for number, layer in enumerate([*layers, None]):
        if layer is None:
            colour, reach = own, torch.ones(len(trust))
        else:
            colour, reach = layer.blend(points)
            colour = own + colour if layer.relative else colour
        if number > 0:
            both = (trust * reach).double().numpy()
            offset = diffuse_offset(surface.vertices, surface.faces, (known - colour).double().numpy(), both, colour.double().numpy())
            offsets.append(torch.from_numpy(offset).float())
            colour = colour + offsets[-1]
        rest = (1 - trust) * reach
        total = trust + rest
        known = (trust[:, None] * known + rest[:, None] * colour) / total.clamp_min(1e-12)[:, None]
        trust = total
    return offsets


def diffuse_offset(vertices: FloatArray, faces: IntArray, difference: FloatArray, weight: FloatArray, colour: FloatArray) -> FloatArray:
    """Return the offset o (V, 3), smooth over the surface, that explains the difference where it is known.

    It minimises weight |o - difference|^2 / OFFSET_DETAIL^2 + edge |grad o|^2 + |o|^2 / OFFSET_REACH^2:
    difference (V, 3) counts where weight (V,) > 0; `edge` is small where colour (V, 3) changes quickly.
    """
    count = len(vertices)
    edges, _ = unique_edges(faces)
    step = np.linalg.norm(colour[edges[:, 0]] - colour[edges[:, 1]], axis=1)
    conductance = 0.02 + np.exp(-0.5 * (step / COLOUR_EDGE) ** 2)
    i, j = edges[:, 0], edges[:, 1]
    laplacian = sparse.csc_array(
        (
            np.concatenate([conductance, conductance, -conductance, -conductance]),
            (np.concatenate([i, j, i, j]), np.concatenate([i, j, j, i])),
        ),
        shape=(count, count),
    )
    area = np.bincount(faces.ravel(), np.repeat(np.linalg.norm(face_normals(vertices, faces), axis=1) / 6, 3), count)
    area = np.maximum(area, 1e-3 * area.mean())
    data = area * weight / OFFSET_DETAIL**2
    system = laplacian + sparse.diags_array(data + area / OFFSET_REACH**2)
    solver = splu(sparse.csc_matrix(system), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    right = data[:, None] * np.where(weight[:, None] > 0, difference, 0)
    return np.stack([solver.solve(right[:, k]) for k in range(3)], axis=1)


def _composite(points: _Points, offsets: Sequence[Tensor], layers: list[_Layer], field: Field, context: Context) -> Tensor:
    """Lay the layers over each other at the texels: colours (n, 3)."""
    count = len(points.position)
    colours, open_share = torch.zeros(count, 3), torch.ones(count)
    own: Tensor | None = None
    for number, layer in enumerate(layers):
        if layer.relative and own is None:
            own = _colour_where(open_share > NEGLIGIBLE, field, points, context)
        for start in range(0, count, TEXELS_PER_CHUNK):
            part = slice(start, start + TEXELS_PER_CHUNK)
            colour, trust = layer.blend(points[part])
            if layer.relative and own is not None:
                colour = colour + own[part]
            if number > 0:
                colour = colour + offsets[number - 1][part]
            share = open_share[part] * trust
            colours[part] += share[:, None] * colour.clamp(0, 1)
            open_share[part] -= share
            context.report(2, 4)
    rest = open_share > NEGLIGIBLE
    colour = _colour_where(rest, field, points, context) if own is None else own
    colours[rest] += open_share[rest, None] * (colour[rest] + offsets[-1][rest] if layers else colour[rest]).clamp(0, 1)
    return colours


def _colour_where(wanted: Tensor, field: Field, points: _Points, context: Context) -> Tensor:
    """Return the field's colours (n, 3) at the points that are wanted (n,) bool, 0 at the others."""
    colours = torch.zeros(len(wanted), 3)
    colours[wanted] = _field_colour(field, points[wanted], context)
    return colours
