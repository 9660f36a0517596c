"""EG3D-family generators: published names and shapes, the paper's arithmetic, planes read by the one renderer as they were trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from portrait_backend.models.checkpoint_kinds import KINDS, Planes
from portrait_backend.models.conversion import METADATA_KEY, convert_checkpoint
from portrait_backend.prior.eg3d import PlaneGenerator, build_generator, config_of, load_generator, neutral_planes
from portrait_backend.prior.stylegan import EqualisedLinear, modulated_convolution, upsample
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_shared.errors import PortraitDiffusionError
from tests.models.pickled_networks import network_pickle
from tests.prior.published_names import full_channels, generator, unused


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def thin(kind: str, finest: int = 16) -> tuple[PlaneGenerator, dict[str, torch.Tensor]]:
    """A small generator of the kind with random weights, and those weights."""
    channels = {2**k: 8 for k in range(2, int(math.log2(finest)) + 1)}
    shapes = generator(kind, channels)
    tensors = {name: random(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    network = build_generator(kind, shapes)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(False).eval(), tensors


@pytest.mark.parametrize("kind", ["eg3d", "panohead"])
def test_every_published_tensor_has_its_place_and_shape(kind: str) -> None:
    shapes = generator(kind, full_channels())
    network = build_generator(kind, shapes)
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    config = config_of(shapes)
    assert config.channels == full_channels() and config.styles == 14 and config.z_dim == 512 and config.mapping_layers == 2
    planes = network.backbone(torch.empty(512, device="meta"))
    depth = KINDS[kind].planes.depth
    assert planes.shape == (1, 96 * depth, 256, 256) and neutral_planes(planes, KINDS[kind].planes).shape == (3, 32 * depth, 256, 256)
    w = network.latent(torch.empty(512, device="meta"), torch.empty(25, device="meta"))
    assert w.shape == network.mean_latent.shape == (512,)


def test_upsampling_keeps_a_constant_and_doubles_the_size() -> None:
    y = upsample(torch.full((1, 2, 6, 6), 3.0))
    assert y.shape == (1, 2, 12, 12)
    torch.testing.assert_close(y[..., 2:-2, 2:-2], torch.full((1, 2, 8, 8), 3.0))
    ramp = upsample(torch.arange(8.0).expand(1, 1, 8, 8))[0, 0, 8, 4:12]
    torch.testing.assert_close(ramp.diff(), torch.full((7,), 0.5))


def test_the_upsampling_convolution_is_a_transposed_one_followed_by_the_filter() -> None:
    """The paper's own way (a strided transposed convolution, then the low-pass filter) against ours."""
    x, weight, style = random(1, 3, 5, 5), random(4, 3, 3, 3, seed=1), random(1, 3, seed=2)
    scaled = weight * style[0, None, :, None, None]
    scaled = scaled / (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    wide = F.conv_transpose2d(x, scaled.transpose(0, 1), stride=2)
    tap = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (torch.outer(tap, tap) * 4).expand(4, 1, 4, 4)
    expected = F.conv2d(F.pad(wide, (1, 1, 1, 1)), kernel, groups=4)
    torch.testing.assert_close(modulated_convolution(x, weight, style, up=True), expected, atol=1e-5, rtol=1e-5)


def test_demodulation_undoes_the_scale_of_styles() -> None:
    x, weight, style = random(1, 3, 5, 5), random(4, 3, 3, 3, seed=1), random(1, 3, seed=2)
    once, twice = (modulated_convolution(x, weight, style * scale) for scale in (1.0, 7.0))
    torch.testing.assert_close(once, twice)
    plain = modulated_convolution(x, weight, torch.ones(1, 3), demodulate=False)
    torch.testing.assert_close(plain, F.conv2d(x, weight, padding=1))


def test_equalised_layers_act_as_folded_ones() -> None:
    layer = EqualisedLinear(16, 4, rate=0.01, activated=True)
    x = random(5, 16)
    expected = F.leaky_relu(x @ (layer.weight * 0.01 / 4).T + layer.bias * 0.01, 0.2) * math.sqrt(2)
    torch.testing.assert_close(layer(x), expected)


def test_no_truncation_is_the_mean_and_labels_matter() -> None:
    network, tensors = thin("eg3d")
    z, label = random(512), Camera.orbit(0, 0, 64).eg3d_label()
    torch.testing.assert_close(network.latent(z, label, 0.0), tensors["backbone.mapping.w_avg"])
    assert not torch.allclose(network.latent(z, label, 1.0), network.latent(z, Camera.orbit(90, 0, 64).eg3d_label(), 1.0))
    torch.testing.assert_close(network.latent(z * 5, label, 1.0), network.latent(z, label, 1.0), atol=1e-4, rtol=1e-4)


def test_one_w_is_the_same_w_for_every_style() -> None:
    network, _ = thin("eg3d")
    w = random(512, seed=5)
    torch.testing.assert_close(network.backbone(w), network.backbone(w.expand(6, -1)))
    with pytest.raises(ValueError, match="ws must be"):
        network.backbone(w.expand(5, -1))


def sampled_as_published(output: torch.Tensor, kind: str, points: torch.Tensor) -> torch.Tensor:
    """Features (N, 32): the networks' own way, with grid_sample on (x, y), (x, z), (z, x), or on tri-grids."""
    x, y, z = (points * 2).unbind(-1)
    if kind == "eg3d":
        planes = output.view(3, 32, *output.shape[-2:])
        grids = [torch.stack(uv, -1)[None, None] for uv in ((x, y), (x, z), (z, x))]
    else:
        planes = output.view(3, 32, 3, *output.shape[-2:])
        grids = [torch.stack(uvw, -1)[None, None, None] for uvw in ((x, y, z), (x, z, y), (y, z, x))]
    found = [F.grid_sample(p[None], grid, padding_mode="zeros", align_corners=False) for p, grid in zip(planes, grids, strict=True)]
    return torch.stack([f.reshape(32, -1).T for f in found]).mean(0)


@pytest.mark.parametrize("kind", ["eg3d", "panohead"])
def test_the_head_is_the_field_that_the_network_was_trained_as(kind: str) -> None:
    network, tensors = thin(kind)
    w = random(512, seed=3)
    head = network.head(w)
    points = (torch.rand(200, 3, generator=torch.Generator().manual_seed(1)) - 0.5) * torch.tensor([0.79, 0.99, 0.79])
    features = sampled_as_published(network.backbone(w), kind, points)
    hidden = F.softplus(features @ tensors["decoder.net.0.weight"].T / math.sqrt(32) + tensors["decoder.net.0.bias"])
    out = hidden @ tensors["decoder.net.2.weight"].T / 8 + tensors["decoder.net.2.bias"]
    torch.testing.assert_close(head.density(points), F.softplus(out[:, 0] - 1), atol=1e-4, rtol=1e-4)
    if kind == "eg3d":
        colour = torch.sigmoid(out[:, 1:4]) * 1.002 - 0.001
    else:
        style = (w @ tensors["torgb.affine.weight"].T / math.sqrt(512) + tensors["torgb.affine.bias"]) / math.sqrt(32)
        rgb = (out[:, 1:] * style) @ tensors["torgb.weight"][:, :, 0, 0].T + tensors["torgb.bias"]
        colour = (rgb + 1) / 2
    torch.testing.assert_close(head.decode(points)[1], colour, atol=1e-4, rtol=1e-4)


def test_panohead_is_empty_beside_its_bounds() -> None:
    head = thin("panohead")[0].head(random(512))
    points = torch.tensor([[0.39, 0.49, 0.39], [0.41, 0.0, 0.0], [0.0, 0.0, -0.41], [0.0, -0.49, 0.0], [0.0, 0.51, 0.0]])
    assert (head.density(points) > 0).tolist() == [True, False, False, True, False]


def test_channel_orders() -> None:
    planes = Planes(((0, 1, 2),) * 3, 0.5, depth=2, channels=3)
    output = torch.arange(3 * 3 * 2.0).view(1, 18, 1, 1)
    neutral = neutral_planes(output, planes)
    assert neutral[0, :, 0, 0].tolist() == [0, 2, 4, 1, 3, 5], "channel-major c * 2 + d becomes slice-major d * 3 + c"


@pytest.mark.parametrize("kind", ["eg3d", "panohead"])
def test_from_the_pickle_to_the_rendered_head(tmp_path: Path, kind: str) -> None:
    """Pickle -> convert -> load -> head -> image, and the head's file gives the same image."""
    channels = {2**k: 4 for k in range(2, 9)}
    content, expected = network_pickle(generator(kind, channels) | unused())
    (tmp_path / "network.pkl").write_bytes(content)
    convert_checkpoint(tmp_path / "network.pkl", kind, tmp_path / "network.safetensors")
    network = load_generator(tmp_path / "network.safetensors")
    loaded = network.state_dict()
    assert loaded.keys() == {name for name in expected if not name.startswith(("superres", "bcg", "t_mapping"))}
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)
    head = network.head(network.latent(random(512), Camera.orbit(0, 0, 8).eg3d_label()))
    image = head.render(Camera.orbit(20, 5, 8), grid=DensityGrid.build(head, 16), samples=4)
    assert image.rgb.shape == (8, 8, 3) and bool(image.rgb.isfinite().all()) and float(image.alpha.max()) > 0
    head.save(tmp_path / "head.safetensors")
    again, points = Head.load(tmp_path / "head.safetensors"), random(50, 3) * 0.2
    assert again.bounds == head.bounds and again.geometry.padding == "zeros" and again.geometry.axes == head.geometry.axes
    for found, wanted in zip(again.decode(points), head.decode(points), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)


def test_gradients_reach_w_through_the_field() -> None:
    network, _ = thin("panohead")
    w = random(512).requires_grad_()
    network.head(w).density(random(20, 3) * 0.1).sum().backward()
    assert w.grad is not None and float(w.grad.abs().sum()) > 0


def test_the_label_of_the_front_camera() -> None:
    label = Camera.orbit(0, 0, 512).eg3d_label()
    expected = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 3.0141, 0, 0.5, 0, 3.0141, 0.5, 0, 0, 1]
    expected[16] = expected[20] = 0.5 / math.tan(math.radians(18.837) / 2)
    torch.testing.assert_close(label, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("trouble", "word"),
    [("nothing", "no checkpoint"), ("garbage", "no generator"), ("other kind", "holds a portrait4d"), ("short", "no generator")],
)
def test_what_is_no_generator_is_said(tmp_path: Path, trouble: str, word: str) -> None:
    path = tmp_path / "x.safetensors"
    if trouble == "garbage":
        path.write_bytes(b"garbage")
    elif trouble != "nothing":
        kind = "portrait4d" if trouble == "other kind" else "eg3d"
        save_file({"decoder.net.0.weight": torch.zeros(64, 32)}, path, metadata={METADATA_KEY: f'{{"kind": "{kind}"}}'})
    with pytest.raises(PortraitDiffusionError, match=word) as caught:
        load_generator(path)
    assert caught.value.code == ("weights-missing" if trouble == "nothing" else "weights-unreadable")
