"""The Hybrid Priors Diffusion Model: what a target view's denoiser is told by a driving view, through geometry (Eqs. 9-11).

Explicit branch (Eq. 9): the driver's image carried into the target. Geometry condition (Eq. 11): the target's coarse render
and normals, added to it. Implicit branch (Eq. 10): features of the driver's own image, carried into the target at every resolution.
Their sum enters the frozen denoiser at its taps (`injection`). Everything new starts at zero: an untrained model changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from portrait_backend.geometry.reprojection import Method, Warp, find_warp
from portrait_backend.geometry.surface_views import Culling, SurfaceView
from portrait_backend.refinement.branches import Branch, BranchConfig


@dataclass(frozen=True)
class HybridPriorsConfig:
    """Layouts: latents' channels, both branches (implicit None: there is none), hidden channels of the geometry condition's res-block."""

    latents: int
    explicit: BranchConfig
    implicit: BranchConfig | None
    taps: tuple[int, ...]
    geometry: int = 64

    @classmethod
    def of_unet(cls, config: Mapping[str, Any], explicit: float = 1.0, implicit: float = 1.0) -> HybridPriorsConfig:
        """Return the layout for a UNet's config; the shares thin the branches, implicit 0 leaves that one out."""
        other = BranchConfig.of_unet(config, implicit) if implicit > 0 else None
        return cls(int(config["in_channels"]), BranchConfig.of_unet(config, explicit), other, BranchConfig.of_unet(config).taps)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HybridPriorsConfig:
        """Return the configuration of its JSON form."""

        def branch(d: Mapping[str, Any]) -> BranchConfig:
            return BranchConfig(**{**d, "channels": tuple(d["channels"]), "layers": tuple(d["layers"])})

        implicit = None if data["implicit"] is None else branch(data["implicit"])
        return cls(**{**data, "explicit": branch(data["explicit"]), "implicit": implicit, "taps": tuple(data["taps"])})

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Conditions:
    """What the target view (batch B) is told; latents (B, C, h, w).

    projected: latents of the driver's image carried into the target, black where unknown; mask (B, 1, h, w), 1 where known; render,
    normal: latents of the target's coarse render and normals; driver: latents of the driver's image; driver_noise: its anchor noise;
    warps: driver -> target by feature width. None switches a part off (Fig. 5's rows).
    """

    projected: Tensor
    mask: Tensor
    render: Tensor | None = None
    normal: Tensor | None = None
    driver: Tensor | None = None
    driver_noise: Tensor | None = None
    warps: Mapping[int, Warp] | None = None

    def without(self, *, geometry: bool = False, implicit: bool = False) -> Conditions:
        """Return the conditions without the geometry condition, without the Implicit branch."""
        changed = self
        if geometry:
            changed = replace(changed, render=None, normal=None)
        if implicit:
            changed = replace(changed, driver=None, driver_noise=None, warps=None)
        return changed


class GeometryCondition(nn.Module):
    """Eq. 11: latents of coarse render and normals through a res-block into the projected latents; starts at zero."""

    def __init__(self, latents: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3 * latents, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 3, padding=1)
        self.out = zeroed(nn.Conv2d(hidden, latents, 3, padding=1))

    def forward(self, projected: Tensor, render: Tensor, normal: Tensor) -> Tensor:
        """Return the projected latents with the geometry in them."""
        h = F.silu(self.conv1(torch.cat([projected, render, normal], 1)))
        y: Tensor = projected + self.out(F.silu(h + self.conv2(h)))
        return y


class Fusion(nn.Module):
    """Eq. 10's bottleneck res-block of one tap: explicit and carried implicit features -> what is added; starts at zero."""

    def __init__(self, explicit: int, implicit: int, channels: int) -> None:
        super().__init__()
        narrow = max(8, channels // 4)
        self.enter, self.middle = nn.Conv2d(explicit + implicit, narrow, 1), nn.Conv2d(narrow, narrow, 3, padding=1)
        self.out = zeroed(nn.Conv2d(narrow, channels, 1))

    def forward(self, explicit: Tensor, carried: Tensor) -> Tensor:
        """Map (B, C, h, w) and (B, C', h, w) to (B, channels, h, w)."""
        h = F.silu(self.enter(torch.cat([explicit, carried], 1)))
        y: Tensor = self.out(F.silu(self.middle(h)))
        return y


class HybridPriors(nn.Module):
    """Both branches, the geometry condition, one zero 1x1 convolution and one fusion block per tap of the denoiser."""

    def __init__(self, config: HybridPriorsConfig) -> None:
        super().__init__()
        self.config, c = config, config.latents
        self.explicit = Branch(2 * c + 1, config.explicit)
        self.implicit = None if config.implicit is None else Branch(2 * c, config.implicit)
        self.geometry = GeometryCondition(c, config.geometry)
        self.zero = nn.ModuleList(zeroed(nn.Conv2d(e, n, 1)) for e, n in zip(config.explicit.taps, config.taps, strict=True))
        carried = () if config.implicit is None else zip(config.explicit.taps, config.implicit.taps, config.taps, strict=True)
        self.fusion = nn.ModuleList(Fusion(e, i, n) for e, i, n in carried)

    @classmethod
    def of_unet(cls, unet: UNet2DConditionModel, explicit: float = 1.0, implicit: float = 1.0) -> HybridPriors:
        """Return the model for a denoiser, its branches started from the UNet's own weights where they have its width."""
        model = cls(HybridPriorsConfig.of_unet(unet.config, explicit, implicit))
        weights = unet.state_dict()
        model.explicit.copy_unet(weights, mask_channels=1)
        if model.implicit is not None:
            model.implicit.copy_unet(weights)
        return model

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.zero[0].weight.dtype  # type: ignore[return-value]

    def forward(
        self, z_t: Tensor, t: Tensor, alpha_bar: Tensor, told: Conditions, w_ex: float = 1.0, w_im: float = 1.0, literal: bool = False
    ) -> list[Tensor]:
        """Return the residuals (B, C_k, h_k, w_k) of all taps for noisy target latents z_t (B, C, h, w) at steps t (B,).

        alpha_bar (B, 1, 1, 1) at t. w_ex scales everything (0 switches the model off), w_im the implicit part. literal: Eq. 10
        as printed, with the target's z_t beside the driver's latents; by default the driver's own latents are noised with the
        driver's anchor noise at the same t, so that what is carried is aligned. Residuals come in the weights' precision.
        """
        projected, own = told.projected, self.dtype
        if told.render is not None and told.normal is not None:
            projected = self.geometry(*(x.to(own) for x in (projected, told.render, told.normal)))
        features = self.explicit(torch.cat([z_t, projected, told.mask], 1).to(own), t)
        residuals = [zero(f) for zero, f in zip(self.zero, features, strict=True)]
        if self.implicit is not None and told.driver is not None and told.warps is not None and w_im != 0:
            noisy = z_t if literal else self._noised_driver(told, alpha_bar)
            around = self.implicit(torch.cat([noisy, told.driver], 1).to(own), t)
            carried = [told.warps[f.shape[-1]].apply(f).to(f.dtype) for f in around]
            fused = [fuse(f, c) for fuse, f, c in zip(self.fusion, features, carried, strict=True)]
            residuals = [r + w_im * f for r, f in zip(residuals, fused, strict=True)]
        return [w_ex * r for r in residuals]

    @staticmethod
    def _noised_driver(told: Conditions, alpha_bar: Tensor) -> Tensor:
        if told.driver is None or told.driver_noise is None:
            raise ValueError("the Implicit branch needs the driver's anchor noise (or literal=True)")
        a = alpha_bar.to(told.driver.dtype)
        return a.sqrt() * told.driver + (1 - a).sqrt() * told.driver_noise


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Return the layer with weights and bias 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def tap_widths(config: HybridPriorsConfig, latent_width: int) -> list[int]:
    """Return the widths of the taps' feature maps for latents of this width, widest first."""
    return [latent_width // 2**k for k in range(len(config.explicit.channels))]


def tap_warps(
    config: HybridPriorsConfig,
    driver: SurfaceView,
    target: SurfaceView,
    latent_width: int,
    method: Method = "pull",
    culling: Culling | None = None,
) -> dict[int, Warp]:
    """Return the warps driver -> target at every tap's resolution, each from the nearest depths of its cells."""
    widths = tap_widths(config, latent_width)
    return {width: find_warp(driver, target, size=width, method=method, culling=culling) for width in widths}
