"""Ablation rows are data: what can run gets its settings, what can't is named with the reason."""

from __future__ import annotations

import pytest

from portrait_backend.evaluation.ablations import ABLATIONS, Ablation, settings_of, split
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict, to_dict, walk


def test_overrides_change_only_what_they_name() -> None:
    base = from_dict({"preset": "draft", "seed": 5, "prior": {"fit_steps": 7}})
    row = Ablation("stages", "no shape", {"stages": ("prior",), "prior.fit_shape": False})
    settings = settings_of(row, base)
    assert settings.prior.fit_shape is False and settings.prior.fit_steps == 7 and settings.seed == 5 and settings.mesh == base.mesh


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [({"refinement.no_such_thing": 1}, "no setting refinement.no_such_thing"), ({"stages": ("prior", "polish")}, "polish")],
)
def test_what_can_not_run_is_named(overrides: dict, reason: str) -> None:
    row = Ablation("fig. 5", "x", overrides)
    with pytest.raises(PortraitDiffusionError, match=reason):
        settings_of(row, Settings())
    able, unable = split(Settings(), (row, Ablation("stages", "y", {"prior.fit_steps": 0})))
    assert [found.name for found, _ in able] == ["y"] and reason in unable[0][1]


SETTINGS = {info.path: info for info in walk()}
GROUPS = {path.partition(".")[0] for path in SETTINGS if "." in path}


@pytest.mark.parametrize("row", ABLATIONS, ids=lambda row: row.method)
def test_rows_name_settings_that_exist(row: Ablation) -> None:
    """A stage that this version has (its settings are declared) must have every setting and value that a row names."""
    for path, value in row.overrides.items():
        if "." in path and path.partition(".")[0] not in GROUPS:
            continue  # the stage is not part of this version
        assert path in SETTINGS, f"{row.method} names {path}"
        group, _, name = path.rpartition(".")
        given = list(value) if isinstance(value, tuple) else value
        settings = to_dict(from_dict({group: {name: given}} if group else {name: given}))
        assert (settings[group] if group else settings)[name] == given


def test_every_row_of_the_paper_is_there() -> None:
    names = {figure: [row.name for row in ABLATIONS if row.figure == figure] for figure in ("stages", "fig. 5", "fig. 6")}
    assert len(names["fig. 5"]) == 3 and len(names["fig. 6"]) == 5 and len(names["stages"]) == 5
    assert len({row.method for row in ABLATIONS}) == len(ABLATIONS)
    figure_5 = [{**row.overrides} for row in ABLATIONS if row.figure == "fig. 5"]
    figure_6 = [{**row.overrides} for row in ABLATIONS if row.figure == "fig. 6"]
    assert figure_5[-1] == figure_6[-1], "both figures end with all of stage 3"
    assert len({str(row) for row in figure_5 + figure_6}) == 7, "all others differ"
    able, unable = split(Settings())
    assert len(able) + len(unable) == len(ABLATIONS) and len(able) >= 3
