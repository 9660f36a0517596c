"""The decoder: tri-plane features -> density and 32 feature channels whose first three are rgb."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from portrait_backend.radiance.decoder_kernel import BlockedMlp

FEATURES = 32


@dataclass(frozen=True)
class DensityActivation:
    """How the decoder's first output becomes a density per head unit.

    kind "occupancy": scale * sigmoid(gain * x + bias). The raw x is a calibrated occupancy logit;
    gain and bias sharpen it, so that a 10 % chance of matter does not render as haze.
    kind "softplus": softplus(x + bias), EG3D's, times `per_unit`, its units per head unit. `surface` is the density on the surface; meshes
    lie where log(density / (2 surface - density)) is `mesh_level`: where the density rises slowly, rays are stopped before it.
    """

    kind: str = "occupancy"
    scale: float = 250.0
    gain: float = 5.0
    bias: float = -1.5
    surface: float = 125.0
    per_unit: float = 1.0
    mesh_level: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the density of raw decoder outputs."""
        if self.kind == "occupancy":
            return self.scale * torch.sigmoid(self.gain * x + self.bias)
        if self.kind == "softplus":
            density = F.softplus(x + self.bias)
            return density if self.per_unit == 1 else density * self.per_unit
        raise self._unknown()

    @property
    def raw_surface(self) -> float:
        """The raw decoder output on the surface: where the density is `surface`."""
        if self.kind == "occupancy":
            return (math.log(self.surface / (self.scale - self.surface)) - self.bias) / self.gain
        if self.kind == "softplus":
            return math.log(math.expm1(self.surface / self.per_unit)) - self.bias
        raise self._unknown()

    def _unknown(self) -> ValueError:
        return ValueError(f"unknown density activation {self.kind!r}; known: occupancy, softplus")


class Decoder(nn.Module):
    """Two hidden layers; outputs the raw density and `FEATURES` channels (sigmoid, slightly widened as in EG3D)."""

    def __init__(self, channels: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.hidden1, self.hidden2 = nn.Linear(channels, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1 + FEATURES)
        with torch.no_grad():
            self.out.bias[0] = -2.0

    def forward(self, features: Tensor, outputs: int = 1 + FEATURES) -> tuple[Tensor, Tensor]:
        """Decode features (..., C); `outputs` = 4 computes rgb only. Returns raw density (...,) and features (..., outputs - 1)."""
        weight, bias = self.out.weight[:outputs], self.out.bias[:outputs]
        if features.device.type == "cpu" and features.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
            flat = features.reshape(-1, features.shape[-1])
            y = BlockedMlp.apply(flat, self.hidden1.weight, self.hidden1.bias, self.hidden2.weight, self.hidden2.bias, weight, bias)
            y = y.view(*features.shape[:-1], outputs)
        else:
            y = F.linear(F.silu(self.hidden2(F.silu(self.hidden1(features)))), weight, bias)
        y = y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
        return y[..., 0], torch.sigmoid(y[..., 1:]) * 1.02 - 0.01


class SoftplusDecoder(Decoder):
    """The decoder of EG3D (arXiv 2112.07945, section 4.2) and its kin: one hidden layer with softplus.

    colour "sigmoid": all features as in EG3D, sigmoid, slightly widened; "linear": as they are (PanoHead).
    """

    def __init__(self, channels: int = 32, hidden: int = 64, colour: Literal["sigmoid", "linear"] = "sigmoid") -> None:
        nn.Module.__init__(self)
        if colour not in ("sigmoid", "linear"):
            raise ValueError(f"unknown colour activation {colour!r}; known: sigmoid, linear")
        self.hidden1, self.out = nn.Linear(channels, hidden), nn.Linear(hidden, 1 + FEATURES)
        self.colour = colour

    def forward(self, features: Tensor, outputs: int = 1 + FEATURES) -> tuple[Tensor, Tensor]:
        """Decode as `Decoder` does: raw density (...,) and features (..., outputs - 1)."""
        y = F.linear(F.softplus(self.hidden1(features)), self.out.weight[:outputs], self.out.bias[:outputs])
        y = y.float() if y.dtype in (torch.bfloat16, torch.float16) else y
        return y[..., 0], torch.sigmoid(y[..., 1:]) * 1.002 - 0.001 if self.colour == "sigmoid" else y[..., 1:]
