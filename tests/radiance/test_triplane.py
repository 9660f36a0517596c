"""Tri-plane sampling and decoding: the compiled paths give the plain torch results; layouts and conventions."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from portrait_backend.radiance.decoder import Decoder, DensityActivation
from portrait_backend.radiance.head import TriPlane
from portrait_backend.radiance.triplane import STARTER_AXES, Axes, _sample_torch, resize_planes, sample_planes, to_channels_last, to_neutral

EG3D_AXES: Axes = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("axes", [STARTER_AXES, EG3D_AXES])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("channels", [6, 32])
def test_the_kernel_gives_the_torch_values_and_gradients(channels: int, depth: int, axes: Axes) -> None:
    planes, points = _random(2, 3, depth, 7, 5, channels), _random(2, 300, 3, seed=1) * 0.8  # a fifth lie outside the box
    results = []
    for sample in (sample_planes, _sample_torch):
        leaf = planes.clone().requires_grad_()
        out = sample(leaf, points, axes)
        (out * _random(*out.shape, seed=2)).sum().backward()
        results.append((out.detach(), leaf.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-4)


def test_one_image_is_scattered_in_channel_groups_with_the_same_result() -> None:
    planes, points = _random(1, 3, 2, 8, 8, 4), _random(1, 200, 3, seed=1) * 0.5
    gradients = []
    for sample in (sample_planes, _sample_torch):
        leaf = planes.clone().requires_grad_()
        sample(leaf, points, STARTER_AXES).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, atol=1e-4)


def test_texel_centres_are_reproduced_and_each_axis_goes_where_it_should() -> None:
    planes = torch.zeros(1, 3, 1, 4, 4, 1)
    planes[0, 0, 0, 3, 0] = 1  # plane (x, y): high y, low x
    planes[0, 1, 0, 1, 2] = 10  # plane (z, y): lower y, z = +0.25
    points = torch.tensor([[[-0.75, 0.75, 0.9], [0.9, -0.25, 0.25], [-0.75, -0.25, 0.25], [0.75, 0.75, -0.9]]])
    assert sample_planes(planes, points)[0, :, 0].tolist() == pytest.approx([1, 10, 10, 0])


def test_beyond_the_border_the_edge_texel_counts() -> None:
    planes = _random(1, 3, 2, 6, 6, 3)
    edge = sample_planes(planes, torch.full((1, 1, 3), 1.0))
    assert torch.equal(edge, sample_planes(planes, torch.full((1, 1, 3), 7.0)))


def test_the_neutral_layout_round_trips_and_is_slice_major() -> None:
    neutral = _random(3, 6, 4, 5)
    planes = to_channels_last(neutral, 2)
    assert planes.shape == (1, 3, 2, 4, 5, 3)
    assert torch.equal(planes[0, 1, 1, 2, 3, 0], neutral[1, 3, 2, 3])
    assert torch.equal(to_neutral(planes), neutral)


def test_a_triplane_samples_in_head_units_with_its_own_box_and_reduction() -> None:
    features, points = _random(3, 4, 8, 8), _random(50, 3, seed=1) * 0.2
    summed = TriPlane(features, half_extent=0.65)
    mean = TriPlane(features, half_extent=0.65, reduce="mean")
    expected = _sample_torch(to_channels_last(features, 1), points[None] / 0.65, STARTER_AXES)[0]
    assert torch.allclose(summed.sample(points), expected, atol=1e-5)
    assert torch.allclose(mean.sample(points) * 3, expected, atol=1e-5)
    assert torch.equal(summed.features, features)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": 3}, "features must be"),
        ({"axes": ((0, 1, 1), (0, 1, 2), (0, 1, 2))}, "permutation"),
        ({"reduce": "max"}, "'max'"),
        ({"half_extent": 0}, "positive"),
    ],
)
def test_impossible_triplanes_are_refused(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TriPlane(torch.zeros(3, 4, 8, 8), **options)


def test_a_given_memory_holds_the_gradient_of_the_last_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    planes, points = torch.randn(1, 3, 2, 8, 8, 4, generator=generator).requires_grad_(True), torch.rand(1, 50, 3, generator=generator)
    memory = torch.full_like(planes, 7.0, requires_grad=False)
    for part in (points, points[:, :20]):
        (expected,) = torch.autograd.grad(sample_planes(planes, part).square().sum(), planes)
        (found,) = torch.autograd.grad(sample_planes(planes, part, gradient=memory).square().sum(), planes)
        torch.testing.assert_close(found, expected)
        assert found.data_ptr() == memory.data_ptr()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [13, 32])
def test_resizing_is_torchs_own(mode: Literal["bicubic", "bilinear"], size: int) -> None:
    planes = torch.randn(1, 3, 2, 16, 16, 4, generator=torch.Generator().manual_seed(0))
    flat = planes.reshape(6, 16, 16, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(flat, size=(size, size), mode=mode, align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(resize_planes(planes, size, mode), expected.reshape(1, 3, 2, size, size, 4))


def test_resizing_keeps_a_ramp_in_its_place() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 1, 8, 1).expand(1, 3, 2, 8, 8, 2).contiguous()
    large = resize_planes(ramp, 16)
    assert large.shape == (1, 3, 2, 16, 16, 2)
    assert torch.allclose(large, large[:1, :1, :1, :1].expand_as(large), atol=1e-5)
    assert torch.allclose(large[0, 0, 0, 0, 4:12, 0], (torch.arange(4, 12) + 0.5) / 2 - 0.5, atol=0.1)
    assert resize_planes(ramp, 8) is ramp


@pytest.mark.parametrize("outputs", [1, 4, 33])
@pytest.mark.parametrize("trained", [True, False])
def test_blocked_decoding_gives_the_plain_values_and_gradients(outputs: int, trained: bool) -> None:
    decoder = Decoder(8, 16).requires_grad_(trained)
    features = _random(5000, 8)  # more than one block
    results = []
    for dtype in (torch.float32, torch.float64):  # float64 takes the plain path
        leaf = features.to(dtype, copy=True).requires_grad_()
        network = decoder.to(dtype)
        network.zero_grad()
        raw, values = network(leaf, outputs)
        (raw.square().sum() + values.square().sum()).backward()
        weights = [p.grad.clone().float() for p in network.parameters() if p.grad is not None]
        results.append([raw.detach().float(), values.detach().float(), leaf.grad.float(), *weights])
    assert len(results[0]) == len(results[1]) == (9 if trained else 3)
    for blocked, plain in zip(*results, strict=True):
        assert torch.allclose(blocked, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max() if plain.numel() else 1))


def test_the_surface_level_is_half_of_a_solid() -> None:
    activation = DensityActivation()
    assert activation(torch.tensor(-activation.bias / activation.gain)).item() == pytest.approx(activation.surface)
    assert DensityActivation("softplus", bias=-1)(torch.tensor(2.0)).item() == pytest.approx(F.softplus(torch.tensor(1.0)).item())
    with pytest.raises(ValueError, match="relu"):
        DensityActivation("relu")(torch.zeros(1))
