"""The rows of the ablation study as data: a name and the settings that differ. What this version can't run is named, with the reason.

Figure 5 of the paper takes the Hybrid Priors model apart, figure 6 the noise resampling; "stages" adds one stage after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from portrait_backend.pipeline import check_stages
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict, unknown_fields

ALL = ("prior", "restoration", "refinement")


@dataclass(frozen=True)
class Ablation:
    """One row: figure, name, and settings by dotted path that override those of the run."""

    figure: str
    name: str
    overrides: Mapping[str, Any]

    @property
    def method(self) -> str:
        """The name under which its scores stand."""
        return f"{self.figure}: {self.name}"


ABLATIONS = (
    Ablation("stages", "prior network alone", {"stages": ("prior",), "prior.fit_steps": 0}),
    Ablation("stages", "+ colours fitted to the photo", {"stages": ("prior",), "prior.fit_shape": False}),
    Ablation("stages", "+ shape fitted (all of stage 1)", {"stages": ("prior",)}),
    Ablation("stages", "+ restoration (stage 2)", {"stages": ("prior", "restoration")}),
    Ablation("stages", "+ refinement (stage 3)", {"stages": ALL}),
    Ablation("fig. 5", "explicit branch only", {"stages": ALL, "refinement.geometry": False, "refinement.implicit": False}),
    Ablation("fig. 5", "+ geometry condition", {"stages": ALL, "refinement.geometry": True, "refinement.implicit": False}),
    Ablation("fig. 5", "+ implicit branch", {"stages": ALL, "refinement.geometry": True, "refinement.implicit": True}),
)


def settings_of(row: Ablation, base: Settings) -> Settings:
    """Return the settings of a row; raises PortraitDiffusionError setting-invalid, stage-unavailable where this version can't run it."""
    data: dict[str, Any] = to_dict(base)
    for path, value in row.overrides.items():
        group, _, name = path.rpartition(".")
        (data.setdefault(group, {}) if group else data)[name] = list(value) if isinstance(value, tuple) else value
    settings = from_dict(data)
    check_stages(settings)
    missing = unknown_fields(data)
    if missing:
        raise PortraitDiffusionError("setting-invalid", f"this version has no setting {', '.join(missing)}", "Update portrait-diffusion")
    return settings


def split(base: Settings, rows: tuple[Ablation, ...] = ABLATIONS) -> tuple[list[tuple[Ablation, Settings]], list[tuple[Ablation, str]]]:
    """Return the rows that can run, with their settings, and those that can't, with the reason."""
    able: list[tuple[Ablation, Settings]] = []
    unable: list[tuple[Ablation, str]] = []
    for row in rows:
        try:
            able.append((row, settings_of(row, base)))
        except PortraitDiffusionError as error:
            unable.append((row, error.message))
    return able, unable
