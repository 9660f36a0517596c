"""LPIPS: its arithmetic on made weights whose result is known, and that published checkpoints fit by name and shape."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from portrait_backend.evaluation.lpips import CHANNELS, SCALE, SHIFT, Lpips, Net, alexnet_features, vgg16_features

NETS: tuple[Net, ...] = ("alex", "vgg")
BACKBONES = {
    "alex": [(0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3)],
    "vgg": [
        (0, 64, 3, 3), (2, 64, 64, 3), (5, 128, 64, 3), (7, 128, 128, 3), (10, 256, 128, 3), (12, 256, 256, 3), (14, 256, 256, 3),
        (17, 512, 256, 3), (19, 512, 512, 3), (21, 512, 512, 3), (24, 512, 512, 3), (26, 512, 512, 3), (28, 512, 512, 3),
    ],
}  # fmt: skip
"""Layer number, channels out and in, kernel side of the published ImageNet checkpoints."""


def heads(net: Net, value: float = 1.0) -> dict[str, Tensor]:
    return {f"lin{k}.model.1.weight": torch.full((1, c, 1, 1), value) for k, c in enumerate(CHANNELS[net])}


def backbone(net: Net, seed: int = 0) -> dict[str, Tensor]:
    generator, weights = torch.Generator().manual_seed(seed), {}
    for layer, out, into, side in BACKBONES[net]:
        fan = into * side * side
        weights[f"features.{layer}.weight"] = torch.randn(out, into, side, side, generator=generator) * (2 / fan) ** 0.5
        weights[f"features.{layer}.bias"] = torch.randn(out, generator=generator) * 0.1
    return weights | {"classifier.6.weight": torch.zeros(1)}


@pytest.fixture(scope="module", params=NETS)
def model(request: pytest.FixtureRequest) -> Lpips:
    return Lpips(request.param).load(backbone(request.param), heads(request.param))


def image(seed: int, size: int = 64) -> Tensor:
    return torch.rand(size, size, 3, generator=torch.Generator().manual_seed(seed))


def test_an_image_against_itself_is_0_and_noise_ranks(model: Lpips) -> None:
    x = image(0)
    maps = model.maps(x)
    assert model.distance(maps, maps) == 0
    values = [model.distance(maps, model.maps((x + s * (image(1) - 0.5)).clamp(0, 1))) for s in (0.02, 0.2, 1.0)]
    assert 0 < values[0] < values[1] < values[2]
    assert model.distance(model.maps(image(1)), maps) == pytest.approx(model.distance(maps, model.maps(image(1))), rel=1e-6)


REFERENCE = {"alex": 1.8776325, "vgg": 1.4142183}
"""What the package lpips 0.1.4 itself gives for image(0) and image(1) with these made backbones and heads of ones."""


def test_it_is_the_published_implementation_s_figure(model: Lpips) -> None:
    assert model.distance(model.maps(image(0)), model.maps(image(1))) == pytest.approx(REFERENCE[model.net], rel=1e-5)


def test_the_features_are_of_unit_length_and_of_the_published_sizes(model: Lpips) -> None:
    maps = model.maps(image(0, 224))
    sides = {"alex": [55, 27, 13, 13, 13], "vgg": [224, 112, 56, 28, 14]}[model.net]
    assert [m.shape[2] for m in maps] == sides
    assert [m.shape[1] for m in maps] == list(CHANNELS[model.net])
    lengths = maps[0].pow(2).sum(1).sqrt()
    torch.testing.assert_close(lengths[lengths > 0.5], torch.ones_like(lengths[lengths > 0.5]))


def test_the_distance_of_opposite_features_is_known() -> None:
    """Unit vectors along different axes differ by 2 in squared length, whatever the image: with heads of w the sum is 2 w per layer."""
    model = Lpips("alex").load(backbone("alex"), heads("alex", 0.25))
    a, b = ([torch.zeros(1, c, 5, 4) for c in CHANNELS["alex"]] for _ in range(2))
    for x, y in zip(a, b, strict=True):
        x[:, 0], y[:, 1] = 1, 1
    assert model.distance(a, b) == pytest.approx(5 * 2 * 0.25)
    b[4][:, :, :2] = a[4][:, :, :2]  # two of five rows agree in the last layer
    assert model.distance(a, b) == pytest.approx(4 * 2 * 0.25 + 2 * 0.25 * 0.6)


def test_the_first_layer_sees_the_normalised_image() -> None:
    """Kernels that pass red on and give a constant: the unit vector's ratio is the normalised red value."""
    weights = {name: torch.zeros_like(value) for name, value in backbone("vgg").items()}
    weights["features.0.weight"][0, 0, 1, 1] = 1
    weights["features.0.bias"][1] = 1
    weights["features.2.weight"][0, 0, 1, 1] = weights["features.2.weight"][1, 1, 1, 1] = 1
    model = Lpips("vgg").load(weights, heads("vgg"))
    first = model.maps(torch.full((16, 16, 3), 0.9))[0][0, :, 8, 8]
    assert float(first[0] / first[1]) == pytest.approx((0.9 * 2 - 1 - SHIFT[0]) / SCALE[0], rel=1e-5)


@pytest.mark.parametrize(("net", "make"), [("alex", alexnet_features), ("vgg", vgg16_features)])
def test_the_networks_have_the_published_layers(net: Net, make: object) -> None:
    assert callable(make)
    shapes = {f"features.{name}": tuple(value.shape) for name, value in make().state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in backbone(net).items() if name.startswith("features")}


@pytest.mark.parametrize("net", NETS)
def test_wrong_weights_are_refused(net: Net) -> None:
    other = NETS[1 - NETS.index(net)]
    with pytest.raises(ValueError, match="not the weights of LPIPS"):
        Lpips(net).load(backbone(other), heads(net))
    with pytest.raises(ValueError, match="lin0"):
        Lpips(net).load(backbone(net), {})
