"""Lift the photo: un-project it through a person-specific proxy surface onto canonical front, left and right maps.

The proxy is three depth maps over the box (what the front, the subject's left and right side look like),
a mean plus a linear function of the landmark model's coefficients. The lifted maps are the encoder's
best input and, copied into the planes, carry the photo's detail at full resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.radiance.cameras import focal_pixels

HALF = 0.5
"""Half extent of the field's box, head units."""
MAPS = ((0, 1, 2, 1.0), (2, 1, 0, 1.0), (2, 1, 0, -1.0))
"""Per map: axis along its width, axis along its height, depth axis, side it is seen from."""
FACING = (0.15, 0.3, 0.3)
"""Cosine between surface and camera from which a map's colour counts fully, per map."""
BUFFER, TOLERANCE = 56, 0.06
"""Side of the coarse depth buffer that finds hidden points, and its slack in head units."""


class ProxySurface(nn.Module):
    """Depth maps mean (3, G, G) + basis (K, 3, G, G), head units along each map's depth axis; rows run upward."""

    mean: Tensor
    basis: Tensor

    def __init__(self, coefficients: int, grid: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, grid, grid))
        self.register_buffer("basis", torch.zeros(coefficients, 3, grid, grid))

    def forward(self, coefficients: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return points and unit normals (B, 3, size, size, 3) of the proxies of coefficients (B, K)."""
        depth = self.mean + torch.einsum("bk,kmhw->bmhw", coefficients.clamp(-2.5, 2.5), self.basis)
        depth = F.interpolate(depth, size=(size, size), mode="bilinear", align_corners=False)
        g = ((torch.arange(size, device=depth.device) + 0.5) / size * 2 - 1) * HALF
        v, u = torch.meshgrid(g, g, indexing="ij")
        step = 2 * HALF / size
        points, normals = [], []
        for m, (a, b, c, side) in enumerate(MAPS):
            d = depth[:, m]
            slope_u = F.pad(d[:, :, 2:] - d[:, :, :-2], (1, 1)) / (2 * step)
            slope_v = F.pad(d[:, 2:] - d[:, :-2], (0, 0, 1, 1)) / (2 * step)
            p: list[Tensor] = [d] * 3
            n: list[Tensor] = [d] * 3
            p[a], p[b], p[c] = u.expand_as(d), v.expand_as(d), d
            n[a], n[b], n[c] = -slope_u * side, -slope_v * side, torch.full_like(d, side)
            points.append(torch.stack(p, -1))
            normals.append(F.normalize(torch.stack(n, -1), dim=-1))
        return torch.stack(points, 1), torch.stack(normals, 1)


def project_normalised(pose: Tensor, points: Tensor) -> Tensor:
    """Project points (B, N, 3) with world-to-camera (B, 3, 4) of the reference intrinsics to [-1, 1] (B, N, 2)."""
    x = points @ pose[:, :, :3].transpose(1, 2) + pose[:, None, :, 3]
    return x[..., :2] / x[..., 2:] * (2 * focal_pixels(1))


def unoccluded(pose: Tensor, points: Tensor) -> Tensor:
    """Return which proxy points (B, 3, r, r, 3) the front map does not hide from the camera of `pose`: (B, 3, r, r) bool.

    Only the front map occludes: the side maps are meaningless outside the head's profile.
    """
    batch, maps, size = points.shape[:3]
    flat = points.reshape(batch, -1, 3)
    z = flat @ pose[:, 2, :3, None] + pose[:, 2, 3].view(-1, 1, 1)
    z = z[..., 0]
    cell = ((project_normalised(pose, flat) * 0.5 + 0.5) * BUFFER).long().clamp(0, BUFFER - 1)
    index, front = cell[..., 1] * BUFFER + cell[..., 0], size * size
    nearest = z.new_full((batch, BUFFER * BUFFER), 9.0).scatter_reduce(1, index[:, :front], z[:, :front], "amin")
    return (z < nearest.gather(1, index) + TOLERANCE).view(batch, maps, size, size)


def lift(image: Tensor, pose: Tensor, points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Sample image (B, C, h, w) where the proxies (B, 3, r, r, 3) project: maps (B, 3, C, r, r), facing weight (B, 3, 1, r, r).

    Rows of the maps run upward (plane orientation). The weight is 0 where the proxy faces away or is hidden from
    the camera of `pose` (B, 3, 4), 1 where it faces it well: colours there would be smeared.
    """
    batch, maps, size = points.shape[:3]
    uv = project_normalised(pose, points.reshape(batch, -1, 3))
    sampled = F.grid_sample(image, uv.view(batch, maps * size, size, 2), align_corners=False, padding_mode="border")
    colour = sampled.view(batch, -1, maps, size, size).transpose(1, 2)
    centre = -(pose[:, :, :3].transpose(1, 2) @ pose[:, :, 3:])[:, None, None, None, :, 0]
    cosine = (normals * F.normalize(centre - points, dim=-1)).sum(-1)
    full = torch.tensor(FACING, device=image.device).view(1, 3, 1, 1)
    return colour, ((cosine / full).clamp(0, 1) * unoccluded(pose, points))[:, :, None]


def copied_planes(maps: Tensor, weight: Tensor, depth: int = 2) -> Tensor:
    """Arrange lifted maps in [-1, 1] (B, 3, 4, r, r) as plane channels (B, 3, depth, r, r, 4); unseen = 0.

    The front map lies on the last slice of the (x, y) plane, right and left on the outer slices of the (z, y) plane.
    """
    m = (maps * weight).permute(0, 1, 3, 4, 2)
    planes = m.new_zeros(m.shape[0], 3, depth, *m.shape[2:])
    planes[:, 0, -1], planes[:, 1, -1], planes[:, 1, 0] = m[:, 0], m[:, 1], m[:, 2]
    return planes
