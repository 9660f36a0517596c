"""The stages that make the head: which there are, in which order, what runs them. Importing this loads nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from portrait_backend import __version__
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, invalid

if TYPE_CHECKING:
    from portrait_backend.context import Context
    from portrait_backend.portrait.types import Portrait
    from portrait_backend.radiance.head import Head

Runner = Callable[["Head | None", "Portrait", Any, "Context"], Any]
"""fn(head, portrait, settings of the stage, context) -> Head, or an object with `head` and `views` (posed images to bake)."""


def _prior(head: Head | None, portrait: Portrait, settings: Any, context: Context) -> Head:
    from portrait_backend.prior import create_prior

    return create_prior(settings.provider).initialise(portrait, settings, context)


def _refinement(head: Head | None, portrait: Portrait, settings: Any, context: Context) -> Any:
    from portrait_backend.checkpoints import Made
    from portrait_backend.mesh.views import ProjectedView
    from portrait_backend.refinement.refine import refine

    if head is None:
        raise ValueError("the refinement needs a head to refine")
    refined = refine(head, portrait, settings, context, state=context.state)
    views = (ProjectedView(v.image, v.matte, v.valid, v.camera, REFINED_PRIORITY, change=v.change) for v in refined.views)
    return Made(head=refined.head, views=tuple(views))


def lazily(module: str, name: str) -> Runner:
    """Return a runner that imports what it runs when it runs."""

    def run(head: Head | None, portrait: Portrait, settings: Any, context: Context) -> Any:
        return getattr(importlib.import_module(module), name)(head, portrait, settings, context)

    return run


RUNNERS: dict[str, Runner] = {
    "prior": _prior,
    "restoration": lazily("portrait_backend.restoration.fit", "restore"),
    "refinement": _refinement,
}
"""The stages of this version, in the order in which they run. The settings of a stage are the group of its name."""
DIFFUSED = ("restoration", "refinement")
"""The stages that `Settings.diffusion` decides too."""
REFINED_PRIORITY = 10
"""The refined views lie under the photo (`mesh.views.PHOTO_PRIORITY`) and over the field's own colour."""
SHAPING = ("prior", "restoration")
"""The stages that decide the shape; a re-texture keeps what they made and runs those after them."""


def check(settings: Settings) -> None:
    """Raise PortraitDiffusionError ``stage-unavailable`` for a stage this version doesn't have, ``setting-invalid`` for a wrong order."""
    for stage in settings.stages:
        if stage not in RUNNERS:
            raise PortraitDiffusionError(
                "stage-unavailable",
                f"the stage {stage!r} is not part of version {__version__}, it comes in a later one",
                f"Run with --stages {','.join(RUNNERS)}",
            )
    if settings.stages[0] != "prior" or list(settings.stages) != [stage for stage in RUNNERS if stage in settings.stages]:
        raise invalid("stages", ",".join(settings.stages), f"must start with prior and keep the order {','.join(RUNNERS)}")


def with_networks(settings: Settings) -> tuple[str, ...]:
    """Return the stages that load the networks of `Settings.diffusion`."""
    return tuple(s for s in settings.stages if s in DIFFUSED and (s != "refinement" or settings.refinement.method == "diffusion"))


def check_client(settings: Settings) -> None:
    """Raise PortraitDiffusionError ``setting-invalid`` for what a server's client may not ask: to read a folder of the server's machine."""
    if settings.prior.views or settings.prior.provider == "multiview":
        raise invalid("prior.views", settings.prior.views, "is for the command line: no client chooses a folder of the backend's machine")


def plan(settings: Settings, keeps_geometry: bool) -> list[str]:
    """Return the names of all stages that a job reports, in order."""
    made = ["texture"] if keeps_geometry else ["mesh"]
    before = [] if keeps_geometry else ["portrait"]
    heads = [stage for stage in settings.stages if not (keeps_geometry and stage in SHAPING)]
    film = ["turntable"] if settings.output.turntable != "none" else []
    return [*before, *heads, *made, "views", *film]


def with_geometry_of(settings: Settings, parent: Settings) -> Settings:
    """Return `settings` with everything that shaped the geometry taken from `parent`: the settings of a re-texture."""
    shaping = {stage: getattr(parent, stage) for stage in SHAPING if hasattr(parent, stage)}
    later = [stage for stage in settings.stages if stage not in SHAPING]
    stages = (*(stage for stage in parent.stages if stage in SHAPING), *later)
    mesh = replace(parent.mesh, texture_size=settings.mesh.texture_size)
    return replace(settings, stages=stages, mesh=mesh, **shaping)
