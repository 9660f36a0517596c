"""Views of a head as the diffusion prior sees them: colour and camera-space normals over mid grey, with depth for the reprojection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.diffusion import BACKGROUND
from portrait_backend.geometry.surface_views import SurfaceView
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import surface_normals

SOLID = 0.5
"""Alpha below which a pixel has no depth: an expected depth there means nothing."""


@dataclass(frozen=True)
class ViewImages:
    """One rendered view: image and normals (1, 3, S, S) over grey, alpha (1, 1, S, S), and its surface (one view)."""

    image: Tensor
    normals: Tensor
    alpha: Tensor
    surface: SurfaceView


def render_view(head: Head, camera: Camera, grid: DensityGrid, samples: int) -> ViewImages:
    """Render a view; the image (and alpha) keep their graph to the head's planes, normals and surface are constants."""
    out = head.render(camera, grid=grid, samples=samples)
    with torch.no_grad():
        alpha = out.alpha.detach()
        depth = torch.where(alpha > SOLID, out.depth.detach(), 0.0)
        origin, directions = camera.rays()
        normals = torch.zeros(*depth.shape, 3, dtype=depth.dtype, device=depth.device)
        hit = depth > 0
        points = origin + directions * depth.reshape(-1, 1)
        normals[hit] = surface_normals(head, points[hit.reshape(-1)])
        surface = SurfaceView.from_cameras(depth[None], alpha[None], [camera], normals[None])
        normal = normal_image(surface)
    image = (out.rgb + BACKGROUND * (1 - out.alpha[..., None])).permute(2, 0, 1)[None]
    return ViewImages(image, normal, out.alpha[None, None], surface)


def normal_image(surface: SurfaceView) -> Tensor:
    """Return the surface's normals as images (B, 3, H, W): camera space, x right, y up, z toward the viewer, (n + 1) / 2 over grey."""
    flip = surface.pose.new_tensor([1.0, -1.0, -1.0]).view(1, 3, 1)
    local = torch.einsum("bij,bhwj->bihw", flip * surface.pose[:, :, :3], surface.normals)
    alpha = surface.alpha[:, None] * (surface.depth > 0)[:, None]
    return (local * 0.5 + 0.5).clamp(0, 1) * alpha + BACKGROUND * (1 - alpha)


def photo_image(portrait: Portrait, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the photo over grey (1, 3, size, size), its matte and where it is valid (1, 1, size, size)."""
    rgb, matte = portrait.rgba[..., :3], portrait.rgba[..., 3:]
    stacked = torch.cat([rgb * matte + BACKGROUND * (1 - matte), matte, portrait.valid[..., None]], -1).permute(2, 0, 1)[None]
    small = (
        F.interpolate(stacked, size=(size, size), mode="area") if size <= stacked.shape[-1] else F.interpolate(stacked, size=(size, size))
    )
    return small[:, :3], small[:, 3:4], small[:, 4:]
