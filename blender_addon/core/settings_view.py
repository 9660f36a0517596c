"""The declared settings as an interface needs them: grouped, with a preset's values, and as the request they make.

Everything is made from `portrait_shared.settings`: a setting or group that is added there appears in the panel by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from portrait_shared.settings import SettingInfo, Settings, get, walk

HOST_DECIDES = {
    "output.format": "glb",
    "output.separate_texture": False,
    "output.texture_format": "png",
    "output.ring_views": False,
    "output.turntable": "none",
    "prior.views": "",
    "preset": None,
}
"""Settings without a control of their own: the panel shows the preset elsewhere, imports GLB and plays no films."""
FLOAT_DIGITS = 6
"""Blender keeps single precision: 0.3 comes back as 0.30000001192, and is meant as 0.3."""
TITLES = {
    "": "General",
    "prior": "Stage 1: Prior",
    "restoration": "Stage 2: Restoration",
    "refinement": "Stage 3: Refinement",
    "diffusion": "Networks of Stages 2 and 3",
}


@dataclass(frozen=True)
class Group:
    """Settings that belong together; name "" for those of no group; stage: whether a stage of that name runs with them."""

    name: str
    title: str
    text: str
    infos: tuple[SettingInfo, ...]
    stage: bool


def groups() -> tuple[Group, ...]:
    """Return all settings by group, in the order of their declaration."""
    stages = next(info.choices for info in walk() if info.path == "stages")
    texts = {item.name: (item.metadata["group"].__doc__ or "").strip() for item in fields(Settings) if "group" in item.metadata}
    found = []
    for name in ("", *texts):
        infos = tuple(info for info in walk() if info.path.rpartition(".")[0] == name)
        found.append(Group(name, TITLES.get(name, name.replace("_", " ").title()), texts.get(name, ""), infos, name in stages))
    return tuple(found)


def shown(group: Group) -> tuple[SettingInfo, ...]:
    """Return the settings of a group that have a control."""
    return tuple(info for info in group.infos if info.path not in HOST_DECIDES)


def preset_value(preset: str, path: str) -> Any:
    """Return what a preset makes of a setting."""
    return get(Settings(preset=preset), path)  # type: ignore[arg-type]


def same(info: SettingInfo, a: Any, b: Any) -> bool:
    """Return whether two values of a setting mean the same (a tuple of choices: in any order)."""
    if info.many:
        return set(a) == set(b)
    if info.type is float:
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return bool(a == b)


def overrides(values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Return {path: value} of the settings that differ from the preset's."""
    return {
        info.path: clean(info, values[info.path])
        for info in walk()
        if info.path in values and info.path != "preset" and not same(info, values[info.path], preset_value(preset, info.path))
    }


def follow_preset(values: Mapping[str, Any], before: str, after: str) -> dict[str, Any]:
    """Return {path: new value} for a change of preset: what was not overridden takes the new preset's value."""
    kept = overrides(values, before)
    return {
        info.path: preset_value(after, info.path)
        for info in walk()
        if info.path in values and info.path != "preset" and info.path not in kept
    }


def clean(info: SettingInfo, value: Any) -> Any:
    """Return a value as it was meant: rounded floats, choices in their declared order."""
    if info.many:
        return [choice for choice in info.choices if choice in value]
    if info.type is float and value:
        return round(value, FLOAT_DIGITS - 1 - math.floor(math.log10(abs(value))))
    return value


def request(values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Return the settings in the JSON form that the backend takes: the preset, what differs from it, what this host decides."""
    data: dict[str, Any] = {"preset": preset}
    decided = {path: value for path, value in HOST_DECIDES.items() if value is not None}
    for path, value in {**overrides(values, preset), **decided}.items():
        group, _, name = path.rpartition(".")
        (data.setdefault(group, {}) if group else data)[name] = value
    return data


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {path: value} of settings in their JSON form."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def smaller(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return {path: value} that needs less memory: the draft preset's value wherever it is below the current one."""
    return {
        info.path: preset_value("draft", info.path)
        for info in walk()
        if info.type in (int, float) and not info.many and info.path in values and info.path != "seed"
        and values[info.path] > preset_value("draft", info.path)
    }  # fmt: skip


def stage_problem(group: Group, offered: tuple[str, ...] | None, chosen: set[str], version: str) -> str:
    """Return why a stage's settings have no effect, "" if they do; offered: the connected backend's stages, None without one."""
    if not group.stage:
        return ""
    if offered is not None and group.name not in offered:
        return f"Not part of this backend (version {version})"
    if group.name not in chosen:
        return "Switched off"
    return ""


def presets() -> tuple[str, ...]:
    """Return the names of the presets."""
    return next(info.choices for info in walk() if info.path == "preset")
