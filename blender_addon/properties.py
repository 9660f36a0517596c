"""Scene properties: the photo, the preset, and one property for every declared setting, made from the declaration."""

from typing import Any

import bpy
from bpy.props import BoolProperty, EnumProperty, FloatProperty, IntProperty, PointerProperty, StringProperty

from portrait_shared.settings import SettingInfo, walk

from .core import settings_view

LIMIT = 2**31 - 1


def _choices(info: SettingInfo) -> list[tuple[str, str, str]]:
    return [(choice, choice.replace("_", " ").capitalize(), "") for choice in info.choices]


def make_property(info: SettingInfo) -> Any:
    """Return the Blender property of a setting: its type, range, step, unit, label and help."""
    label = f"{info.label} ({info.unit})" if info.unit and info.unit != "px" else info.label
    common: dict[str, Any] = {"name": label, "description": info.help.rstrip(".")}
    if info.choices:
        if info.many:
            return EnumProperty(items=_choices(info), default=set(info.default), options={"ENUM_FLAG"}, **common)
        return EnumProperty(items=_choices(info), default=info.default, **common)
    if info.many:
        return StringProperty(default=to_text(info.default), **common)
    if info.type is bool:
        return BoolProperty(default=info.default, **common)
    if info.type is int:
        low, high = int(info.minimum if info.minimum is not None else -LIMIT), int(info.maximum if info.maximum is not None else LIMIT)
        subtype = "PIXEL" if info.unit == "px" else "NONE"
        return IntProperty(default=info.default, min=low, max=high, step=max(1, int(info.step or 1)), subtype=subtype, **common)
    if info.type is float:
        limits = {key: value for key, value in (("min", info.minimum), ("max", info.maximum)) if value is not None}
        # Blender counts the step of a float in hundredths, its digits from the step
        step = info.step or 0.1
        digits = max(1, min(6, len(f"{step:.6f}".rstrip("0").partition(".")[2])))
        return FloatProperty(default=info.default, step=max(1, round(step * 100)), precision=digits, **limits, **common)
    return StringProperty(default=info.default, **common)


def to_text(values: tuple[Any, ...]) -> str:
    """Return a list of numbers or words as the text that stands for it in a field."""
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _preset_changed(self: Any, context: Any) -> None:
    new = settings_view.follow_preset(values(self.settings), self.preset_before or "standard", self.preset)
    assign(self.settings, new)
    self.preset_before = self.preset


def _photo_changed(self: Any, context: Any) -> None:
    if self.photo_image is not None:
        self.photo_image.preview_ensure()


def _group(name: str, infos: tuple[SettingInfo, ...], more: dict[str, Any], text: str) -> type:
    made = {info.path.rpartition(".")[2]: make_property(info) for info in infos}
    return type(name, (bpy.types.PropertyGroup,), {"__doc__": text, "__annotations__": {**made, **more}})


def _settings_classes() -> tuple[type, ...]:
    """Return one class per group of settings and the class that holds them all, last."""
    children = {}
    root = None
    for group in settings_view.groups():
        infos = tuple(info for info in group.infos if info.path != "preset")
        if group.name:
            children[group.name] = _group(f"PortraitSettings{group.name.title().replace('_', '')}", infos, {}, group.text)
        else:
            root = infos
    pointers = {name: PointerProperty(type=kind) for name, kind in children.items()}
    return (*children.values(), _group("PortraitSettings", root or (), pointers, "Every setting of the project."))


SETTINGS_CLASSES = _settings_classes()
_PRESET = next(info for info in walk() if info.path == "preset")


class PortraitScene(bpy.types.PropertyGroup):
    """What the panel of a scene holds (`scene.portrait`)."""

    photo_source: EnumProperty(
        name="Photo from",
        items=[("FILE", "File", "A photo on the disk"), ("IMAGE", "Image", "An image of this Blender file, saved or not")],
    )
    photo_path: StringProperty(name="Photo", description="One face, seen from the front, at least 200 px wide", subtype="FILE_PATH")
    photo_image: PointerProperty(name="Image", type=bpy.types.Image, update=_photo_changed)
    name: StringProperty(name="Name", description="Name of the head; empty: the photo's")
    preset: EnumProperty(
        name=_PRESET.label, description=_PRESET.help.rstrip("."), items=_choices(_PRESET), default=_PRESET.default, update=_preset_changed
    )
    preset_before: StringProperty(default="", options={"HIDDEN"})
    settings: PointerProperty(type=SETTINGS_CLASSES[-1])


CLASSES = (*SETTINGS_CLASSES, PortraitScene)


def holder(settings: Any, path: str) -> tuple[Any, str]:
    """Return the property group and the name of the setting at a dotted path."""
    group, _, name = path.rpartition(".")
    return (getattr(settings, group) if group else settings), name


def values(settings: Any) -> dict[str, Any]:
    """Return {path: value} of all settings but the preset. A list that can't be read is returned as its words: validation names it."""
    found = {}
    for info in walk():
        if info.path == "preset":
            continue
        group, name = holder(settings, info.path)
        value = getattr(group, name)
        if info.many and info.choices:
            value = tuple(choice for choice in info.choices if choice in value)
        elif info.many:
            value = from_text(info, value)
        found[info.path] = value
    return found


def from_text(info: SettingInfo, text: str) -> tuple[Any, ...]:
    """Return the values that a field's text lists."""
    words = [word for word in text.replace(";", ",").replace(",", " ").split() if word]
    try:
        return tuple(info.type(word) for word in words)
    except ValueError:
        return tuple(words)


def assign(settings: Any, new: dict[str, Any]) -> None:
    """Set the settings at these paths; unknown ones are left out (a newer backend's job)."""
    infos = {info.path: info for info in walk()}
    for path, value in new.items():
        if path not in infos or path == "preset":
            continue
        group, name = holder(settings, path)
        info = infos[path]
        if info.many:
            value = set(value) if info.choices else to_text(tuple(value))
        setattr(group, name, value)
