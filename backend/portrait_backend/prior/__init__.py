"""Stage 1: GAN-prior initialisation (Eq. 3). One interface, several providers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    from portrait_backend.context import Context
    from portrait_backend.portrait.types import Portrait
    from portrait_backend.radiance.head import Head
    from portrait_shared.settings import PriorSettings


class Prior(Protocol):
    """A provider of first heads."""

    def initialise(self, portrait: Portrait, settings: PriorSettings, context: Context) -> Head:
        """Return T_init, psi_dec and psi_SR for the portrait as a Head."""


def create_prior(provider: str) -> Prior:
    """Return the provider by name; PortraitDiffusionError ``prior-unknown`` for any other name."""
    if provider == "starter":
        from portrait_backend.prior.starter import StarterPrior

        return StarterPrior()
    raise PortraitDiffusionError("prior-unknown", f"there is no prior named {provider!r}", "Use --prior starter")
