"""The models that can be had, as clients see them: no paths of this machine, and the command that its owner runs."""

from __future__ import annotations

from dataclasses import fields

from portrait_backend.models.catalogue import CATALOGUE, Hub, Model
from portrait_backend.models.listing import facts
from portrait_backend.models.store import models_folder
from portrait_shared import protocol as p


def model_infos() -> tuple[p.ModelInfo, ...]:
    """Return the catalogue with what is installed now."""
    folder = models_folder()
    names = {item.name for item in fields(p.ModelInfo)}
    found = []
    for model in CATALOGUE:
        known = facts(model, folder)
        found.append(
            p.ModelInfo(**{k: v for k, v in known.items() if k in names}, command=command(model, known["state"], known["converted"]))
        )
    return tuple(found)


def command(model: Model, state: str, converted: bool) -> str:
    """Return the next command that brings a model, "" where it is ready."""
    if model.convert is not None and (converted or state == "installed"):
        return "" if converted else f"portrait-diffusion models convert --as {model.convert}"
    if state == "installed":
        return ""
    source = "" if isinstance(model.source, Hub) else " --from DIR"
    return f"portrait-diffusion models download {model.name}{source}"
