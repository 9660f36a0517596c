"""Stage 1: GAN-prior initialisation (Eq. 3). One interface, several providers."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    import torch

    from portrait_backend.context import Context
    from portrait_backend.portrait.types import Portrait
    from portrait_backend.prior.texture_field import TextureField
    from portrait_backend.radiance.head import Head
    from portrait_shared.settings import PriorSettings


class Prior(Protocol):
    """A provider of first heads."""

    def initialise(self, portrait: Portrait, settings: PriorSettings, context: Context) -> Head:
        """Return T_init, psi_dec and psi_SR for the portrait as a Head."""


@dataclass(frozen=True)
class Provider:
    """Where a provider is defined, and which kind of converted checkpoint it needs (None: no download)."""

    module: str
    name: str
    checkpoint: str | None = None


PROVIDERS = {
    "starter": Provider("starter", "StarterPrior"),
    "panohead": Provider("panohead", "PanoHeadPrior", "panohead"),
    "portrait4d": Provider("portrait4d", "Portrait4DPrior", "portrait4d"),
    "multiview": Provider("multiview", "MultiViewPrior"),
}
"""The names of the setting `prior.provider`."""


def find_provider(name: str) -> Provider:
    """Return the provider by name; PortraitDiffusionError ``prior-unknown`` for any other name."""
    if name not in PROVIDERS:
        raise PortraitDiffusionError("prior-unknown", f"there is no prior named {name!r}", f"Use --prior {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def create_prior(name: str) -> Prior:
    """Return the provider by name; PortraitDiffusionError ``prior-unknown``, ``weights-missing`` where its weights are not there."""
    provider = find_provider(name)
    if provider.checkpoint is not None:
        from portrait_backend.models.converted import require_converted

        require_converted(provider.checkpoint)
    made: Prior = getattr(importlib.import_module(f"portrait_backend.prior.{provider.module}"), provider.name)()
    return made


def for_texture(name: str, head: Head, portrait: Portrait, generator: torch.Generator) -> Head | TextureField:
    """Return a provider's head as its texture takes it: the starter's gets detail that its planes can't hold."""
    if name != "starter":
        return head
    from portrait_backend.prior.texture_field import with_detail

    return with_detail(head, portrait, generator)


def prior_inputs(settings: PriorSettings) -> dict[str, str]:
    """Return {name: sha256} of what the chosen provider reads besides the photo and the shipped weights.

    PortraitDiffusionError ``weights-missing``, and those of `posed_images.find_views`.
    """
    provider = find_provider(settings.provider)
    if provider.checkpoint is not None:
        from portrait_backend.models.converted import file_sha256, require_converted

        path = require_converted(provider.checkpoint)
        return {path.name: file_sha256(path)}
    if settings.provider == "multiview":
        from portrait_backend.prior.posed_images import view_sums

        return view_sums(settings.views)
    return {}
