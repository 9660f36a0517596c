"""Bring the head to images that are kept already: plain fitting of the colours to the refined views and the photo, ray by ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.diffusion import BACKGROUND
from portrait_backend.geometry.surface_views import Culling, SurfaceView
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import SAMPLES
from portrait_backend.radiance.renderer import render_rays
from portrait_backend.refinement.psi import BETAS, SETTLE_EPSILON, Psi

RAYS = 4096
"""Rays per step, half of them through the photo."""


@dataclass(frozen=True)
class Target:
    """A posed image to meet: camera, colours (S * S, 3) over grey, trust (S * S,) of its pixels, 0 where it says nothing."""

    camera: Camera
    colours: Tensor
    trust: Tensor

    @classmethod
    def of_image(cls, camera: Camera, image: Tensor, surface: SurfaceView, seen: Tensor | None = None) -> Target:
        """Make a target of an image (1, 3, S, S) over grey; its pixels (those that are `seen`) count by the squared cosine of the sight.

        Where an image is the render itself it holds the head as it is: what changes in front must not show through on the back.
        """
        trust = surface.facing()[0].clamp_min(0) ** 2 * surface.solid(Culling())[0]
        if seen is not None:
            trust = trust * seen[0, 0]
        return cls(camera, image[0].permute(1, 2, 0).reshape(-1, 3), trust.reshape(-1))


def settle(psi: Psi, photo: Target, targets: Sequence[Target], steps: int, context: Context, done: int, total: int) -> None:
    """Take `steps` Adam steps on the L1 difference to the photo and one target a step in turn; reports as steps done.. of `total`."""
    targets = [t for t in targets if float(t.trust.sum()) > 0]
    grid = psi.grid()
    optimiser = torch.optim.Adam([psi.colour], lr=psi.rate, betas=BETAS, eps=SETTLE_EPSILON)
    order = torch.randperm(max(1, len(targets)), generator=context.generator, device=context.generator.device).tolist()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = psi.rate * (1 - 0.8 * step / steps)
        chosen = [photo, targets[order[step % len(order)]]] if targets else [photo]
        head, loss = psi.head(), psi.restraint()
        for target in chosen:
            if float(target.trust.sum()) == 0:
                continue
            pick = torch.multinomial(target.trust.to(context.generator.device), RAYS // 2, True, generator=context.generator)
            pick = pick.to(target.trust.device)
            origin, directions = target.camera.rays_through(target.camera.pixel_centres()[pick])
            out = render_rays(head, origin, directions, grid, samples=SAMPLES)
            shown = out.rgb + BACKGROUND * (1 - out.alpha[:, None])
            loss = loss + (shown - target.colours[pick]).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        context.report(done + step + 1, total, loss=float(loss.detach()))
