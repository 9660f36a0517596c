"""Pictures of a finished mesh: unlit, with its texture, as the artist gets it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera

SUPERSAMPLING = 2
"""Samples per pixel and direction."""


def picture(mesh: HeadMesh, camera: Camera) -> tuple[Tensor, Tensor]:
    """Return premultiplied colour (H, W, 3) and alpha (H, W) in [0, 1] of the mesh at a camera in head units, on the CPU."""
    height, width = SUPERSAMPLING * camera.height, SUPERSAMPLING * camera.width
    vertices, faces = torch.as_tensor(mesh.vertices) / METRES_PER_UNIT, torch.as_tensor(mesh.faces)
    pixels, z = camera.project(vertices)
    found = rasterise(torch.cat([pixels * SUPERSAMPLING, z[:, None]], 1), faces, height, width)
    uv = found.interpolate(faces, torch.as_tensor(mesh.uv))
    texture = torch.as_tensor(mesh.texture).permute(2, 0, 1)[None].float() / 255
    at = torch.stack([uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2], -1)[None]
    covered = found.covered[None, None].float()
    colour = F.grid_sample(texture, at, align_corners=False, padding_mode="border") * covered
    rgba = F.avg_pool2d(torch.cat([colour, covered], 1), SUPERSAMPLING)[0].permute(1, 2, 0)
    return rgba[..., :3], rgba[..., 3]
