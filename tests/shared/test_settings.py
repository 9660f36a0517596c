"""The declaration of the settings: complete, validated, and the same through its JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portrait_shared import settings as s
from portrait_shared.errors import PortraitDiffusionError

INFOS = {info.path: info for info in s.walk()}


def value_of(info: s.SettingInfo) -> st.SearchStrategy[Any]:
    if info.choices:
        one: st.SearchStrategy[Any] = st.sampled_from(info.choices)
        return st.lists(one, min_size=1, unique=True) if info.many else one
    if info.type is bool:
        return st.booleans()
    if info.type is str:
        return st.text(max_size=20)
    assert info.minimum is not None and info.maximum is not None
    return st.integers(int(info.minimum), int(info.maximum)) if info.type is int else st.floats(info.minimum, info.maximum)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for path, value in values.items():
        group, _, name = path.rpartition(".")
        (data.setdefault(group, {}) if group else data)[name] = value
    return data


def test_walk_lists_every_field_once() -> None:
    def count(kind: type) -> int:
        return sum(count(f.metadata["group"]) if "group" in f.metadata else 1 for f in dataclasses.fields(kind))

    paths = [info.path for info in s.walk()]
    assert len(paths) == len(set(paths)) == count(s.Settings)
    assert {"seed", "preset", "stages", "mesh.resolution", "mesh.texture_size", "mesh.faces", "output.format"} <= set(paths)


@pytest.mark.parametrize("info", INFOS.values(), ids=lambda i: i.path)
def test_every_setting_is_described_and_its_default_is_valid(info: s.SettingInfo) -> None:
    assert info.label and info.help.endswith(".")
    assert s.from_dict(nested({info.path: list(info.default) if info.many else info.default}))
    if info.type in (int, float):
        assert info.minimum is not None and info.maximum is not None and info.step is not None


def test_no_two_settings_share_a_command_line_name() -> None:
    names = [name for info in s.walk() for name in info.options]
    assert len(names) == len(set(names))
    assert {"--mesh-resolution", "--texture-size", "--faces", "--format", "--seed", "--preset", "--device", "--stages"} <= set(names)


@given(st.fixed_dictionaries({}, optional={path: value_of(info) for path, info in INFOS.items()}))
def test_json_round_trip(values: dict[str, Any]) -> None:
    made = s.from_dict(nested(values))
    for path, value in values.items():
        assert s.get(made, path) == (tuple(value) if INFOS[path].many else value)
    assert s.from_dict(json.loads(json.dumps(s.to_dict(made)))) == made


@pytest.mark.parametrize("preset", list(s.PRESETS))
def test_presets_hold_valid_values_and_explicit_ones_win(preset: Any) -> None:
    assert s.from_dict({"preset": preset}) == s.Settings(preset=preset) == s.validate(s.Settings(preset=preset))
    for group, values in s.PRESETS[preset].items():
        for name, value in values.items():
            assert s.get(s.Settings(preset=preset), f"{group}.{name}") == value
    mine = s.from_dict({"preset": preset, "mesh": {"faces": 1234}})
    assert mine.mesh == dataclasses.replace(s.Settings(preset=preset).mesh, faces=1234)


def test_presets_get_finer() -> None:
    draft, standard, full = (s.Settings(preset=p) for p in ("draft", "standard", "full"))
    assert draft.mesh.resolution < standard.mesh.resolution < full.mesh.resolution
    assert draft.prior.fit_steps < standard.prior.fit_steps < full.prior.fit_steps


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"preset": "best"}, "preset"),
        ({"preset": ["draft"]}, "preset"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"stages": "prior"}, "stages"),
        ({"stages": []}, "stages"),
        ({"stages": ["prior", "prior"]}, "stages"),
        ({"stages": ["polish"]}, "stages"),
        ({"mesh": {"faces": -1}}, "mesh.faces"),
        ({"mesh": {"resolution": None}}, "mesh.resolution"),
        ({"mesh": 3}, "mesh"),
        ({"prior": {"fit_shape": 1}}, "prior.fit_shape"),
        ({"output": {"format": "stl"}}, "output.format"),
    ],
)
def test_refuses_and_names_the_setting(data: dict[str, Any], path: str) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        s.from_dict(data)
    assert caught.value.code == "setting-invalid"
    assert caught.value.message.startswith(f"{path} = ")


def test_settings_made_in_python_are_checked_too() -> None:
    with pytest.raises(PortraitDiffusionError, match=r"mesh\.faces"):
        s.validate(s.Settings(mesh=s.MeshSettings(faces=-5)))


def test_unknown_fields_are_ignored_and_can_be_reported() -> None:
    data = {"sed": 3, "mesh": {"faces": 5000, "quads": {"on": True}}}
    assert s.from_dict(data).mesh.faces == 5000
    assert s.unknown_fields(data) == ("sed", "mesh.quads.on")


def test_float_settings_take_whole_numbers_but_nothing_infinite() -> None:
    @dataclasses.dataclass(frozen=True)
    class Example:
        gain: float = s.setting(0.5, "Gain", "An example.", min=0, max=2, step=0.1)

    (info,) = s.walk(Example)
    assert type(s._checked(info, 1)) is float
    for bad in (math.inf, math.nan, 2.5, True, "1"):
        with pytest.raises(PortraitDiffusionError):
            s._checked(info, bad)
