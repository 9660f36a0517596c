"""Stage 3: the fixed views are denoised outward from the front, and the head follows what agrees (Eqs. 7-19).

    head, portrait -> refine -> RefinedHead: the head, and the kept images for the texture bake

Per round and view: one render, a new image from noise resampled around the view's anchor, two vector-Jacobian products, the
gradient that agrees better with the driver's. The sum of the views and the photo's own loss make one step of Psi.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.diffusion import BACKGROUND
from portrait_backend.diffusion.memory import plan
from portrait_backend.diffusion.sources import find_sources
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import SAMPLES
from portrait_backend.radiance.head import Head
from portrait_backend.refinement.noise_resampling import Aggregate, Gradient, anchor_noise, image_gradients, resample, retain
from portrait_backend.refinement.psi import Psi
from portrait_backend.refinement.sampling import Driver, Front, Refiner, new_image, refiner_from
from portrait_backend.refinement.settle import Target, settle
from portrait_backend.refinement.state import RefinementState, ViewState, fingerprint_of
from portrait_backend.refinement.view_images import ViewImages, photo_image, render_view
from portrait_backend.refinement.view_ring import RingView, between, outward, view_ring
from portrait_shared.settings import RefinementSettings

LATENTS, FACTOR = 4, 4
"""Layout of the noise where no network says it (method "transport")."""


@dataclass(frozen=True)
class RefinedView:
    """A refined image to bake: foreground colours (S, S, 3) in [0, 1], matte (S, S), camera, steps away from the photo's view.

    valid (S, S): where it shows more than the head's own colours; change (S, S, 3): how it differs from these.
    """

    image: Tensor
    matte: Tensor
    valid: Tensor
    camera: Camera
    order: int
    change: Tensor | None = None


@dataclass(frozen=True)
class RefinedHead:
    """The refined head and its fixed views, the photo's own left out; both on the CPU where the bake works."""

    head: Head
    views: tuple[RefinedView, ...]


def refine(
    head: Head,
    portrait: Portrait,
    settings: RefinementSettings,
    context: Context,
    refiner: Refiner | None = None,
    state: Path | None = None,
) -> RefinedHead:
    """Refine `head` and return it with its views.

    refiner: the networks, by default those of `context.diffusion` (none for method "transport"). state: a file that is written after
    every round and continued from if it belongs to the same work. Raises `Cancelled`; PortraitDiffusionError ``weights-missing``.
    """
    if refiner is None and settings.method == "diffusion" and settings.iterations > 0:
        refiner = refiner_from(find_sources(context.diffusion, ("refinement",)), plan(context.diffusion, context.device))
    elif refiner is not None:
        refiner = refiner.to(context.device, context.dtype)
    return _Refinement(head, portrait, settings, context, refiner, state).run()


class _Refinement:
    """One run of the stage."""

    def __init__(
        self, head: Head, portrait: Portrait, settings: RefinementSettings, context: Context, refiner: Refiner | None, state: Path | None
    ) -> None:
        self.portrait, self.settings, self.context, self.refiner, self.path = portrait, settings, context, refiner, state
        size, device = settings.image_size, context.device
        elevations = (settings.elevation + settings.swing, settings.elevation - settings.swing)
        ring = view_ring(settings.views, elevations, portrait.camera, portrait.yaw, portrait.pitch, size)
        self.ring = [_on(view, device) for view in ring]
        networks = [] if refiner is None else [refiner.codec, refiner.denoiser, refiner.priors]
        self.fingerprint = fingerprint_of(head, portrait, settings, networks) if state is not None else ""
        self.psi = Psi(head, settings)
        self.state = RefinementState(self.psi.parameters, self.psi.optimiser, [ViewState() for _ in ring])
        self.photo, self.matte, self.valid = (x.to(device) for x in photo_image(portrait, size))
        self.tokens: dict[tuple[float, float], Tensor] = {}
        self.front: Front | None = None
        self.steps = settings.iterations * (len(ring) + settings.between_views) + settings.settle_steps

    def run(self) -> RefinedHead:
        """Go round until the iterations are done, then settle."""
        generator, settings = self.context.generator, self.settings
        if self.path is not None and self.state.load(self.path, self.fingerprint, generator):
            self.psi.refresh()
        self.context.report(self._done(), self.steps)
        while self.state.iteration < settings.iterations:
            self._round()
            self.state.iteration += 1
            if self.path is not None:
                self.state.save(self.path, self.fingerprint, generator)
        targets = self._targets() if settings.iterations > 0 else []
        if targets and settings.settle_steps > 0:
            settle(self.psi, targets[0], targets[1:], settings.settle_steps, self.context, self._done(), self.steps)
        return RefinedHead(self.psi.finished(), self._refined_views())

    def _done(self) -> int:
        return self.state.iteration * (len(self.ring) + self.settings.between_views)

    def _round(self) -> None:
        """One iteration: all fixed views outward, then random ones between them, then one step of Psi (Eqs. 18, 19)."""
        total = Aggregate(self.psi.parameters)
        drivers: dict[int, tuple[Driver, Gradient]] = {}
        kept = 0
        for turn, number in enumerate(outward(self.ring)):
            if number == 0:
                driver, gradient, weight = *self._reference(), self.settings.reference_weight
            else:
                driver, gradient, new = self._fixed_view(number, *drivers[self.ring[number].driver])
                weight, kept = 1.0, kept + new
            drivers = {0: drivers.get(0, (driver, gradient)), number: (driver, gradient)}
            total.add(gradient, weight)
            self.context.report(self._done() + turn + 1, self.steps, driver.image[0].permute(1, 2, 0).cpu(), kept=float(kept))
        self.state.kept.append(kept)
        for turn in range(self.settings.between_views):
            total.add(self._between_view())
            self.context.report(self._done() + len(self.ring) + turn + 1, self.steps)
        if self.settings.optimise:
            total.step(self.psi.optimiser)
            self.psi.refresh()

    def _render(self, view: RingView) -> ViewImages:
        return render_view(self.psi.head(), view.camera, self.psi.grid(), SAMPLES)

    def _reference(self) -> tuple[Driver, Gradient]:
        """v_0: the photo itself where it is valid; its gradient is that of the reference loss."""
        shown, state = self._render(self.ring[0]), self.state.views[0]
        image = self.photo * self.valid + shown.image.detach() * (1 - self.valid)
        (gradient,) = image_gradients(shown.image, [image], self.psi.parameters)
        if state.anchor is None:
            state.anchor = self._fresh_noise()
        state.image, state.new = image, self.matte * self.valid
        self.front = Front(image, shown.surface, state.new)
        return Driver(image, shown.surface, state.anchor), gradient

    def _fixed_view(self, number: int, driver: Driver, driver_gradient: Gradient) -> tuple[Driver, Gradient, bool]:
        """A view that follows: new image from resampled noise, kept if its gradient agrees better with the driver's (Eqs. 12-17)."""
        shown, state = self._render(self.ring[number]), self.state.views[number]
        if state.anchor is None:
            state.anchor = anchor_noise(driver.noise, driver.surface, shown.surface, self.context.generator)
        noise = self._noise(state.anchor)
        image, fresh = self._image(self.ring[number], driver, shown, noise)
        compared = state.image if self.settings.noise == "resampled" else None
        targets = [image] if compared is None else [image, compared]
        gradients = image_gradients(shown.image, targets, self.psi.parameters)
        outcome = retain(gradients[0], gradients[1] if compared is not None else None, driver_gradient)
        if outcome.new:
            state.image, state.new, state.anchor = image, fresh, noise
        assert state.image is not None
        return Driver(state.image, shown.surface, state.anchor), outcome.gradient, outcome.new

    def _between_view(self) -> Gradient:
        """A random view: multi-step image loss against its nearest fixed view's kept image, nothing to retain."""
        settings, generator = self.settings, self.context.generator
        view = _on(between(self.ring, settings.image_size, settings.between_elevation, generator), self.context.device)
        kept, shown = self.state.views[view.driver], self._render(view)
        assert kept.image is not None and kept.anchor is not None
        with torch.no_grad():
            surface = self._render(self.ring[view.driver]).surface
        noise = anchor_noise(kept.anchor, surface, shown.surface, generator)
        image, _ = self._image(view, Driver(kept.image, surface, kept.anchor), shown, noise)
        (gradient,) = image_gradients(shown.image, [image], self.psi.parameters)
        return gradient

    def _image(self, view: RingView, driver: Driver, shown: ViewImages, noise: Tensor) -> tuple[Tensor, Tensor]:
        assert self.front is not None, "every round begins with the photo"
        return new_image(self.refiner, driver, self.front, shown, noise, self._tokens(view), self.settings)

    def _noise(self, anchor: Tensor) -> Tensor:
        if self.settings.noise == "random":
            return self._fresh_noise()
        return anchor if self.settings.noise == "fixed" else resample(anchor, self.settings.noise_sigma, self.context.generator)

    def _fresh_noise(self) -> Tensor:
        factor, channels = (FACTOR, LATENTS) if self.refiner is None else (self.refiner.codec.factor, self.refiner.codec.channels)
        side, generator = self.settings.image_size // factor, self.context.generator
        noise = torch.randn(1, channels, side, side, generator=generator, device=generator.device)
        return noise.to(self.context.device, self.context.dtype)

    def _tokens(self, view: RingView) -> Tensor | None:
        """The denoiser's tokens for a view of this sitter, kept for the fixed views."""
        if self.refiner is None:
            return None
        key = (view.azimuth, view.elevation)
        if key not in self.tokens:
            angle = torch.tensor(key, device=self.context.device, dtype=self.context.dtype)
            sitter = torch.cat([self.photo, self.matte], 1)
            with torch.no_grad():
                tokens = self.refiner.denoiser.condition.encode(angle[:1], angle[1:], "rgb", sitter)
            if not any(view is fixed for fixed in self.ring):
                return tokens
            self.tokens[key] = tokens
        return self.tokens[key]

    @torch.no_grad()
    def _targets(self) -> list[Target]:
        """The photo and the kept images as what `settle` meets."""
        targets = []
        for number, (view, state) in enumerate(zip(self.ring, self.state.views, strict=True)):
            if state.image is not None:
                seen = state.new if number == 0 else None
                targets.append(Target.of_image(view.camera, state.image, self._render(view).surface, seen))
        return targets

    @torch.no_grad()
    def _refined_views(self) -> tuple[RefinedView, ...]:
        """The kept images with the render's silhouette, without the photo's own view (the bake has the photo itself).

        They were made at the denoiser's size. The head is rendered finer, and what they change is added to that. The bake takes the change
        alone: it lays it over colours that are as fine as the texture.
        """
        refined, head, grid = [], self.psi.head(), self.psi.grid()
        size = max(self.settings.texture_views, self.settings.image_size)
        for view, state in list(zip(self.ring, self.state.views, strict=True))[1:]:
            if state.image is None or state.new is None:
                continue
            camera = view.camera.resized(size)
            out = head.render(camera, grid=grid, samples=SAMPLES)
            shown = (out.rgb + BACKGROUND * (1 - out.alpha[..., None])).permute(2, 0, 1)[None]
            change = state.image - F.interpolate(shown, size=state.image.shape[2:], mode="area")
            image = shown + F.interpolate(change, size=(size, size), mode="bicubic", align_corners=False)
            new = F.interpolate(state.new, size=(size, size), mode="bilinear", align_corners=False)[0, 0]
            straight = _straight(image, out.alpha)
            maps = [x.cpu().float() for x in (straight, out.alpha, new, straight - _straight(shown, out.alpha))]
            refined.append(RefinedView(maps[0], maps[1], maps[2], camera.to(torch.device("cpu")), view.order, maps[3]))
            self.context.report(self.steps, self.steps)
        return tuple(refined)


def _straight(image: Tensor, matte: Tensor) -> Tensor:
    """Foreground colours (S, S, 3) of an image (1, 3, S, S) over grey; where hardly anything covers a pixel, its neighbours' colours."""
    premultiplied = (image[0] - BACKGROUND * (1 - matte)) * (matte > 0.5)
    weight = (matte * (matte > 0.5))[None]
    around = F.avg_pool2d(torch.cat([premultiplied, weight])[None], 9, 1, 4)[0]
    near = around[:3] / around[3:].clamp_min(1e-3)
    colour = torch.where(weight > 0, premultiplied / weight.clamp_min(1e-3), near)
    return colour.clamp(0, 1).permute(1, 2, 0)


def _on(view: RingView, device: torch.device) -> RingView:
    return RingView(view.azimuth, view.elevation, view.camera.to(device), view.driver, view.order)
