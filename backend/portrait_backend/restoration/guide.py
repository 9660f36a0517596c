"""What the diffusion prior says about a rendered view: one of three kinds of guidance, annealed, in normals, matte and (little) colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.condition import DOMAINS, Domain
from portrait_backend.diffusion.denoiser import Denoiser
from portrait_backend.diffusion.guidance import (
    annealed,
    interval_score_gradient,
    latent_loss,
    perp_neg,
    sds_gradient,
    sds_weight,
    view_negatives,
    x0_image,
    x0_image_loss,
)
from portrait_backend.precision import bf16_autocast
from portrait_backend.restoration.views import View, clean_normals, matched_colours, resized
from portrait_shared.settings import RestorationSettings

X0_STEPS = 2
"""Denoising steps behind an x0 image."""
INTERVAL = 0.1
"""Interval of interval score matching, share of the schedule."""


@dataclass(frozen=True)
class DiffusionPrior:
    """A codec and a denoiser per domain (at starter scale the same one), loaded and without gradients.

    size: side in px of the images that they are shown.
    """

    codec: Codec
    denoisers: Mapping[Domain, Denoiser]
    size: int

    def to(self, device: torch.device) -> DiffusionPrior:
        """Move the networks to a device, in place."""
        self.codec.to(device)
        for denoiser in self.denoisers.values():
            denoiser.to(device)
        return self


class Guide:
    """Guidance on views of one sitter; `reference` (1, 4, H, W) is the portrait, rgb over mid grey and matte."""

    def __init__(self, prior: DiffusionPrior, settings: RestorationSettings, reference: Tensor, generator: torch.Generator) -> None:
        self.prior, self.settings, self.reference, self.generator = prior, settings, reference, generator
        self._single = all(denoiser.unet.dtype == torch.float32 for denoiser in prior.denoisers.values())

    def losses(self, view: View, progress: float) -> dict[str, Tensor]:
        """Return the weighted guidance terms of a view; `progress` in [0, 1] anneals the noise level."""
        s, terms = self.settings, {}
        weights: dict[Domain, float] = {"normal": s.normal_weight, "rgb": s.colour_weight}
        for domain in DOMAINS:
            if weights[domain] > 0:
                for name, term in self._domain(view, domain, progress).items():
                    terms[name] = weights[domain] * term
        return terms

    def _domain(self, view: View, domain: Domain, progress: float) -> dict[str, Tensor]:
        image = view.normal if domain == "normal" else view.rgb
        denoiser = self.prior.denoisers[domain]
        condition = self._condition(denoiser, view.azimuth, view.pitch, domain)
        t = denoiser.timestep(annealed(progress, self.settings.noise_start, self.settings.noise_end))
        if self.settings.guidance == "x0":
            return self._x0(view, image, domain, t, condition)
        z = self._encode(image)
        with torch.no_grad(), self._autocast(image):
            if self.settings.guidance == "interval":
                interval = max(1, min(t, denoiser.timestep(INTERVAL)))
                scale = self.settings.guidance_scale
                gradient = interval_score_gradient(denoiser, z.detach(), t, interval, condition, scale)
            else:
                gradient = self._sds(denoiser, z.detach(), t, view, domain, condition)
        return {domain: latent_loss(z, gradient.float()) / z[0].numel()}

    def _sds(self, denoiser: Denoiser, z: Tensor, t: int, view: View, domain: Domain, condition: Tensor) -> Tensor:
        """Eq. 2's gradient, with Perp-Neg in place of plain guidance if it is switched on."""
        noise, scale = self._noise(z), self.settings.guidance_scale
        if not self.settings.perp_neg:
            return sds_gradient(denoiser, z, t, noise, condition, scale)
        z_t = denoiser.add_noise(z, noise, t)
        negatives = view_negatives(view.azimuth)
        tokens = [denoiser.condition.null(1), condition]
        tokens += [self._condition(denoiser, azimuth, view.pitch, domain) for azimuth, _ in negatives]
        predicted = denoiser.predict_noise(z_t.expand(len(tokens), -1, -1, -1), t, torch.cat([x.to(condition.dtype) for x in tokens]))
        null, positive, *rest = predicted.split(1)
        return sds_weight(denoiser, t) * (perp_neg(null, positive, rest, [w for _, w in negatives], scale) - noise)

    def _x0(self, view: View, image: Tensor, domain: Domain, t: int, condition: Tensor) -> dict[str, Tensor]:
        """The multi-step x0 image loss; a normal map's target also gives the matte, a colour target takes the sitter's colours."""
        with torch.no_grad(), self._autocast(image):
            z = self._encode(image.detach())
            denoiser, scale = self.prior.denoisers[domain], self.settings.guidance_scale
            target = x0_image(denoiser, self.prior.codec, z, t, self._noise(z), condition, X0_STEPS, scale)
        target = resized(target.float(), image.shape[-1])
        if domain == "rgb":
            matte = view.out.alpha.detach()[None, None]
            return {"rgb": x0_image_loss(image, matched_colours(target, image.detach(), matte) * matte + image.detach() * (1 - matte))}
        target, alpha = clean_normals(target)
        return {"normal": x0_image_loss(image, target), "matte": 0.5 * (view.out.alpha - alpha[0, 0]).pow(2).mean()}

    def _condition(self, denoiser: Denoiser, azimuth: float, pitch: float, domain: Domain) -> Tensor:
        device = self.reference.device
        with torch.no_grad():
            return denoiser.condition.encode(
                torch.tensor([azimuth], device=device), torch.tensor([pitch], device=device), domain, self.reference
            )

    def _encode(self, image: Tensor) -> Tensor:
        with self._autocast(image):
            return self.prior.codec.encode(resized(image, self.prior.size)).float()

    def _noise(self, z: Tensor) -> Tensor:
        return torch.randn(z.shape, generator=self.generator, device=self.generator.device).to(z.device)

    def _autocast(self, image: Tensor) -> torch.autocast:
        """Single-precision networks compute in bf16 where it pays; others in their own half."""
        return bf16_autocast(image.device.type, self._single)
