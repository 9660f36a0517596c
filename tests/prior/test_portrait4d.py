"""Portrait4D static: published names and shapes, its arithmetic, its planes as the one renderer reads them, from the pickle to the mesh."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from portrait_backend.context import cpu_context
from portrait_backend.models.conversion import METADATA_KEY, convert_checkpoint
from portrait_backend.models.converted import converted_path
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior import create_prior, placement, portrait4d
from portrait_backend.prior.portrait4d_network import Attention, Portrait4DConfig, Reconstructor, config_of, with_coordinates
from portrait_backend.radiance.head import Head
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PriorSettings
from tests.models.pickled_networks import network_pickle
from tests.prior.noise_heads import assert_meshes, make_solid
from tests.prior.published_names import PORTRAIT4D, PORTRAIT4D_THIN, portrait4d_unused, portrait4d_used


class Blind:
    """A face detector that sees nothing."""

    def candidates(self, rgb: object) -> list[object]:
        return []

    def measure(self, rgb: object, candidate: object) -> None:
        return None


def thin() -> Reconstructor:
    torch.manual_seed(0)
    return Reconstructor(config_of(portrait4d_used(PORTRAIT4D_THIN))).requires_grad_(False).eval()


def test_every_published_tensor_of_the_static_path_has_its_place_and_shape() -> None:
    shapes = portrait4d_used(PORTRAIT4D)
    assert config_of(shapes) == Portrait4DConfig()
    with torch.device("meta"):
        network = Reconstructor(config_of(shapes))
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes
    assert network(torch.empty(1, 3, 512, 512, device="meta")).shape == (1, 96, 256, 256)


def test_used_and_unused_tensors_are_told_apart_and_add_up_to_the_published_size() -> None:
    used, unused = portrait4d_used(PORTRAIT4D), portrait4d_unused(PORTRAIT4D)
    assert all(portrait4d.used(name) for name in used) and not any(portrait4d.used(name) for name in unused)
    assert round(sum(math.prod(shape) for shape in (used | unused).values()) / 1e6, 1) == 224.8
    assert not portrait4d.used("deformer.flame_deform.canonical_shape")


def test_the_encoders_keep_the_published_resolutions() -> None:
    with torch.device("meta"):
        network = Reconstructor()
    x = torch.empty(2, 5, 512, 512, device="meta")
    encoded = network.encoder_global(x)
    assert encoded.shape == (2, 256, 64, 64) and network.encoder_detail(x).shape == (2, 96, 256, 256)
    assert network.encoder_canonical(encoded).shape == (2, 96, 256, 256)


def test_dilated_stages_see_what_strided_ones_would() -> None:
    """At every fourth place, stages 3 and 4 with dilation give what strides would: the same kernels on the same inputs."""
    encoder = thin().encoder_global.encoder
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    block = encoder.get_submodule("layer3")[0]
    assert isinstance(block, nn.Module)
    dilated = block(x)
    strided = F.relu(F.conv2d(x, block.conv1.weight, stride=2, padding=1))  # type: ignore[union-attr, arg-type]
    undilated = F.conv2d(F.relu(F.conv2d(x, block.conv1.weight, padding=2, dilation=2)), block.conv2.weight, padding=2, dilation=2)  # type: ignore[union-attr, arg-type]
    shortcut = F.conv2d(x, block.downsample[0].weight)  # type: ignore[union-attr, index, arg-type]
    torch.testing.assert_close(dilated, F.relu(undilated + shortcut))
    assert dilated.shape[-1] == 2 * strided.shape[-1]


def test_attention_is_softmax_of_scaled_products_over_reduced_keys() -> None:
    torch.manual_seed(0)
    layer, x = Attention(8, 2, reduction=2), torch.randn(1, 16, 8)
    image = x.transpose(1, 2).reshape(1, 8, 4, 4)
    assert layer.sr is not None and layer.norm is not None
    seen = layer.norm(layer.sr(image).reshape(1, 8, 4).transpose(1, 2))
    q, (k, v) = layer.q(x), layer.kv(seen).split(8, -1)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        parts.append(torch.softmax(q[..., head] @ k[..., head].transpose(1, 2) / 2, -1) @ v[..., head])
    torch.testing.assert_close(layer(x, (4, 4)), layer.proj(torch.cat(parts, -1)))


def test_coordinates_run_from_the_upper_left_to_the_lower_right() -> None:
    x = with_coordinates(torch.zeros(1, 3, 4, 8))
    assert x.shape == (1, 5, 4, 8)
    assert x[0, 3:, 0, 0].tolist() == [-1, -1] and x[0, 3:, 3, 0].tolist() == [-1, 1] and x[0, 3:, 0, 7].tolist() == [1, -1]


def test_the_head_is_the_field_that_the_network_was_trained_as() -> None:
    """Planes on (x, y), (y, z), (z, x) of a box 1.3 wide, their mean through the decoder with its run-time gains."""
    network = thin()
    crop = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    head = portrait4d.reconstruct(network, crop)
    points = (torch.rand(100, 3, generator=torch.Generator().manual_seed(2)) - 0.5) * 1.29
    x, y, z = (points / 0.65).unbind(-1)
    planes = network(crop).view(3, 32, 32, 32)
    sampled = [
        F.grid_sample(p[None], torch.stack(uv, -1)[None, None], align_corners=False)[0, :, 0].T
        for p, uv in zip(planes, ((x, y), (y, z), (z, x)), strict=True)
    ]
    d = network.decoder
    hidden = F.softplus(torch.stack(sampled).mean(0) @ d.net[0].weight.T / math.sqrt(32) + d.net[0].bias)  # type: ignore[operator, union-attr]
    sigma = hidden @ d.out_sigma.weight[0] / 8 + d.out_sigma.bias
    colour = torch.sigmoid(hidden @ d.out_rgb.weight[:3].T / 8 + d.out_rgb.bias[:3]) * 1.002 - 0.001
    density, rgb = head.decode(points)
    torch.testing.assert_close(density, F.softplus(sigma - 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rgb, colour, atol=1e-4, rtol=1e-4)


def test_the_crop_undoes_scale_and_shift_of_the_template() -> None:
    """Five points as the published rule has them, in a photo twice as large and shifted, come back to where the crop wants them."""
    template = torch.tensor(portrait4d.TEMPLATE)[:, :2] * torch.tensor([1.0, -1.0])
    photo = template * 2 * portrait4d.TEMPLATE_PIXELS + torch.tensor([300.0, 500.0])
    similarity = portrait4d.crop_similarity(photo)
    in_crop = template * portrait4d.TEMPLATE_PIXELS + 256
    torch.testing.assert_close(torch.cat([in_crop, torch.ones(5, 1)], 1) @ similarity.T, photo, atol=0.5, rtol=0)


def test_the_nominal_placement_brings_the_template_to_the_face(portrait: Portrait) -> None:
    nominal = portrait4d.nominal()
    assert not nominal.measured and 0.6 < nominal.scale < 1
    camera = portrait4d.front_camera()
    eye = torch.tensor([-0.31148657, 0.19036078, 0.53377953])
    pixel = eye[:2] * portrait4d.TEMPLATE_PIXELS * torch.tensor([1.0, -1.0]) + 256
    from portrait_backend.portrait.head_pose import load_landmark_model
    from portrait_backend.prior.placement import five_points

    ours = five_points(load_landmark_model().mean)[0].float()
    theirs = (ours - torch.tensor(nominal.shift)) / nominal.scale
    assert float((camera.project(theirs)[0] - pixel).norm()) < 15, "the mean eye is seen where the crop rule puts it"


def write_thin_checkpoint(path: Path) -> None:
    shapes = portrait4d_used(PORTRAIT4D_THIN) | portrait4d_unused(PORTRAIT4D_THIN)
    content, _ = network_pickle(shapes, even=True)
    path.write_bytes(content)


def test_from_the_pickle_to_the_head_of_a_photo(portrait: Portrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(tmp_path))
    monkeypatch.setattr(placement, "PICTURE", 32)
    monkeypatch.setattr(placement, "GRID", 16)
    with pytest.raises(PortraitDiffusionError, match="portrait4d are not there") as caught:
        create_prior("portrait4d")
    assert caught.value.code == "weights-missing" and "models download portrait4d" in caught.value.hint
    write_thin_checkpoint(tmp_path / "published.pkl")
    target = converted_path("portrait4d")
    target.parent.mkdir()
    convert_checkpoint(tmp_path / "published.pkl", "portrait4d", target)
    make_solid(target, "decoder.out_sigma.bias")
    create_prior("portrait4d")
    head = portrait4d.Portrait4DPrior(Blind()).initialise(portrait, PriorSettings(provider="portrait4d"), cpu_context())  # type: ignore[arg-type]
    assert head.meta["provider"] == "portrait4d" and len(head.meta["weights_sha256"]) == 64
    assert head.meta["warnings"] == [portrait4d.NOT_FOUND] and head.meta["placement"]["measured"] is False
    assert head.geometry.half_extent == pytest.approx(0.65 * portrait4d.nominal().scale) and head.geometry.planes.shape == (
        1,
        3,
        1,
        256,
        256,
        32,
    )
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 0.2
    head.save(tmp_path / "head.safetensors")
    again = Head.load(tmp_path / "head.safetensors")
    assert again.geometry.centre == head.geometry.centre and again.activation == head.activation
    torch.testing.assert_close(again.density(points), head.density(points), atol=0.05, rtol=0.05)
    assert_meshes(head, portrait)
    other = replace(portrait, image=1 - portrait.image)
    changed = portrait4d.Portrait4DPrior(Blind()).initialise(other, PriorSettings(provider="portrait4d"), cpu_context())  # type: ignore[arg-type]
    assert not torch.equal(changed.geometry.planes, head.geometry.planes), "the photo is what the planes are made of"


def test_what_is_no_reconstructor_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"decoder.net.0.weight": torch.zeros(64, 32)}, path, metadata={METADATA_KEY: '{"kind": "panohead"}'})
    with pytest.raises(PortraitDiffusionError, match="holds a panohead") as caught:
        portrait4d.load_reconstructor(path)
    assert caught.value.code == "weights-unreadable"
