"""Denoise a target view under the Hybrid Priors model: what flows from driver and render to the new image."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.diffusion import BACKGROUND
from portrait_backend.diffusion.codec import Codec
from portrait_backend.diffusion.denoiser import Denoiser
from portrait_backend.diffusion.memory import MemoryPlan
from portrait_backend.diffusion.placement import place
from portrait_backend.diffusion.sources import Sources
from portrait_backend.diffusion.weights import STARTER, load_codec, load_denoiser
from portrait_backend.geometry.reprojection import find_warp
from portrait_backend.geometry.surface_views import SurfaceView
from portrait_backend.painting.surface import smoothstep
from portrait_backend.refinement.brushnet import read_brushnet, start_from_brushnet
from portrait_backend.refinement.hybrid_priors import Conditions, HybridPriors, tap_warps
from portrait_backend.refinement.injection import injected
from portrait_backend.refinement.view_images import ViewImages
from portrait_backend.refinement.weights import check_partners, load_hybrid_priors
from portrait_shared.settings import RefinementSettings

log = logging.getLogger(__name__)
SIZE_OF_LENGTHS = 256
"""The pixel lengths below hold for images of this width and scale with it."""
FEATHER = 2
"""Pixels that what is carried loses at its border, and half of those over which it then fades in."""
ASKEW = (0.3, 0.6)
"""Cosines at which the photo looks at a place (73 to 53 degrees) over which its pixels begin to count."""
DETAIL = 4
"""Pixels around a place whose mean change is taken as a change of tone, not as detail (twice)."""
FINER = (0.5, 0.6)
"""The denoiser's share of both images' local energy of detail over which its detail replaces the render's."""
DARKEST = 0.1
"""Brightness below which detail isn't amplified further by its surroundings' darkness."""


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


def refiner_from(sources: Sources, memory: MemoryPlan) -> Refiner:
    """Load the networks of a job and bring them to where the plan wants them.

    Where nobody has trained branches over a downloaded denoiser, the Explicit one is BrushNet's. An untrained Implicit branch and geometry
    condition end in zeros: they are left out.
    """
    if sources.priors is not None:
        refiner = load_refiner(sources.codec, sources.denoiser, sources.priors, memory.dtype)
    else:
        denoiser = load_denoiser(sources.denoiser, memory.dtype)
        priors = HybridPriors.of_unet(denoiser.unet, implicit=0)
        assert sources.brushnet is not None, "sources name trained branches or what they start from"
        done = start_from_brushnet(priors, read_brushnet(sources.brushnet))
        log.info("Branches from %s: %s", sources.brushnet, done)
        refiner = Refiner(load_codec(sources.codec, memory.dtype), denoiser, priors.requires_grad_(False).eval())
    priors = refiner.priors
    branches = [branch for branch in (priors.explicit, priors.implicit) if branch is not None]
    place(memory, refiner.codec, [refiner.denoiser], branches, [priors.geometry, priors.zero, priors.fusion])
    return refiner


def load_refiner(
    codec: str | Path = STARTER, denoiser: str | Path = STARTER, priors: str | Path = STARTER, dtype: torch.dtype = torch.float32
) -> Refiner:
    """Load the networks: the shipped ones, or files and diffusers folders; errors as in `diffusion.weights`, and ``weights-mismatched``."""
    refiner = Refiner(load_codec(codec, dtype), load_denoiser(denoiser, dtype), load_hybrid_priors(priors))
    check_partners(priors, codec=refiner.codec, denoiser=refiner.denoiser)
    return refiner


@dataclass(frozen=True)
class Driver:
    """What the driving view gives: its image (1, 3, S, S) over grey, its surface, the noise (1, C, h, w) it denoised from."""

    image: Tensor
    surface: SurfaceView
    noise: Tensor


@dataclass(frozen=True)
class Front:
    """The photo as a source of pixels: image (1, 3, S, S) over grey, surface of its view, seen (1, 1, S, S): matte where it is valid."""

    image: Tensor
    surface: SurfaceView
    seen: Tensor


def project_driver(driver: Driver, target: ViewImages, settings: RefinementSettings) -> tuple[Tensor, Tensor]:
    """Carry the driver's image into the target (Eq. 8): image (1, 3, S, S), black where unknown, and mask (1, 1, S, S)."""
    warp = find_warp(driver.surface, target.surface, method=settings.warp)
    return warp.apply(driver.image), warp.mask


@torch.no_grad()
def project_photo(front: Front, target: ViewImages) -> tuple[Tensor, Tensor]:
    """Carry the photo straight into the target, in one step whatever lies between: image (1, 3, S, S) and how far it counts (1, 1, S, S).

    It counts less toward the border of what it shows and where it looks at a place askew: its pixels would be stretched.
    """
    warp = find_warp(front.surface, target.surface)
    about = warp.apply(torch.cat([front.surface.facing()[:, None], front.seen], 1))
    square = ((about[:, :1] - ASKEW[0]) / (ASKEW[1] - ASKEW[0])).clamp(0, 1)
    return warp.apply(front.image, "bicubic"), feathered(warp.mask) * square * about[:, 1:]


@torch.no_grad()
def tell(refiner: Refiner, driver: Driver, target: ViewImages, projected: Tensor, mask: Tensor, settings: RefinementSettings) -> Conditions:
    """Return what the target's denoiser is told (Eqs. 9-11); the settings' switches leave parts out (Fig. 5)."""
    codec, width = refiner.codec, refiner.latent_width(projected.shape[-1])
    told = Conditions(codec.encode(projected), F.interpolate(mask, size=(width, width), mode="nearest"))
    if settings.geometry_condition:
        told = Conditions(told.projected, told.mask, codec.encode(target.image.detach()), codec.encode(target.normals))
    if not settings.implicit_branch or refiner.priors.implicit is None:
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
    refiner: Refiner | None,
    driver: Driver,
    front: Front,
    target: ViewImages,
    noise: Tensor,
    tokens: Tensor | None,
    settings: RefinementSettings,
) -> tuple[Tensor, Tensor]:
    """Return the target's new image (1, 3, S, S) over grey, denoised from `noise` (Eq. 14's left side), and where it is new (1, 1, S, S).

    With settings.method "transport" no network (nor its tokens) is needed: the photo's pixels where it shows the place, else the
    render's, and only the former are new.

    The render's latents are noised up to `settings.strength` of the schedule (1: pure noise). What the codec loses of the render is
    given back, so that a denoiser that changes nothing changes nothing; the silhouette is the render's. settings.tones "head" takes
    detail alone from the denoiser (`detail_on`), settings.keep_photo lays the photo's pixels over the result.
    """
    rendered, alpha = target.image.detach(), target.alpha.detach()
    pixels, share = project_photo(front, target)
    image, new = rendered, share
    if settings.method == "diffusion" and refiner is not None and tokens is not None:
        codec, denoiser = refiner.codec, refiner.denoiser
        z = codec.encode(rendered)
        t = min(denoiser.timestep(settings.strength), denoiser.steps - 1)
        told = tell(refiner, driver, target, *project_driver(driver, target, settings), settings)
        image = codec.decode(denoise_view(refiner, denoiser.add_noise(z, noise, t), t, told, tokens, settings))
        image, new = image + rendered - codec.decode(z), torch.ones_like(share)
        if settings.tones == "head":
            image = detail_on(rendered, image, alpha)
    if settings.method == "transport" or settings.keep_photo:
        image = share * pixels + (1 - share) * image
    return (image.clamp(0, 1) - BACKGROUND) * alpha + BACKGROUND, new


def feathered(mask: Tensor) -> Tensor:
    """Return a mask (1, 1, S, S) that falls to 0 toward its own border; specks, which are mostly border, go."""
    unit = mask.shape[-1] / SIZE_OF_LENGTHS
    shrink, blur = max(1, round(FEATHER * unit)), max(1, round(2 * FEATHER * unit))
    inner = -F.max_pool2d(-mask, 2 * shrink + 1, 1, shrink)
    return F.avg_pool2d(inner, 2 * blur + 1, 1, blur) * mask


def detail_on(rendered: Tensor, image: Tensor, alpha: Tensor) -> Tensor:
    """Return the render with the image's fine detail on it, what it shows beyond its mean around, as a shade of the render's colour.

    Only where the image is the more detailed of the two (fusion by local energy, Burt and Kolczynski 1993): a small denoiser also blurs
    what it is shown. It invents strands and pores plausibly, but misses tones by more than it knows of them (METHOD's gap to real photos).
    """
    reach = max(1, round(DETAIL * rendered.shape[-1] / SIZE_OF_LENGTHS))

    def mean_around(values: Tensor) -> Tensor:
        both = torch.cat([values * alpha, alpha], 1)
        for _ in range(2):
            both = F.avg_pool2d(both, 2 * reach + 1, 1, reach)
        return both[:, :1] / both[:, 1:].clamp_min(1e-3)

    greys = [x.mean(1, keepdim=True) for x in (rendered, image)]
    own, new = (grey - mean_around(grey) for grey in greys)
    energies = [mean_around(detail**2) for detail in (own, new)]
    shade = smoothstep(energies[1] / (energies[0] + energies[1]).clamp_min(1e-9), *FINER) * (new - own)
    straight = (rendered - BACKGROUND * (1 - alpha)) / alpha.clamp_min(1e-3)
    ratio = 1 + shade / straight.mean(1, keepdim=True).clamp_min(DARKEST)
    return straight.clamp(0, 1) * ratio.clamp(0.5, 1.5) * alpha + BACKGROUND * (1 - alpha)
