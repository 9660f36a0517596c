"""Crops of a photo and the poses that see them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from portrait_backend.prior.crops import CROPS, cropped
from portrait_backend.radiance.cameras import Camera


@pytest.mark.parametrize("crop", CROPS)
def test_the_pose_sees_what_the_crop_shows(crop: tuple[float, float]) -> None:
    """A dot drawn where a point of the head is seen lies, in the crop, where the moved pose sees the point."""
    camera, point = Camera.orbit(15, -8, 512), torch.tensor([[0.05, 0.1, 0.2]])
    y, x = torch.meshgrid(torch.arange(512) + 0.5, torch.arange(512) + 0.5, indexing="ij")
    pixel = camera.project(point)[0][0]
    dot = ((x - pixel[0]) ** 2 + (y - pixel[1]) ** 2 < 36).float()
    shown, pose = cropped(torch.stack([dot, dot, dot, dot], -1), camera.world_to_camera, *crop)
    weight = shown[..., 3] / shown[..., 3].sum()
    seen = replace(camera, world_to_camera=pose).project(point)[0][0]
    assert float((seen - torch.stack([(x * weight).sum(), (y * weight).sum()])).norm()) < 2.5
    moved = float((seen - pixel).norm())
    assert moved == 0 if crop == (1.0, 0.0) else moved > 3


def test_beyond_the_photo_there_is_nothing() -> None:
    everything = torch.ones(64, 64, 4)
    crop, _ = cropped(everything, Camera.orbit(0, 0, 64).world_to_camera, 1.0, 0.25)
    assert (crop[:55, :, 3] == 1).all() and (crop[57:, :, 3] == 0).all()
