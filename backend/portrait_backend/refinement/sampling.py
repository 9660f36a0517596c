"""Denoise a target view under the Hybrid Priors model: what flows from driver and render to the new image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.denoiser import Denoiser
from portrait_backend.diffusion.weights import STARTER, load_codec, load_denoiser
from portrait_backend.geometry.reprojection import find_warp
from portrait_backend.geometry.surface_views import Culling, SurfaceView
from portrait_backend.refinement.hybrid_priors import Conditions, HybridPriors, tap_warps
from portrait_backend.refinement.injection import injected
from portrait_backend.refinement.view_images import ViewImages
from portrait_backend.refinement.weights import load_hybrid_priors
from portrait_shared.settings import RefinementSettings


@dataclass(frozen=True)
class Refiner:
    """The networks of stage 3; all frozen."""

    codec: Codec
    denoiser: Denoiser
    priors: HybridPriors

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Refiner:
        """Return the same networks on `device`; they are moved in place."""
        for network in (self.codec, self.denoiser, self.priors):
            network.to(device=device, dtype=dtype)
        return self

    def latent_width(self, size: int) -> int:
        """Return the latents' width for images `size` px wide."""
        return size // self.codec.factor


def load_refiner(codec: str | Path = STARTER, denoiser: str | Path = STARTER, priors: str | Path = STARTER) -> Refiner:
    """Load the networks: the shipped ones, or files and diffusers folders; errors as in `diffusion.weights`."""
    return Refiner(load_codec(codec), load_denoiser(denoiser), load_hybrid_priors(priors))


@dataclass(frozen=True)
class Driver:
    """What the driving view gives: its image (1, 3, S, S) over grey, its surface, the noise (1, C, h, w) it denoised from."""

    image: Tensor
    surface: SurfaceView
    noise: Tensor


def project_driver(
    driver: Driver, target: ViewImages, settings: RefinementSettings, culling: Culling | None = None
) -> tuple[Tensor, Tensor]:
    """Carry the driver's image into the target (Eq. 8): image (1, 3, S, S), black where unknown, and mask (1, 1, S, S)."""
    warp = find_warp(driver.surface, target.surface, method=settings.warp, culling=culling)
    return warp.apply(driver.image), warp.mask


@torch.no_grad()
def tell(refiner: Refiner, driver: Driver, target: ViewImages, projected: Tensor, mask: Tensor, settings: RefinementSettings) -> Conditions:
    """Return what the target's denoiser is told (Eqs. 9-11); the settings' switches leave parts out (Fig. 5)."""
    codec, width = refiner.codec, refiner.latent_width(projected.shape[-1])
    told = Conditions(codec.encode(projected), F.interpolate(mask, size=(width, width), mode="nearest"))
    if settings.geometry_condition:
        told = Conditions(told.projected, told.mask, codec.encode(target.image.detach()), codec.encode(target.normals))
    if not settings.implicit_branch:
        return told
    warps = tap_warps(refiner.priors.config, driver.surface, target.surface, width, settings.warp)
    return Conditions(told.projected, told.mask, told.render, told.normal, codec.encode(driver.image), driver.noise, warps)


@torch.no_grad()
def denoise_view(
    refiner: Refiner, z_t: Tensor, t_start: int, told: Conditions, tokens: Tensor, settings: RefinementSettings, null: Tensor | None = None
) -> Tensor:
    """Return clean latents of z_t (1, C, h, w) at step t_start in `settings.steps` DDIM steps, the branches' residuals in each."""
    denoiser, steps = refiner.denoiser, settings.steps
    times = [round(t_start * (1 - k / steps)) for k in range(steps)]
    for t, earlier in zip(times, [*times[1:], None], strict=True):
        at = torch.full((len(z_t),), t, device=z_t.device)
        residuals = refiner.priors(
            z_t, at, denoiser.alpha_bar(at), told, settings.explicit_scale, settings.implicit_scale, settings.literal_implicit
        )
        with injected(denoiser.unet, residuals):
            eps = denoiser.predict_noise(z_t, t, tokens, settings.guidance, null)
        z_t = denoiser.ddim_step(z_t, t, earlier, eps)
    return z_t


@torch.no_grad()
def new_image(
    refiner: Refiner | None, driver: Driver, target: ViewImages, noise: Tensor, tokens: Tensor | None, settings: RefinementSettings
) -> Tensor:
    """Return the target's new image (1, 3, S, S) over grey, denoised from `noise` (Eq. 14's left side).

    With settings.method "transport" no network (nor its tokens) is needed: the driver's pixels where known, else the render's.

    The render's latents are noised up to `settings.strength` of the schedule (1: pure noise). What the codec loses of the render is
    given back, so that a denoiser that changes nothing changes nothing; the silhouette is the render's.
    """
    projected, mask = project_driver(driver, target, settings)
    if settings.method == "transport" or refiner is None or tokens is None:
        image = mask * projected + (1 - mask) * target.image
    else:
        codec, denoiser = refiner.codec, refiner.denoiser
        rendered = target.image.detach()
        z = codec.encode(rendered)
        t = min(denoiser.timestep(settings.strength), denoiser.steps - 1)
        told = tell(refiner, driver, target, projected, mask, settings)
        image = codec.decode(denoise_view(refiner, denoiser.add_noise(z, noise, t), t, told, tokens, settings))
        image = image + rendered - codec.decode(z)
    alpha = target.alpha.detach()
    return (image.detach().clamp(0, 1) - 0.5) * alpha + 0.5
