"""Mesh rasterising: which triangle covers each pixel centre, and where inside it.

Serves the camera view (visibility) and UV space (texture baking) alike. The nearest triangle wins, equal depths go to the lower
face index: the result is deterministic. On the CPU a compiled loop fills the image. In torch each triangle contributes the pixels of
its bounding box as candidates; all candidates of all triangles form one long list that is worked through in chunks, so
memory is bounded and there is no loop over faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES_PER_CHUNK = 1 << 20
"""Candidate pixels held at a time: about 150 MB of float64 temporaries."""
PIXELS_PER_CHUNK = 1 << 15
"""Pixels whose attributes are interpolated at a time: their corners' stay in the cache."""
EDGE_TOLERANCE = 1e-9
"""Barycentric slack that keeps pixel centres on a shared edge from falling between both triangles."""


@dataclass(frozen=True)
class Fragments:
    """What the rasteriser saw at each pixel centre.

    face (H, W) int64, -1 where empty; barycentric (H, W, 3) weights of the face's corners in the surface
    (perspective-correct), 0 where empty; depth (H, W), +inf where empty.
    """

    face: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def covered(self) -> Tensor:
        """Return (H, W) bool: True where a triangle was hit."""
        return self.face >= 0

    def gather(self, faces: Tensor, attributes: Tensor) -> Tensor:
        """Interpolate vertex attributes (V, C) at the covered pixels, row by row: (n, C)."""
        covered = self.covered
        face, weight = self.face[covered], self.barycentric[covered].to(attributes.dtype)
        parts = zip(face.split(PIXELS_PER_CHUNK), weight.split(PIXELS_PER_CHUNK), strict=True)
        return torch.cat([(share[..., None] * attributes[faces[some]]).sum(1) for some, share in parts])

    def interpolate(self, faces: Tensor, attributes: Tensor, background: float = 0.0) -> Tensor:
        """Interpolate vertex attributes (V, C) over the image: (H, W, C), `background` where empty."""
        image = attributes.new_full((*self.face.shape, attributes.shape[1]), background)
        image[self.covered] = self.gather(faces, attributes)
        return image


def rasterise(
    vertices_px: Tensor, faces: Tensor, height: int, width: int, perspective: bool = True, compiled: bool | None = None
) -> Fragments:
    """Rasterise triangles into a z-buffer of height x width pixels whose centres lie at +0.5.

    vertices_px (V, 3): x right, y down in pixels, depth (smaller is nearer); (V, 2) means depth 0.
    faces (F, 3) int64, either winding. With `perspective` depth is camera z: interpolation is
    perspective-correct and faces that reach z <= 0 are dropped (there is no near-plane clipping);
    without it depth is affine, as in UV space. Degenerate faces are skipped. compiled: None chooses the kernel on the CPU.
    """
    if vertices_px.ndim != 2 or vertices_px.shape[1] not in (2, 3) or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"rasterise needs vertices (V, 2 or 3) and faces (F, 3), got {tuple(vertices_px.shape)} and {tuple(faces.shape)}")
    vertices = vertices_px.detach().double()
    if vertices.shape[1] == 2:
        vertices = torch.cat([vertices, torch.zeros_like(vertices[:, :1])], 1)
        perspective = False
    planes, low, extent, face_ids = _set_up(vertices[faces], height, width, perspective)
    if vertices.device.type == "cpu" if compiled is None else compiled:
        return _fill(planes, low, extent, face_ids, vertices[faces[face_ids], 2], height, width, perspective)
    empty = torch.iinfo(torch.int64).max
    winner = torch.full((height * width,), empty, dtype=torch.int64, device=vertices.device)
    ends = (extent[:, 0] * extent[:, 1]).cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, CANDIDATES_PER_CHUNK):
        candidate = torch.arange(start, min(start + CANDIDATES_PER_CHUNK, total), device=vertices.device)
        triangle = torch.searchsorted(ends, candidate, right=True)
        offset = candidate - (ends - extent[:, 0] * extent[:, 1])[triangle]
        columns = extent[triangle, 0]
        row = torch.div(offset, columns, rounding_mode="floor")
        x, y = low[triangle, 0] + offset - row * columns, low[triangle, 1] + row
        value = _evaluate(planes, triangle, x, y)
        inside = (value[:, :3] >= -EDGE_TOLERANCE).all(1)
        depth = (1 / value[inside, 3]) if perspective else value[inside, 3]
        key = (sortable_bits(depth.float()) << 32) | triangle[inside]
        winner.scatter_reduce_(0, y[inside] * width + x[inside], key, "amin")
    return _fragments(winner, winner != empty, planes, face_ids, height, width, perspective, vertices, faces)


def _fill(
    planes: Tensor, low: Tensor, extent: Tensor, face_ids: Tensor, corner_depth: Tensor, height: int, width: int, perspective: bool
) -> Fragments:
    from portrait_backend.geometry import raster_kernel  # compiled at first use

    triangle = torch.full((height, width), -1, dtype=torch.int64)
    barycentric, depth = torch.zeros(height, width, 3), torch.full((height, width), float("inf"))
    arrays = [x.contiguous().numpy() for x in (planes, low, extent, corner_depth)]
    raster_kernel.fill(*arrays, perspective, EDGE_TOLERANCE, triangle.numpy(), barycentric.numpy(), depth.numpy())
    face = torch.where(triangle >= 0, face_ids[triangle.clamp_min(0)], -1) if len(face_ids) else triangle
    return Fragments(face, barycentric, depth)


def _set_up(corners: Tensor, height: int, width: int, perspective: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return affine functions (n, 4, 3) of (x, y, 1): three barycentrics and (inverse) depth; box corner, box size, face ids."""
    xy, z = corners[..., :2], corners[..., 2]
    size = torch.tensor([width, height], dtype=torch.float64, device=corners.device)
    low = (xy.amin(1) - 0.5).ceil().clamp_min(0)
    high = torch.minimum((xy.amax(1) - 0.5).floor(), size - 1)
    area = _cross(xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 0])
    keep = torch.isfinite(corners).all(2).all(1) & (area.abs() > 1e-12) & (high >= low).all(1)
    if perspective:
        keep = keep & (z > 0).all(1)
    xy, z, low, high, area = xy[keep], z[keep], low[keep], high[keep], area[keep]
    rows = []
    for i in range(3):
        a, b = xy[:, (i + 1) % 3], xy[:, (i + 2) % 3]
        rows.append(torch.stack([a[:, 1] - b[:, 1], b[:, 0] - a[:, 0], _cross(a, b)], -1) / area[:, None])
    barycentric = torch.stack(rows, 1)
    depth = ((1 / z if perspective else z)[..., None] * barycentric).sum(1, keepdim=True)
    return torch.cat([barycentric, depth], 1), low.long(), (high - low).long() + 1, keep.nonzero()[:, 0]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _evaluate(planes: Tensor, triangle: Tensor, x: Tensor, y: Tensor) -> Tensor:
    coefficients = planes.reshape(len(planes), 12)[triangle].reshape(-1, 4, 3)
    return coefficients[..., 0] * (x[:, None] + 0.5) + coefficients[..., 1] * (y[:, None] + 0.5) + coefficients[..., 2]


def sortable_bits(depth: Tensor) -> Tensor:
    """Map float32 (n,) to int64 (n,) of 32-bit range with the same order."""
    bits = depth.contiguous().view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def _fragments(
    winner: Tensor,
    hit: Tensor,
    planes: Tensor,
    face_ids: Tensor,
    height: int,
    width: int,
    perspective: bool,
    vertices: Tensor,
    faces: Tensor,
) -> Fragments:
    pixel = hit.nonzero()[:, 0]
    triangle = winner[pixel] & 0xFFFFFFFF
    row = torch.div(pixel, width, rounding_mode="floor")
    value = _evaluate(planes, triangle, pixel - row * width, row)
    weights = value[:, :3].clamp_min(0)
    if perspective:
        weights = weights / vertices[faces[face_ids[triangle]], 2]
    face = torch.full((height * width,), -1, dtype=torch.int64, device=winner.device)
    barycentric = torch.zeros(height * width, 3, device=winner.device)
    depth = torch.full((height * width,), float("inf"), device=winner.device)
    face[pixel] = face_ids[triangle]
    barycentric[pixel] = (weights / weights.sum(1, keepdim=True)).float()
    depth[pixel] = ((1 / value[:, 3]) if perspective else value[:, 3]).float()
    return Fragments(face.view(height, width), barycentric.view(height, width, 3), depth.view(height, width))
