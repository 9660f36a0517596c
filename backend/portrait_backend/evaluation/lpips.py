"""LPIPS, the learned perceptual distance of Zhang et al. (CVPR 2018, version 0.1), on AlexNet or VGG-16, without torchvision.

The networks are written from their published shapes; parameter names are the published checkpoints', so these load as they are:
the torchvision ImageNet checkpoints (`features.N.weight`) and the LPIPS heads (`linK.model.1.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = Literal["alex", "vgg"]

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""LPIPS normalises an image in [-1, 1] by these."""
TAPS: dict[str, tuple[int, ...]] = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
"""Layers of `features`, the rectified ones, whose outputs are compared."""
CHANNELS: dict[str, tuple[int, ...]] = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of each block of VGG-16."""
EPSILON = 1e-10


def alexnet_features() -> nn.Sequential:
    """Return AlexNet's convolutional part (Krizhevsky 2014, the "one weird trick" version) up to its last rectifier."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def vgg16_features() -> nn.Sequential:
    """Return VGG-16's convolutional part (Simonyan and Zisserman 2015, configuration D) up to its last rectifier."""
    layers: list[nn.Module] = []
    width = 3
    for channels, count in VGG_BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
            width = channels
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers[:-1])


class Lpips(nn.Module):
    """The distance of two images: squared differences of unit-length features, weighted per channel, averaged over the image, summed."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.features = alexnet_features() if net == "alex" else vgg16_features()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(channels)) for channels in CHANNELS[net]])
        self.requires_grad_(False)

    def load(self, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> Lpips:
        """Load a torchvision ImageNet checkpoint and the LPIPS heads; ValueError where a tensor is missing or has another shape."""
        try:
            wanted = {name: backbone[f"features.{name}"] for name in self.features.state_dict()}
            self.features.load_state_dict(wanted)
            for k, weight in enumerate(self.weights):
                weight.copy_(heads[f"lin{k}.model.1.weight"].reshape(weight.shape))
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"not the weights of LPIPS ({self.net}): {' '.join(str(error).split())}") from error
        return self

    @torch.no_grad()
    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the five unit-length feature maps (1, C, h, w) of an image (H, W, 3) in [0, 1]."""
        x = image.permute(2, 0, 1)[None] * 2 - 1
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        found: list[Tensor] = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in TAPS[self.net]:
                found.append(x / (x.pow(2).sum(1, keepdim=True).sqrt() + EPSILON))
        return found

    @torch.no_grad()
    def distance(self, a: list[Tensor], b: list[Tensor]) -> float:
        """Return the distance of two images from their `maps`."""
        parts = [F.conv2d((x - y) ** 2, w[None, :, None, None]).mean() for x, y, w in zip(a, b, self.weights, strict=True)]
        return float(torch.stack(parts).sum())
