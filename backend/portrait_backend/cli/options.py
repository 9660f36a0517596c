"""Command-line options made from the declaration in portrait_shared/settings.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from portrait_shared.settings import PRESETS, SettingInfo, Settings, from_dict, walk

PANELS = {
    "": "Options",
    "prior": "Stage 1: prior",
    "restoration": "Stage 2: restoration",
    "refinement": "Stage 3: refinement",
    "diffusion": "Networks of stages 2 and 3",
    "mesh": "Mesh",
    "output": "Output",
}


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with one option for every setting in place of its parameter `settings`, or `overrides`: what was given of them."""
    all_own = inspect.signature(function, eval_str=True).parameters
    own = [p for p in all_own.values() if p.name not in ("settings", "overrides")]
    infos = {info.path.replace(".", "__"): info for info in walk(Settings)}

    def command(**values: Any) -> Any:
        overrides = given_settings({infos[name].path: values.pop(name) for name in infos})
        settings = from_dict(overrides)  # refuses what is wrong, whoever asks
        return function(**({"settings": settings} if "settings" in all_own else {"overrides": overrides}), **values)

    made = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(info)) for name, info in infos.items()]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = function.__doc__
    return command


def given_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested JSON form of {dotted path: value} without what is None: not given."""
    data: dict[str, Any] = {}
    for info in walk(Settings):
        value = given.get(info.path)
        if value is None:
            continue
        group, _, name = info.path.rpartition(".")
        target = data.setdefault(group, {}) if group else data
        target[name] = [part.strip() for part in value.split(",")] if info.many else value
    return data


def _option(info: SettingInfo) -> Any:
    kind: Any = str if info.many else Literal[info.choices] if info.choices else info.type
    names = list(info.options)
    if info.type is bool:
        names = ["/".join([name, "--no-" + name[2:]]) for name in names]
    group = info.path.rpartition(".")[0]
    metavar = f"{info.choices[0]},…" if info.many else None
    return Annotated[
        kind | None, typer.Option(*names, help=_help(info), metavar=metavar, show_default=False, rich_help_panel=PANELS.get(group, group))
    ]


def _help(info: SettingInfo) -> str:
    facts = []
    if info.many:
        facts.append(f"any of {', '.join(info.choices)}")
    if info.minimum is not None and info.maximum is not None:
        facts.append(f"{info.minimum:g} to {info.maximum:g}" if info.maximum < 1e6 else f"from {info.minimum:g}")
    default = info.default
    if info.many:
        default = ",".join(default)
    elif info.type is bool:
        default = "on" if default else "off"
    by_preset = [f"{preset} {value}" for preset in PRESETS if (value := _in_preset(info, preset)) is not None]
    facts.append("default " + "; ".join([str(default), *by_preset]))
    return f"{info.help} [{', '.join(facts)}]".replace("[", "\\[")


def _in_preset(info: SettingInfo, preset: str) -> Any:
    group, _, name = info.path.rpartition(".")
    return PRESETS[preset].get(group, {}).get(name)
