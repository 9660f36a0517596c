"""Painting: the photo's rays are coloured where pictures are."""

from __future__ import annotations

from dataclasses import replace

import torch

from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.paint import _photo_rays
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera


def test_the_rays_show_what_a_picture_shows(portrait: Portrait) -> None:
    head, camera = ellipsoid_head(depth=2, size=32), Camera.orbit(20, 5, 512)
    portrait = replace(portrait, camera=camera)
    rays, pixel = _photo_rays(portrait, head.picture_lattice())
    assert len(pixel) > 1000
    assert ((pixel + pixel // 512) % 2 == 0).all(), "every other pixel"
    some = slice(0, None, max(len(pixel) // 2000, 1))
    with torch.no_grad():
        colour = head.values(rays.points[some].reshape(-1, 3)).view(-1, rays.points.shape[1], 3)
    picture = head.picture(camera)
    torch.testing.assert_close(rays.weight.sum(-1), picture.alpha.flatten()[pixel])
    shown = (colour * rays.weight[some, :, None]).sum(1)
    torch.testing.assert_close(shown, picture.rgb.reshape(-1, 3)[pixel[some]], atol=1e-5, rtol=0)
