"""Stage 2: portrait geometry restoration (Eqs. 4-6). phi and the decoder are fine-tuned on one portrait; psi_SR stays as it is.

Each step looks at the head from one view around it, asks the diffusion prior (`guide`) and compares the photo (`losses`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.diffusion import BACKGROUND
from portrait_backend.diffusion.condition import Domain
from portrait_backend.diffusion.memory import MemoryPlan, plan
from portrait_backend.diffusion.sources import Sources, find_sources
from portrait_backend.models import SHIPPED
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.decoder import Decoder
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.restoration.detail_unet import (
    DetailPreservationUNet,
    DetailUNetConfig,
    config_for,
    load_detail_unet,
)
from portrait_backend.restoration.field import RestoredField, phi_input
from portrait_backend.restoration.guide import DiffusionPrior, Guide
from portrait_backend.restoration.losses import (
    colour_anchor_loss,
    opaque_loss,
    reference_loss,
    reference_target,
    smoothness_loss,
    sparsity_loss,
    variation_loss,
)
from portrait_backend.restoration.settle import settle
from portrait_backend.restoration.views import SAMPLES, View, draw_angles, render_view
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import RestorationSettings

DECODER_RATE = 0.1
"""Learning rate of the decoder, share of phi's: it is one for all of space."""
GRID, REBUILD, SNAPSHOT, PREVIEW = 80, 10, 5, 5
"""Lattice resolution; steps between two lattices, two snapshots of the last good state, two previews."""


@dataclass(frozen=True)
class Regularisers:
    """Weights of the regularising terms."""

    opaque: float = 0.01
    sparsity: float = 0.01
    smoothness: float = 0.02
    variation: float = 0.1
    colour_anchor: float = 5.0


class RestorationDiverged(PortraitDiffusionError):
    """The fit's loss or weights stopped being finite; `head` is the last good state, `step` the step that failed."""

    def __init__(self, step: int, head: Head) -> None:
        super().__init__(
            "restoration-diverged",
            f"the restoration stopped giving finite numbers at step {step + 1}",
            "Lower --restoration-learning-rate or --restoration-guidance-scale, or run without the stage",
        )
        self.step, self.head = step, head


class Fit:
    """What is optimised: phi's weights and the decoder's; everything else of the head stays."""

    def __init__(self, head: Head, phi: DetailPreservationUNet, rate: float, front: float = 1.0) -> None:
        self.front = front
        self.prior_head, self.phi = head, phi.to(head.geometry.planes.device).train().requires_grad_(True)
        self.decoder: Decoder = copy.deepcopy(head.decoder).requires_grad_(True)
        groups = [
            {"params": list(phi.parameters()), "lr": rate, "base": rate},
            {"params": list(self.decoder.parameters()), "lr": DECODER_RATE * rate, "base": DECODER_RATE * rate},
        ]
        self.planes = phi_input(head)
        self.optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
        self.good = self._state()

    def field(self) -> RestoredField:
        """Return the head as it is now, differentiable."""
        return RestoredField(self.prior_head, self.phi, self.decoder, autocast=True, planes=self.planes, front=self.front)

    def step(self, loss: Tensor, share: float) -> bool:
        """Take one Adam step at a share of the learning rate; False, and nothing is changed, if loss or gradient is not finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * share
        self.optimiser.zero_grad(set_to_none=True)
        if not bool(torch.isfinite(loss)):
            return False
        loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        if not bool(torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, 1.0))):
            return False
        self.optimiser.step()
        return True

    def snapshot(self) -> None:
        """Keep the present weights as the last good state."""
        self.good = self._state()

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        phi, decoder = self.phi.state_dict(), self.decoder.state_dict()
        return {k: v.clone() for k, v in phi.items()}, {k: v.clone() for k, v in decoder.items()}

    @torch.no_grad()
    def finished(self, last_good: bool = False) -> Head:
        """Return the head without graphs: planes merged, decoder frozen; `last_good`: as of the last snapshot."""
        if last_good:
            self.phi.load_state_dict(self.good[0])
            self.decoder.load_state_dict(self.good[1])
        decoder = copy.deepcopy(self.decoder).eval().requires_grad_(False)
        head = RestoredField(self.prior_head, self.phi.eval(), decoder, planes=self.planes, front=self.front).merged()
        return replace(head, meta=head.meta | {"restored": True})


def trained_phi(head: Head, sources: Sources) -> DetailPreservationUNet:
    """Return the pre-trained phi of a job, by default the shipped one; a fresh one (zero residual) where planes have another shape.

    PortraitDiffusionError ``weights-missing`` where the shipped one is not installed.
    """
    config = config_for(head)
    if sources.detail_unet is not None and (phi := load_detail_unet(sources.detail_unet)).config.channels == config.channels:
        return phi
    if config != DetailUNetConfig():
        return DetailPreservationUNet(config)
    return load_detail_unet(SHIPPED)


def prior_from(sources: Sources, settings: RestorationSettings, memory: MemoryPlan) -> DiffusionPrior:
    """Load codec and denoisers of a job and bring them to where the plan wants them; a domain that doesn't count needs no denoiser."""
    from portrait_backend.diffusion.placement import place
    from portrait_backend.diffusion.weights import load_codec, load_denoiser

    wanted: dict[Domain, str | Path] = {}
    if settings.normal_weight > 0:
        wanted["normal"] = sources.normal
    if settings.colour_weight > 0:
        wanted["rgb"] = sources.denoiser
    loaded = {where: load_denoiser(where, memory.dtype) for where in dict.fromkeys(wanted.values())}
    denoisers = {domain: loaded[where] for domain, where in wanted.items()}
    prior = DiffusionPrior(load_codec(sources.codec, memory.dtype), denoisers, sources.size)
    place(memory, prior.codec, list(loaded.values()))
    return prior


def restore(
    head: Head,
    portrait: Portrait,
    settings: RestorationSettings,
    context: Context,
    prior: DiffusionPrior | None = None,
    phi: DetailPreservationUNet | None = None,
    regularisers: Regularisers | None = None,
) -> Head:
    """Fine-tune phi and psi_dec on the portrait (Eqs. 5-6) and return the restored head; 0 steps: phi's answer as it is.

    prior, phi: other networks than those of `context.diffusion`. Raises `RestorationDiverged`, and Cancelled.
    """
    sources, total = find_sources(context.diffusion, ("restoration",)), settings.steps + settings.settle_steps + 1
    context.report(0, total)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(0, 2**31, (1,), generator=context.generator, device=context.generator.device)))
        fit = Fit(head, phi or trained_phi(head, sources), settings.learning_rate, settings.front_shape)
    if settings.steps == 0:
        return settle(fit.finished(), head, portrait, settings.settle_steps, context, 0, total)
    prior = prior_from(sources, settings, plan(context.diffusion, context.device)) if prior is None else prior.to(context.device)
    guide = Guide(prior, settings, reference_image(portrait).to(context.device), context.generator)
    target = reference_target(portrait, context.device)
    offset = 360 * float(torch.rand((), generator=context.generator, device=context.generator.device))
    terms_of = _Terms(fit, portrait, target, guide, settings, regularisers or Regularisers(), context)
    for step in range(settings.steps):
        terms, view = terms_of(step, draw_angles(step, offset, context.generator))
        if not fit.step(torch.stack(list(terms.values())).sum(), _rate(step, settings.steps)):
            raise RestorationDiverged(step, fit.finished(last_good=True))
        if step % SNAPSHOT == 0:
            fit.snapshot()
        preview = view.rgb.detach()[0].permute(1, 2, 0).clamp(0, 1) if step % PREVIEW == 0 else None
        context.report(step + 1, total, preview, **{name: float(term.detach()) for name, term in terms.items()})
    result = settle(fit.finished(), head, portrait, settings.settle_steps, context, settings.steps, total)
    if not all(bool(torch.isfinite(p.planes).all()) for p in (result.geometry, result.appearance)):
        raise RestorationDiverged(settings.steps - 1, fit.finished(last_good=True))
    return result


def _rate(step: int, steps: int) -> float:
    """A short warm-up, then linearly down to a fifth."""
    return min(1.0, (step + 1) / 5) * (1 - 0.8 * step / steps)


def reference_image(portrait: Portrait) -> Tensor:
    """Return the portrait as a condition: rgb over mid grey and matte (1, 4, H, W)."""
    rgb, matte = portrait.rgba[..., :3], portrait.rgba[..., 3:]
    return torch.cat([rgb * matte + BACKGROUND * (1 - matte), matte], -1).permute(2, 0, 1)[None]


class _Terms:
    """The loss terms of one step."""

    def __init__(
        self,
        fit: Fit,
        portrait: Portrait,
        target: Tensor,
        guide: Guide,
        settings: RestorationSettings,
        weights: Regularisers,
        context: Context,
    ) -> None:
        self.fit, self.portrait, self.target, self.guide = fit, portrait, target, guide
        self.settings, self.weights, self.context = settings, weights, context
        self.grid: DensityGrid | None = None
        self.start = fit.finished()
        fit.phi.train()

    def __call__(self, step: int, angles: tuple[float, float]) -> tuple[dict[str, Tensor], View]:
        """Return the weighted terms and the view they were taken from."""
        field, s, w = self.fit.field(), self.settings, self.weights
        if self.grid is None or step % REBUILD == 0:
            planes = field.shape
            self.grid = DensityGrid.build(field, GRID, device=planes.device, dtype=planes.dtype)
        view = render_view(field, *angles, s.render_size, self.grid, s.memory_budget)
        with torch.no_grad():
            camera = Camera.orbit(*angles, s.render_size).to(field.shape.device)
            before = self.start.render(camera, samples=SAMPLES)
        terms = self.guide.losses(view, step / max(1, s.steps - 1))
        reference, _ = reference_loss(field, self.portrait, self.target, self.grid, self.context.generator, s.memory_budget)
        terms["reference"] = s.reference_weight * reference
        terms["opaque"] = w.opaque * opaque_loss(view.out.alpha)
        terms["sparsity"] = w.sparsity * sparsity_loss(view.out.alpha)
        terms["smoothness"] = w.smoothness * smoothness_loss(view.out)
        terms["variation"] = w.variation * variation_loss(field.shape)
        terms["colours"] = w.colour_anchor * colour_anchor_loss(view.out, before)
        return terms, view
