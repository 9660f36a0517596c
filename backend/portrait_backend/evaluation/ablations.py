"""The rows of the ablation study as data: a name and the settings that differ. What this version can't run is named, with the reason.

Figure 5 of the paper takes the Hybrid Priors model apart, figure 6 the noise resampling; "stages" adds one stage after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from portrait_backend import stages
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict, unknown_fields

SECTION = "ablations"
REFINED = ("prior", "refinement")
"""Stages of the rows that take stage 3 apart; stage 2 would change all of them alike, and costs time."""
FULL: dict[str, Any] = {
    "method": "diffusion",
    "geometry_condition": True,
    "implicit_branch": True,
    "noise": "resampled",
    "optimise": True,
}
"""All of stage 3, whatever the run's own settings switch off: the last row of both figures."""
LOW_CONTROL, HIGH_CONTROL = 0.3, 1.0
"""Low and high weight w_Ex of what the neighbouring view shows."""


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


def _refined(figure: str, name: str, **settings: Any) -> Ablation:
    return Ablation(figure, name, {"stages": REFINED} | {f"refinement.{key}": value for key, value in (FULL | settings).items()})


ABLATIONS = (
    Ablation("stages", "prior network alone", {"stages": ("prior",), "prior.fit_steps": 0}),
    Ablation("stages", "+ colours fitted to the photo", {"stages": ("prior",), "prior.fit_shape": False}),
    Ablation("stages", "+ shape fitted (all of stage 1)", {"stages": ("prior",)}),
    Ablation("stages", "+ restoration (stage 2)", {"stages": ("prior", "restoration")}),
    Ablation("stages", "+ refinement (stage 3)", {"stages": ("prior", "restoration", "refinement")}),
    _refined("fig. 5", "explicit branch only", geometry_condition=False, implicit_branch=False),
    _refined("fig. 5", "+ geometry condition", implicit_branch=False),
    _refined("fig. 5", "+ implicit branch (all of stage 3)"),
    _refined("fig. 6", "fixed noise", noise="fixed"),
    _refined("fig. 6", "random noise, low control", noise="random", explicit_scale=LOW_CONTROL),
    _refined("fig. 6", "random noise, high control", noise="random", explicit_scale=HIGH_CONTROL),
    _refined("fig. 6", "noise resampling without optimisation", optimise=False),
    _refined("fig. 6", "noise resampling (all of stage 3)"),
)


def settings_of(row: Ablation, base: Settings) -> Settings:
    """Return the settings of a row; raises PortraitDiffusionError setting-invalid, stage-unavailable where this version can't run it."""
    data: dict[str, Any] = to_dict(base)
    for path, value in row.overrides.items():
        group, _, name = path.rpartition(".")
        (data.setdefault(group, {}) if group else data)[name] = list(value) if isinstance(value, tuple) else value
    settings = from_dict(data)
    stages.check(settings)
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
