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
from portrait_backend.pipeline import digest
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.head import Head
from portrait_shared.settings import Settings, to_dict


def stage_context(context: Context, settings: Settings, stage: str) -> Context:
    """Return the context in which a job with these settings runs a stage: the same seed gives the same head."""
    generator = devices.stage_generator(settings.seed, stage, context.device)
    return Context(context.device, torch.float32, generator, None, context.cancelled, stage)


@dataclass(frozen=True)
class Made:
    """What the stages made: a head, and the images that are baked onto its mesh."""

    head: Head
    views: Sequence[ProjectedView] = ()


class HeadMaker:
    """Makes heads of one portrait under many settings; what begins with the same stages and settings is made once."""

    def __init__(self, portrait: Portrait, context: Context) -> None:
        self.portrait, self.context = portrait, context
        self._heads: dict[str, Made] = {}
        self._meshes: dict[str, MeshHead] = {}

    def head(self, settings: Settings) -> Made:
        """Run the stages of `settings`; raises PortraitDiffusionError stage-unavailable, setting-invalid."""
        stages.check(settings)
        made: Made | None = None
        key = digest(settings.seed)
        for name in settings.stages:
            group = getattr(settings, name, None)
            key = digest([key, name, None if group is None else to_dict(group)])
            if key not in self._heads:
                self._heads[key] = self._run(name, group, made, stage_context(self.context, settings, name))
            made = self._heads[key]
        assert made is not None  # `check` wants at least the prior
        return made

    def _run(self, name: str, group: Any, before: Made | None, context: Context) -> Made:
        made: Any = stages.RUNNERS[name](None if before is None else before.head, self.portrait, group, context)
        views = getattr(made, "views", None) or (() if before is None else before.views)
        return Made(getattr(made, "head", made).to(context.device), views)

    def mesh(self, settings: Settings) -> MeshHead:
        """Return the textured mesh, as a job with these settings would write it."""
        made = self.head(settings)
        key = digest(to_dict(settings))
        if key not in self._meshes:
            context = stage_context(self.context, settings, "mesh")
            self._meshes[key] = from_head_mesh(build_mesh(made.head, self.portrait, settings.mesh, context, made.views))
        return self._meshes[key]
