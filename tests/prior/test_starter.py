"""The starter prior's answer."""

from __future__ import annotations

from dataclasses import replace

import torch

from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.starter import predict_head, starter_network
from portrait_backend.radiance.cameras import mirror_cameras


def test_the_mirrored_photo_gets_the_mirrored_head(portrait: Portrait) -> None:
    """The photo's left half is darker and it looks to the side: the answer to its mirror image is the same head in a mirror."""
    rgba = portrait.rgba.clone()
    rgba[:, :256, :3] *= 0.6
    one = replace(portrait, rgba=rgba, yaw=12.0)
    other = replace(
        one,
        rgba=rgba.flip(1),
        valid=one.valid.flip(1),
        camera=replace(one.camera, world_to_camera=mirror_cameras(one.camera.world_to_camera)),
        coefficients=load_landmark_model().mirrored(one.coefficients.float()),
        yaw=-12.0,
    )
    heads = [predict_head(starter_network(), p) for p in (one, other)]
    points = (torch.rand(2000, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.6
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    near, far = heads[0].colour(points), heads[1].colour(points * mirror)
    assert float((near - heads[0].colour(points * mirror)).abs().mean()) > 0.03
    assert float((near - far).abs().mean()) < 0.01
    solid, twin = (head.density(p) > head.surface_density for head, p in ((heads[0], points), (heads[1], points * mirror)))
    assert 0.1 < float(solid.float().mean()) < 0.9 and float((solid != twin).float().mean()) < 0.01
