"""The prior's network: what it does by construction, before any training."""

from __future__ import annotations

import torch

from portrait_backend.prior.network import COPIED, Palette, PriorConfig, PriorNetwork, join_planes


def test_the_palette_spreads_the_photos_colour_whatever_the_matte() -> None:
    palette = Palette(16, PriorConfig(palette=2))
    matte = torch.zeros(1, 1, 128, 128)
    matte[..., 20:90, 40:100] = 1
    colour = torch.tensor([0.8, 0.5, 0.1]).view(1, 3, 1, 1)
    image = torch.cat([colour * matte + 0.5 * (1 - matte), matte], 1)
    tokens = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(0))
    planes = palette(tokens, image, 64)
    assert planes.shape == (1, 3, 2, 64, 64, COPIED)
    expected = planes[..., 3:] * (colour.view(3) * 2 - 1)
    torch.testing.assert_close(planes[..., :3], expected, atol=1e-3, rtol=0)
    back, front = planes[0, 0, 0, ..., 3], planes[0, 0, 1, ..., 3]
    assert back.mean() > 0.4 and front.mean().abs() < 0.05, "the first colour starts on the back"


def test_copied_planes_are_added_to_the_last_channels() -> None:
    learned, copied = torch.randn(2, 5, 32), torch.randn(2, 5, COPIED)
    joined = join_planes(learned, copied)
    torch.testing.assert_close(joined[..., :-COPIED], learned[..., :-COPIED])
    torch.testing.assert_close(joined[..., -COPIED:], learned[..., -COPIED:] + copied)


def test_every_weight_gets_a_gradient() -> None:
    network = PriorNetwork(PriorConfig(widths=(8, 16, 16), blocks=1))
    generator = torch.Generator().manual_seed(0)
    pose = torch.eye(3, 4)[None] * torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1)
    pose[:, 2, 3] = 2.7
    learned, copied = network(torch.rand(1, 4, 128, 128, generator=generator), pose, torch.zeros(1, 2), torch.zeros(1, 25), autocast=False)
    assert learned.shape == (1, 3, 2, 64, 64, 32) and copied.shape == (1, 3, 2, 128, 128, COPIED)
    features = join_planes(learned[:, :, :, ::8, ::8], copied[:, :, :, ::16, ::16])
    raw, values = network.decoder(features + torch.randn(features.shape, generator=generator))
    (raw.square().sum() + values.square().sum()).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing, missing
