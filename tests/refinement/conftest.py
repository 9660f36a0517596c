"""A head known in closed form, its photo, and tiny random real networks."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.diffusion.codec import tiny_codec
from portrait_backend.diffusion.denoiser import tiny_denoiser
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_backend.refinement.hybrid_priors import HybridPriors
from portrait_backend.refinement.sampling import Refiner


@pytest.fixture(scope="session")
def head() -> Head:
    """An ellipsoid with smooth colours; share it, don't change it."""
    return ellipsoid_head(depth=1, size=48)


@pytest.fixture(scope="session")
def portrait(head: Head) -> Portrait:
    """The head's photo from 10 degrees, brighter than the head and with a stripe: what stage 3 has to bring in."""
    camera = Camera.orbit(10, 0, 512)
    with torch.no_grad():
        out = head.render(camera)
    rgb = (out.rgb / out.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1) * 0.5 + 0.4
    rgb[240:272] = torch.tensor([1.0, 0.1, 0.1])
    return Portrait(
        image=rgb,
        rgba=torch.cat([rgb, out.alpha[..., None]], -1),
        valid=torch.ones(512, 512),
        landmarks=torch.zeros(468, 2),
        camera=camera,
        coefficients=torch.zeros(25),
        yaw=10.0,
        pitch=0.0,
        roll=0.0,
        source="drawn",
        sha256="0" * 64,
    )


@pytest.fixture(scope="session")
def refiner() -> Refiner:
    """Random codec, denoiser and branches of a few thousand weights each."""
    denoiser = tiny_denoiser()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        priors = HybridPriors.of_unet(denoiser.unet)
    return Refiner(tiny_codec(), denoiser, priors.requires_grad_(False).eval())
