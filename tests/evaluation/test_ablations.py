"""Ablation rows are data: what can run gets its settings, what can't is named with the reason."""

from __future__ import annotations

import pytest

from portrait_backend.evaluation.ablations import ABLATIONS, Ablation, settings_of, split
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict


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


def test_every_row_of_the_paper_is_there() -> None:
    names = {figure: [row.name for row in ABLATIONS if row.figure == figure] for figure in ("stages", "fig. 5", "fig. 6")}
    assert len(names["fig. 5"]) == 3 and len(names["fig. 6"]) == 5 and len(names["stages"]) == 5
    assert len({row.method for row in ABLATIONS}) == len(ABLATIONS)
    able, unable = split(Settings())
    assert len(able) + len(unable) == len(ABLATIONS) and len(able) >= 3
