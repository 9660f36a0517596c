"""Make heads for an evaluation: the stages on a portrait, and the mesh of the result, without a job folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from portrait_backend import devices, stages
from portrait_backend.context import Context
from portrait_backend.evaluation.mesh_file import MeshHead, from_head_mesh
from portrait_backend.mesh.build import build_mesh
from portrait_backend.mesh.views import ProjectedView
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head
from portrait_shared.settings import Settings


@dataclass(frozen=True)
class Made:
    """What the stages made: a head, and the images that are baked onto its mesh."""

    head: Head
    views: Sequence[ProjectedView] = ()


def stage_context(context: Context, settings: Settings, stage: str) -> Context:
    """Return the context in which a job with these settings runs a stage: the same seed gives the same head."""
    generator = devices.stage_generator(settings.seed, stage, context.device)
    return Context(context.device, torch.float32, generator, None, context.cancelled, stage)


def make_head(portrait: Portrait, settings: Settings, context: Context) -> Made:
    """Run the stages of `settings` on a portrait; raises PortraitDiffusionError stage-unavailable, setting-invalid."""
    stages.check(settings)
    made: Any = None
    views: Sequence[ProjectedView] = ()
    for name in settings.stages:
        head = getattr(made, "head", made)
        made = stages.RUNNERS[name](head, portrait, getattr(settings, name, None), stage_context(context, settings, name))
        views = getattr(made, "views", None) or views
    return Made(getattr(made, "head", made).to(context.device), views)


def make_mesh(made: Made, portrait: Portrait, settings: Settings, context: Context) -> MeshHead:
    """Return the textured mesh, as a job with these settings would write it."""
    return from_head_mesh(build_mesh(made.head, portrait, settings.mesh, stage_context(context, settings, "mesh"), made.views))
