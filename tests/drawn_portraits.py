"""Portraits of heads that are known: what a photo of them would be."""

from __future__ import annotations

import torch
from torch import Tensor

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head


@torch.no_grad()
def portrait_of(head: Head, size: int = 128, azimuth: float = 0.0) -> Portrait:
    """Return the photo, size px, that a camera at an azimuth in degrees takes of a head; no landmarks."""
    camera = Camera.orbit(azimuth, 0, size)
    out = head.render(camera)
    rgba = torch.cat([(out.rgb / out.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1), out.alpha[..., None]], -1)
    return Portrait(
        image=rgba[..., :3],
        rgba=rgba,
        valid=torch.ones(size, size),
        landmarks=torch.zeros(468, 2),
        camera=camera,
        coefficients=torch.zeros(25),
        yaw=azimuth,
        pitch=0.0,
        roll=0.0,
        source="drawn",
        sha256="",
    )


def sitter(rgb: Tensor, matte: Tensor) -> Portrait:
    """Return the photo (512, 512, 3) with its matte (512, 512) of a sitter with the mean face, who looks into the camera."""
    camera = Camera.orbit(0, 0, 512)
    return Portrait(
        image=rgb,
        rgba=torch.cat([rgb, matte[..., None]], -1),
        valid=torch.ones(512, 512),
        landmarks=camera.project(load_landmark_model().mean.float())[0],
        camera=camera,
        coefficients=torch.zeros(25),
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        source="drawn",
        sha256="0" * 64,
    )
