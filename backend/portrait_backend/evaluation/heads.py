"""Make heads for an evaluation: the stages on a portrait, without a job folder."""

from __future__ import annotations

import torch

from portrait_backend import devices
from portrait_backend.context import Context
from portrait_backend.pipeline import check_stages
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior import create_prior
from portrait_backend.radiance.head import Head
from portrait_shared.settings import Settings


def stage_context(context: Context, settings: Settings, stage: str) -> Context:
    """Return the context in which a job with these settings runs a stage: the same seed gives the same head."""
    generator = devices.stage_generator(settings.seed, stage, context.device)
    return Context(context.device, torch.float32, generator, None, context.cancelled, stage)


def make_head(portrait: Portrait, settings: Settings, context: Context) -> Head:
    """Run the stages of `settings` on a portrait; raises PortraitDiffusionError ``stage-unavailable``."""
    check_stages(settings)
    head = create_prior(settings.prior.provider).initialise(portrait, settings.prior, stage_context(context, settings, "prior"))
    return head.to(context.device)
