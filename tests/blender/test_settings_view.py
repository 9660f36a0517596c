"""The panel's settings: every declared one, presets change what wasn't overridden, the request says only what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blender_addon.core import settings_view as view
from portrait_shared.settings import SettingInfo, Settings, from_dict, get, walk


def panel(preset: str = "standard") -> dict[str, object]:
    return {info.path: get(Settings(preset=preset), info.path) for info in walk() if info.path != "preset"}  # type: ignore[arg-type]


def info(path: str) -> SettingInfo:
    return next(i for i in walk() if i.path == path)


def test_every_declared_setting_is_in_a_group() -> None:
    assert [i.path for group in view.groups() for i in group.infos] == sorted(
        (i.path for i in walk()), key=lambda path: [g.name for g in view.groups()].index(path.rpartition(".")[0])
    )
    assert {g.name for g in view.groups() if g.stage} <= set(info("stages").choices)


def test_a_preset_changes_what_was_not_overridden() -> None:
    values = {**panel(), "mesh.faces": 12345}
    new = view.follow_preset(values, "standard", "draft")
    assert "mesh.faces" not in new
    assert new["mesh.resolution"] == Settings(preset="draft").mesh.resolution
    back = view.follow_preset({**values, **new}, "draft", "standard")
    assert {**values, **new, **back} == values


@pytest.mark.parametrize("preset", view.presets())
def test_the_request_means_what_the_panel_shows(preset: str) -> None:
    values = {**panel(preset), "mesh.faces": 12345, "seed": 7}
    data = view.request(values, preset)
    made = from_dict(data)
    assert made.preset == preset and made.mesh.faces == 12345 and made.seed == 7
    assert made.mesh.resolution == Settings(preset=preset).mesh.resolution  # type: ignore[arg-type]
    assert made.output.format == "glb", "the extension imports GLB"
    assert "resolution" not in data["mesh"], "what the preset says already is not repeated"


def test_single_precision_is_no_override() -> None:
    single = replace(info("mesh.smoothing"), type=float, default=0.3)
    assert view.same(single, 0.30000001192092896, 0.3) and not view.same(single, 0.31, 0.3)
    assert view.clean(single, 0.30000001192092896) == 0.3
    assert view.clean(single, 1234.5677490234375) == 1234.57
    assert view.clean(single, 0.0) == 0.0


def test_choices_are_sent_in_their_declared_order() -> None:
    stages = info("stages")
    assert view.clean(stages, {"refinement", "prior"}) == [s for s in stages.choices if s in ("refinement", "prior")]


def test_smaller_never_enlarges() -> None:
    values = panel("full")
    less = view.smaller(values)
    assert less["mesh.resolution"] == Settings(preset="draft").mesh.resolution and "seed" not in less
    assert all(less[path] < values[path] for path in less)  # type: ignore[operator]
    assert view.smaller({**values, **less}) == {}


def test_a_stage_without_effect_says_why() -> None:
    prior = next(g for g in view.groups() if g.name == "prior")
    assert view.stage_problem(prior, ("prior",), {"prior"}, "1.0") == ""
    assert view.stage_problem(prior, None, {"prior"}, "") == ""
    assert "1.0" in view.stage_problem(prior, (), {"prior"}, "1.0")
    assert view.stage_problem(prior, ("prior",), set(), "1.0") == "Switched off"
