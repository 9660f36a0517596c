"""Make heads for an evaluation: the stages on a portrait, and the mesh of the result, without a job folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from portrait_backend import devices
from portrait_backend.context import Context
from portrait_backend.evaluation.mesh_file import MeshHead, from_head_mesh
from portrait_backend.mesh.build import build_mesh
from portrait_backend.mesh.views import ProjectedView
from portrait_backend.pipeline import check_stages
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior import create_prior
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
    """Run the stages of `settings` on a portrait; raises PortraitDiffusionError ``stage-unavailable``."""
    check_stages(settings)
    head = create_prior(settings.prior.provider).initialise(portrait, settings.prior, stage_context(context, settings, "prior"))
    return Made(head.to(context.device))


def make_mesh(made: Made, portrait: Portrait, settings: Settings, context: Context) -> MeshHead:
    """Return the textured mesh, as a job with these settings would write it."""
    return from_head_mesh(build_mesh(made.head, portrait, settings.mesh, stage_context(context, settings, "mesh"), made.views))
