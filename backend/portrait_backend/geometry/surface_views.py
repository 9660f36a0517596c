"""What a view knows of the surface: depth, alpha and normals with the camera, batched; and which of its pixels may be carried elsewhere.

An expected depth floats between figure and ground at silhouettes, and every pixel that is wrong by a little shows up far away once
it is turned by 30 degrees. So a pixel is carried only if nothing speaks against it (`Culling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.radiance.cameras import Camera


@dataclass(frozen=True)
class Culling:
    """When a pixel is not carried from its view (the driver) into another (the target).

    facing: least cosine between its normal and the direction to the camera, in both views; behind: how far (head units, one
    side of the box is 1) it may lie behind the target's own depth, beyond what the slope explains; edge: range of depth in 3 x 3
    pixels, beyond what the slope explains, that makes a depth edge; opacity: least alpha; erode: pixels taken off the
    silhouette at `reference` pixels of image width, in proportion at other sizes.
    """

    facing: float = 0.15
    behind: float = 0.015
    edge: float = 0.02
    opacity: float = 0.9
    erode: float = 1.5
    reference: int = 256


@dataclass(frozen=True)
class SurfaceView:
    """B views of a surface, all H x W px: depth (B, H, W) camera z, 0 where empty; alpha (B, H, W); normals (B, H, W, 3) world, unit.

    pose (B, 3, 4) world-to-camera, intrinsics (B, 3, 3) in pixels of this size.
    """

    depth: Tensor
    alpha: Tensor
    normals: Tensor
    pose: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.depth.shape)
        fits = self.alpha.shape == self.depth.shape and tuple(self.normals.shape) == (*shape, 3)
        if len(shape) != 3 or not fits or tuple(self.pose.shape) != (shape[0], 3, 4) or tuple(self.intrinsics.shape) != (shape[0], 3, 3):
            raise ValueError(
                "SurfaceView needs depth and alpha (B, H, W), normals (B, H, W, 3), pose (B, 3, 4), intrinsics (B, 3, 3), got "
                f"{shape}, {tuple(self.alpha.shape)}, {tuple(self.normals.shape)}, {tuple(self.pose.shape)}, {tuple(self.intrinsics.shape)}"
            )

    @classmethod
    def from_cameras(cls, depth: Tensor, alpha: Tensor, cameras: Sequence[Camera], normals: Tensor | None = None) -> SurfaceView:
        """Combine maps (B, H, W) with B cameras of their size; normals come from the depth where they aren't given."""
        pose = torch.stack([c.world_to_camera for c in cameras]).to(depth)
        intrinsics = torch.stack([c.intrinsics for c in cameras]).to(depth)
        if normals is None:
            normals = normals_of_depth(depth, pose, intrinsics)
        return cls(depth, alpha, normals, pose, intrinsics)

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.depth.shape[1])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.depth.shape[2])

    @property
    def centre(self) -> Tensor:
        """Camera positions (B, 3) in the world."""
        return -(self.pose[:, :, :3].transpose(1, 2) @ self.pose[:, :, 3:])[..., 0]

    def points(self) -> Tensor:
        """Return the surface points (B, H * W, 3) of all pixels in the world; those of empty pixels mean nothing."""
        return lift_depth(self.depth, self.pose, self.intrinsics)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points (B, N, 3): pixels (B, N, 2) and camera z (B, N)."""
        x = points @ self.pose[:, :, :3].transpose(1, 2) + self.pose[:, None, :, 3]
        uvw = x @ self.intrinsics.transpose(1, 2)
        z = x[..., 2]
        return uvw[..., :2] / torch.where(z.abs() > 1e-6, z, 1e-6)[..., None], z

    def __getitem__(self, rows: Tensor | slice | list[int]) -> SurfaceView:
        """Return some of the B views."""
        return SurfaceView(self.depth[rows], self.alpha[rows], self.normals[rows], self.pose[rows], self.intrinsics[rows])

    def to(self, device: torch.device) -> SurfaceView:
        """Return the views on `device`."""
        return SurfaceView(*(x.to(device) for x in (self.depth, self.alpha, self.normals, self.pose, self.intrinsics)))

    def shrunk(self, size: int) -> SurfaceView:
        """Return the views `size` px wide: each cell takes its nearest point (an average would float between two surfaces).

        The width must be a multiple of `size`.
        """
        if size == self.width:
            return self
        factor = self.width // size
        if size * factor != self.width or self.height % factor:
            raise ValueError(f"a view of {self.width} x {self.height} px can't be shrunk to {size} px: not a whole factor")
        batch, rows = len(self.depth), self.height // factor
        solid = torch.where((self.depth > 0) & (self.alpha > 0.5), self.depth, float("inf"))
        cells = solid.view(batch, rows, factor, size, factor).transpose(2, 3).reshape(batch, rows, size, factor * factor)
        depth, pick = cells.min(-1)

        def picked(x: Tensor) -> Tensor:
            x = x.view(batch, rows, factor, size, factor, -1).transpose(2, 3).reshape(batch, rows, size, factor * factor, -1)
            return x.gather(3, pick[..., None, None].expand(-1, -1, -1, 1, x.shape[-1]))[..., 0, :]

        empty = torch.isinf(depth)
        alpha = picked(self.alpha)[..., 0].masked_fill(empty, 0.0)
        normals = picked(self.normals).masked_fill(empty[..., None], 0.0)
        scale = self.intrinsics.new_tensor([1 / factor, 1 / factor, 1.0]).view(1, 3, 1)
        return SurfaceView(depth.masked_fill(empty, 0.0), alpha, normals, self.pose, self.intrinsics * scale)

    def solid(self, culling: Culling) -> Tensor:
        """Return (B, H, W) bool: pixels that may be carried anywhere at all: opaque, off the silhouette, off depth edges, facing."""
        opaque = (self.depth > 0) & (self.alpha >= culling.opacity)
        reach = round(culling.erode * self.width / culling.reference)
        inner = opaque if reach == 0 else _pool(opaque.float(), 2 * reach + 1, least=True) > 0.5
        return inner & ~self.depth_edges(culling) & (self.facing() >= culling.facing)

    def facing(self) -> Tensor:
        """Return (B, H, W): cosine between the normal and the direction to the camera."""
        return (self.normals * F.normalize(self.centre[:, None, None] - self.points().view(self.normals.shape), dim=-1)).sum(-1)

    def tolerance(self, culling: Culling) -> Tensor:
        """Return (B, H, W): how far two looks at the same point may differ in depth: `behind`, and what its slope makes of half a pixel."""
        return culling.behind + 0.5 * self._rise(culling)

    def _rise(self, culling: Culling) -> Tensor:
        """Change of depth (B, H, W) from one pixel to the next that the slope explains."""
        cosine = self.facing().clamp(max(culling.facing, 0.05), 1)
        return (1 - cosine**2).sqrt() / cosine * self.depth / self.intrinsics[:, 0, 0].view(-1, 1, 1)

    def depth_edges(self, culling: Culling) -> Tensor:
        """Return (B, H, W) bool: pixels beside a step of the depth that no slope explains."""
        solid = self.depth > 0
        high = _pool(torch.where(solid, self.depth, float("-inf")), 3)
        low = _pool(torch.where(solid, self.depth, float("inf")), 3, least=True)
        return solid & (high - low > culling.edge + 3 * self._rise(culling))


def lift_depth(depth: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """Lift z-depth (B, H, W) to world points (B, H * W, 3); depth along unit rays must be made z first (`ray_distance_to_z`)."""
    batch, height, width = depth.shape
    directions = _directions(height, width, intrinsics)
    local = directions * depth.reshape(batch, -1, 1)
    return (local - pose[:, None, :, 3]) @ pose[:, :, :3]


def ray_distance_to_z(distance: Tensor, intrinsics: Tensor) -> Tensor:
    """Turn distance along unit rays (B, H, W), as EG3D-like renderers give it, into camera z (B, H, W)."""
    batch, height, width = distance.shape
    return distance / _directions(height, width, intrinsics).norm(dim=-1).view(batch, height, width)


def normals_of_depth(depth: Tensor, pose: Tensor, intrinsics: Tensor) -> Tensor:
    """Return world normals (B, H, W, 3), toward the camera, of z-depth (B, H, W) by differences of neighbours; 0 beside empty pixels.

    Of the two one-sided differences the flatter one counts, so that a depth edge doesn't tilt the surface beside it.
    """
    batch, height, width = depth.shape
    points = lift_depth(depth, pose, intrinsics).view(batch, height, width, 3)
    across = [_flatter(points, depth, dim) for dim in (2, 1)]
    normal = F.normalize(torch.linalg.cross(across[1], across[0]), dim=-1, eps=1e-12)
    centre = -(pose[:, :, :3].transpose(1, 2) @ pose[:, :, 3:])[..., 0]
    outward = ((centre[:, None, None] - points) * normal).sum(-1, keepdim=True)
    return torch.where(outward < 0, -normal, normal) * (depth > 0)[..., None]


def _flatter(points: Tensor, depth: Tensor, dim: int) -> Tensor:
    """Difference of `points` along a dimension, to the side on which the depth changes less and both pixels are solid."""
    step = points.diff(dim=dim)
    change = torch.where((depth > 0) & (depth.roll(-1, dim) > 0), (depth.roll(-1, dim) - depth).abs(), float("inf"))
    change = change.narrow(dim, 0, depth.shape[dim] - 1)
    pad = [0] * 6
    pad[2 * (3 - dim) : 2 * (3 - dim) + 2] = [0, 1]
    forward = F.pad(step, pad)
    pad[2 * (3 - dim) : 2 * (3 - dim) + 2] = [1, 0]
    backward = F.pad(step, pad)
    edge = [0] * 4
    edge[2 * (2 - dim) : 2 * (2 - dim) + 2] = [0, 1]
    ahead = F.pad(change, edge, value=float("inf"))
    edge[2 * (2 - dim) : 2 * (2 - dim) + 2] = [1, 0]
    behind = F.pad(change, edge, value=float("inf"))
    chosen = torch.where((ahead <= behind)[..., None], forward, backward)
    return chosen.masked_fill((torch.minimum(ahead, behind) == float("inf"))[..., None], 0.0)


def _directions(height: int, width: int, intrinsics: Tensor) -> Tensor:
    """Return camera-space directions (B, H * W, 3) of unit z through the pixel centres."""
    y, x = torch.meshgrid(
        torch.arange(height, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5,
        torch.arange(width, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    return pixels @ torch.linalg.inv(intrinsics).transpose(1, 2)


def _pool(x: Tensor, window: int, least: bool = False) -> Tensor:
    """Largest (or least) value of x (B, H, W) in a window; outside the image nothing counts for the largest, zero-free for the least."""
    if least:
        return -F.max_pool2d(-x[:, None], window, 1, window // 2)[:, 0]
    return F.max_pool2d(x[:, None], window, 1, window // 2)[:, 0]
