"""Every setting of the project, declared once: default, range, step, unit, label and help.

The command line, the Blender panel and the server generate their options from this declaration: a new
setting is one line here. `walk` lists the settings, `from_dict` / `to_dict` are the JSON form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from portrait_shared.errors import PortraitDiffusionError

Preset = Literal["draft", "standard", "fine", "full"]
Device = Literal["auto", "cpu", "cuda"]
Stage = Literal["prior", "restoration", "refinement"]
Provider = Literal["starter", "panohead", "portrait4d", "multiview"]

T = TypeVar("T")


def setting(
    default: T,
    label: str,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    step: float | None = None,
    unit: str = "",
    flag: str = "",
) -> T:
    """Declare one setting: a dataclass field with its range (inclusive), step, unit, label, help and an optional short CLI `flag`."""
    metadata = {"label": label, "help": help, "min": min, "max": max, "step": step, "unit": unit, "flag": flag}
    declared: Any = field(default=default, metadata=metadata)
    return cast(T, declared)


def from_preset(group: type[T]) -> T:
    """Declare a nested group whose values come from the preset unless the group is given."""
    return cast(T, field(default=None, metadata={"group": group}))


@dataclass(frozen=True)
class PriorSettings:
    """Stage 1: the first full head."""

    provider: Provider = setting("starter", "Prior", "Who makes the first head; all but starter and multiview need weights.", flag="prior")
    fit_steps: int = setting(
        40,
        "Fit steps",
        "starter: steps that fit the shape to the photo; 0 keeps the network's answer, in colours too.",
        min=0,
        max=1000,
        step=10,
    )
    painting: int = setting(
        4, "Painting", "starter: steps that bring the colours to the photo, for every step of the shape.", min=1, max=20, step=1
    )
    fit_shape: bool = setting(True, "Fit shape", "starter: let the fit change the shape as well as the colours.")
    latent: Literal["w", "w+"] = setting("w", "Latent", "panohead: one latent for all layers, or one per layer (closer, less of a head).")
    inversion_steps: int = setting(200, "Inversion steps", "panohead: steps that find the photo's latent.", min=0, max=5000, step=50)
    tuning_steps: int = setting(
        100, "Tuning steps", "panohead: steps that then tune the generator to the photo; 0 keeps it.", min=0, max=5000, step=50
    )
    compare_size: int = setting(
        128, "Compared size", "panohead: width and height at which head and photo are compared.", min=32, max=512, step=32, unit="px"
    )
    views: str = setting("", "Posed images", "multiview: folder with cameras.json or turnaround.json and the pictures.", flag="views")
    view_steps: int = setting(500, "Multi-view steps", "multiview: steps that fit the head to the pictures.", min=1, max=20000, step=100)


@dataclass(frozen=True)
class RestorationSettings:
    """Stage 2: what the photo doesn't show, restored with the diffusion prior."""

    steps: int = setting(24, "Restoration steps", "Optimisation steps, one view each; 0 takes the first answer.", min=0, max=10000, step=4)
    guidance: Literal["x0", "sds", "interval"] = setting(
        "x0", "Guidance", "How the diffusion prior pulls: denoised images, score distillation, or interval score matching."
    )
    guidance_scale: float = setting(
        1.0, "Guidance scale", "Classifier-free guidance; 1 trusts the prior as it is, more exaggerates.", min=1.0, max=100.0, step=0.5
    )
    perp_neg: bool = setting(False, "Perp-Neg", "Push away from the opposite view (score distillation only); a cure of second faces.")
    noise_start: float = setting(0.3, "First noise level", "Share of the noise schedule at the first step.", min=0.02, max=0.98, step=0.02)
    noise_end: float = setting(0.02, "Last noise level", "Share of the noise schedule at the last step.", min=0.0, max=0.98, step=0.02)
    normal_weight: float = setting(5.0, "Shape weight", "How much the prior's normals and mattes count.", min=0.0, max=1000.0, step=1.0)
    colour_weight: float = setting(
        0.0, "Colour weight", "How much the prior's colours count, brought to the sitter's tones.", min=0.0, max=1000.0, step=1.0
    )
    reference_weight: float = setting(1.0, "Photo weight", "How much the photo counts at every step.", min=0.0, max=100.0, step=0.1)
    front_shape: float = setting(
        0.0,
        "Front shape",
        "How much of the change of shape counts where the photo looks: in front of the ears and above the chin.",
        min=0.0,
        max=1.0,
        step=0.1,
    )
    learning_rate: float = setting(0.00005, "Restoration learning rate", "Size of the steps.", min=0.00001, max=0.1, step=0.00001)
    settle_steps: int = setting(
        40, "Settling steps", "Steps that then bring the photo's colours back to what the photo shows.", min=0, max=1000, step=4
    )
    render_size: int = setting(
        128, "Restoration view size", "Width and height of the views it looks at.", min=32, max=512, step=32, unit="px"
    )
    memory_budget: float = setting(
        1024.0,
        "Memory budget",
        "Memory of a view's samples; beyond it they are computed twice.",
        min=64.0,
        max=65536.0,
        step=64.0,
        unit="MB",
    )


@dataclass(frozen=True)
class RefinementSettings:
    """Stage 3: detail that agrees between views. The switches at the end are those of the paper's ablations."""

    method: Literal["diffusion", "transport"] = setting(
        "diffusion",
        "Method",
        "diffusion: the denoiser paints what a view's neighbour can't show; transport: only carry what the photo shows, no network.",
    )
    views: int = setting(13, "Views", "Fixed views around the head, the photo's among them.", min=1, max=36, step=1)
    elevation: float = setting(0.0, "Elevation", "Elevation of the fixed views.", min=-45, max=45, step=5, unit="degrees")
    swing: float = setting(
        0.0, "Swing", "The fixed views lie alternately this much above and below that elevation.", min=0, max=40, step=5, unit="degrees"
    )
    image_size: int = setting(256, "Image size", "Width and height of the views while refining.", min=64, max=1024, step=64, unit="px")
    texture_views: int = setting(
        256,
        "Texture view size",
        "Width and height of the views as ring pictures, and of what they change in the texture; at least the image size.",
        min=64,
        max=2048,
        step=64,
        unit="px",
    )
    iterations: int = setting(3, "Iterations", "Rounds over all views; 0 leaves the head alone.", min=0, max=1000, step=1)
    steps: int = setting(6, "Denoising steps", "DDIM steps per image.", min=1, max=100, step=1)
    strength: float = setting(
        0.4, "Strength", "How much noise an image starts from: 0 keeps the render, 1 is noise alone.", min=0, max=1, step=0.05
    )
    guidance: float = setting(1.0, "Guidance", "Scale of classifier-free guidance; 1 is none and half the work.", min=1, max=20, step=0.5)
    explicit_scale: float = setting(
        1.0, "Control scale", "Weight w_Ex of what the neighbouring view shows; 0 switches it off.", min=0, max=2, step=0.1
    )
    implicit_scale: float = setting(
        1.0, "Implicit scale", "Weight w_Im of the neighbouring view's features within it.", min=0, max=2, step=0.1
    )
    noise_sigma: float = setting(0.3, "Noise sigma", "How far the noise is resampled around its anchor.", min=0, max=1, step=0.05)
    learning_rate: float = setting(0.01, "Learning rate", "Step of the colours.", min=0, max=0.1, step=0.001)
    shape_rate: float = setting(0.0, "Shape rate", "Step of the shape; 0 keeps it.", min=0, max=0.1, step=0.001)
    reference_weight: float = setting(4.0, "Photo weight", "Weight of the photo's own loss against one view's.", min=0, max=100, step=1)
    between_views: int = setting(2, "Views between", "Random views between the fixed ones per iteration.", min=0, max=36, step=1)
    between_elevation: float = setting(
        15.0, "Elevation between", "How far the random views leave the ring.", min=0, max=45, step=5, unit="degrees"
    )
    settle_steps: int = setting(
        60, "Settling steps", "Steps that bring the head to the kept images and the photo at the end.", min=0, max=1000, step=10
    )
    tones: Literal["head", "denoiser"] = setting(
        "head", "Tones", "head: the denoiser adds fine detail to the head's own colours; denoiser: its images are taken as they are."
    )
    keep_photo: bool = setting(True, "Keep the photo's pixels", "Where the photo shows the place, its own pixels stay.")
    warp: Literal["pull", "splat"] = setting(
        "pull", "Warp", "pull: look back from the target's depth, sharp; splat: carry the neighbour's points forward, as the paper does."
    )
    noise: Literal["resampled", "random", "fixed"] = setting(
        "resampled", "Noise", "resampled: around the anchor, kept if the gradients agree; random: new each time; fixed: the anchor itself."
    )
    optimise: bool = setting(True, "Optimise the head", "Change the head in every round; off: the images are brought in at the end only.")
    geometry_condition: bool = setting(True, "Geometry condition", "Show the denoiser the coarse render and its normals.")
    implicit_branch: bool = setting(True, "Implicit branch", "Carry features of the neighbouring view, not only its pixels.")
    literal_implicit: bool = setting(
        False, "Implicit branch as printed", "Feed it the target's noise instead of the neighbour's own (the paper's Eq. 10 to the letter)."
    )


@dataclass(frozen=True)
class DiffusionSettings:
    """The networks of stages 2 and 3, and how they fit into the device's memory."""

    weights: Literal["starter", "sd15"] = setting(
        "starter", "Weights", "starter: the shipped networks; sd15: Stable Diffusion 1.5 and BrushNet, downloaded first.", flag="weights"
    )
    memory: Literal["auto", "resident", "sequential", "streamed"] = setting(
        "auto",
        "Memory mode",
        "resident: all networks stay on the device; sequential: one at a time; streamed: layer by layer; auto: the first that fits.",
        flag="memory",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Precision", "Of the networks; auto: half on a GPU with downloaded weights, else single.", flag="precision"
    )


@dataclass(frozen=True)
class MeshSettings:
    """Surface extraction and texture."""

    resolution: int = setting(
        224, "Mesh resolution", "Marching-cubes cells along each side of the head's box.", min=48, max=512, step=16, unit="cells"
    )
    faces: int = setting(
        60000, "Faces", "Triangle budget of the mesh; 0 keeps every triangle.", min=0, max=1000000, step=1000, flag="faces"
    )
    smoothing: int = setting(2, "Smoothing", "Volume-preserving smoothing passes over the surface.", min=0, max=100, step=1)
    texture_size: int = setting(
        1024, "Texture size", "Width and height of the texture.", min=256, max=8192, step=256, unit="px", flag="texture-size"
    )


@dataclass(frozen=True)
class OutputSettings:
    """What is written into the output folder."""

    format: Literal["glb", "usd", "obj", "ply"] = setting(
        "glb", "Mesh format", "File format of the mesh (usd needs usd-core; obj and usd have their texture beside them).", flag="format"
    )
    separate_texture: bool = setting(
        False, "Separate texture", "Also write the texture of a glb or ply as a PNG beside it.", flag="separate-texture"
    )
    texture_format: Literal["png", "exr"] = setting(
        "png",
        "Texture format",
        "exr: also write the texture as half float in linear light beside the mesh (needs OpenEXR).",
        flag="texture-format",
    )
    ring_views: bool = setting(False, "Ring views", "Also write stage 3's pictures, which the texture is made of.", flag="ring-views")
    view_size: int = setting(
        512, "View size", "Width and height of the seven view images.", min=64, max=2048, step=64, unit="px", flag="view-size"
    )
    turntable: Literal["gif", "mp4", "none"] = setting(
        "gif", "Turntable", "Format of the turntable film (mp4 needs imageio-ffmpeg).", flag="turntable"
    )
    turntable_frames: int = setting(36, "Turntable frames", "Frames of one full turn.", min=4, max=360, step=4)
    turntable_size: int = setting(256, "Turntable size", "Width and height of the turntable.", min=64, max=1024, step=32, unit="px")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a result, besides the photo. Groups that are not given hold the preset's values."""

    preset: Preset = setting("standard", "Preset", "Start from these values; every other option overrides them.")
    seed: int = setting(0, "Seed", "The same seed gives the same head on the same machine.", min=0, max=2**31 - 1, step=1)
    device: Device = setting("auto", "Device", "Where to compute; auto takes the GPU if there is one.")
    stages: tuple[Stage, ...] = setting(("prior",), "Stages", "Which stages to run, in order.")
    prior: PriorSettings = from_preset(PriorSettings)
    restoration: RestorationSettings = from_preset(RestorationSettings)
    refinement: RefinementSettings = from_preset(RefinementSettings)
    diffusion: DiffusionSettings = from_preset(DiffusionSettings)
    mesh: MeshSettings = from_preset(MeshSettings)
    output: OutputSettings = from_preset(OutputSettings)

    def __post_init__(self) -> None:
        overrides = PRESETS.get(self.preset, {})
        for item in fields(self):
            if "group" in item.metadata and getattr(self, item.name) is None:
                object.__setattr__(self, item.name, item.metadata["group"](**overrides.get(item.name, {})))


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "draft": {
        "prior": {"fit_steps": 20, "painting": 2, "inversion_steps": 80, "tuning_steps": 40, "compare_size": 96, "view_steps": 200},
        "restoration": {"steps": 12, "settle_steps": 16},
        "refinement": {"iterations": 1, "steps": 4, "between_views": 0, "settle_steps": 30},
        "mesh": {"resolution": 160, "faces": 30000},
        "output": {"turntable_frames": 24, "turntable_size": 192},
    },
    "standard": {},
    "fine": {
        "prior": {"fit_steps": 120, "inversion_steps": 500, "tuning_steps": 500, "compare_size": 256, "view_steps": 3000},
        "restoration": {"steps": 80, "settle_steps": 80},
        "refinement": {"iterations": 12, "steps": 12, "between_views": 4, "settle_steps": 160},
        "mesh": {"resolution": 320, "faces": 150000, "texture_size": 2048},
        "output": {"turntable_frames": 72, "turntable_size": 384},
    },
    "full": {
        "prior": {"fit_steps": 120, "inversion_steps": 500, "tuning_steps": 500, "compare_size": 256, "view_steps": 3000},
        "restoration": {
            "steps": 2000,
            "settle_steps": 80,
            "learning_rate": 0.0003,
            "guidance": "interval",
            "guidance_scale": 7.5,
            "noise_start": 0.5,
            "colour_weight": 1.0,
            "front_shape": 1.0,
            "render_size": 256,
        },
        "refinement": {
            "image_size": 512,
            "texture_views": 1024,
            "iterations": 12,
            "steps": 20,
            "guidance": 7.5,
            "between_views": 4,
            "settle_steps": 160,
            "tones": "denoiser",
        },
        "diffusion": {"weights": "sd15"},
        "mesh": {"resolution": 320, "faces": 150000, "texture_size": 2048},
        "output": {"turntable_frames": 72, "turntable_size": 384},
    },
}
"""What each preset changes from the declared defaults: {preset: {group: {setting: value}}}."""


@dataclass(frozen=True)
class SettingInfo:
    """One setting as a user interface needs it.

    path: dotted, e.g. ``mesh.resolution``; type: bool, int, float or str (of one value); choices: () or the allowed
    values; many: True for a tuple of such values; minimum, maximum (inclusive) and step: None where there is none.
    """

    path: str
    type: type
    default: Any
    choices: tuple[str, ...]
    many: bool
    minimum: float | None
    maximum: float | None
    step: float | None
    unit: str
    label: str
    help: str
    flag: str

    @property
    def options(self) -> tuple[str, ...]:
        """Command-line names, the short one first: ("--faces", "--mesh-faces")."""
        long = "--" + self.path.replace(".", "-").replace("_", "-")
        return (f"--{self.flag}", long) if self.flag and f"--{self.flag}" != long else (long,)


@cache
def walk(settings_type: type = Settings) -> tuple[SettingInfo, ...]:
    """Return every setting of a settings dataclass in declaration order, nested groups flattened to dotted paths."""
    hints, found = get_type_hints(settings_type), list[SettingInfo]()
    for item in fields(settings_type):
        if "group" in item.metadata:
            found += [replace(info, path=f"{item.name}.{info.path}") for info in walk(item.metadata["group"])]
        else:
            found.append(_info(item, hints[item.name]))
    return tuple(found)


def _info(item: Field[Any], hint: Any) -> SettingInfo:
    many = get_origin(hint) is tuple
    single = get_args(hint)[0] if many else hint
    if get_origin(single) in (Union, UnionType) or item.default is MISSING:
        raise TypeError(f"setting {item.name!r} needs a default and one plain type, got {hint!r}")
    choices = get_args(single) if get_origin(single) is Literal else ()
    m = item.metadata
    return SettingInfo(
        path=item.name,
        type=str if choices else single,
        default=item.default,
        choices=choices,
        many=many,
        minimum=m["min"],
        maximum=m["max"],
        **{name: m[name] for name in ("step", "unit", "label", "help", "flag")},
    )


def get(settings: Settings, path: str) -> Any:
    """Return the value at a dotted path."""
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


def to_dict(settings: Any) -> dict[str, Any]:
    """Return the JSON form: nested dicts, tuples as lists."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)}
    return {k: to_dict(v) if is_dataclass(v) else list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def from_dict(data: Mapping[str, Any]) -> Settings:
    """Build settings from their JSON form; missing fields take the preset's value, unknown ones are ignored (see `unknown_fields`).

    Raises PortraitDiffusionError ``setting-invalid`` for a value of the wrong type, outside its range or choices.
    """
    base = Settings(preset=_checked(_INFOS["preset"], data.get("preset", "standard")))
    flat = dict(_flatten(data))
    for path in _GROUPS & flat.keys():
        raise invalid(path, flat[path], "must be an object with settings in it")
    nested: dict[str, dict[str, Any]] = {}
    for path, info in _INFOS.items():
        if path in flat:
            group, _, name = path.rpartition(".")
            nested.setdefault(group, {})[name] = _checked(info, flat[path])
    top = nested.pop("", {})
    return replace(base, **top, **{group: replace(getattr(base, group), **values) for group, values in nested.items()})


def unknown_fields(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the dotted paths in `data` that no setting has (a newer client's, or a typing error)."""
    return tuple(path for path, _ in _flatten(data) if path not in _INFOS and path not in _GROUPS)


def validate(settings: Settings) -> Settings:
    """Return the settings, normalised; raises PortraitDiffusionError ``setting-invalid`` as `from_dict` does."""
    return from_dict(to_dict(settings))


def invalid(path: str, value: object, rule: str) -> PortraitDiffusionError:
    """Return the error for a setting that breaks `rule` ("must be ...")."""
    info = _INFOS.get(path)
    hint = f"{info.label}: {info.help}" if info else "See portrait-diffusion generate --help for the settings."
    return PortraitDiffusionError("setting-invalid", f"{path} = {value!r} {rule}", hint)


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, path + ".")
        else:
            yield path, value


def _checked(info: SettingInfo, value: Any) -> Any:
    if not info.many:
        return _checked_one(info, value)
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not value:
        raise invalid(info.path, value, "must be a list with at least one value")
    if len(set(map(str, value))) != len(value):
        raise invalid(info.path, value, "must not name anything twice")
    return tuple(_checked_one(info, v) for v in value)


def _checked_one(info: SettingInfo, value: Any) -> Any:
    if info.choices:
        if value not in info.choices:
            raise invalid(info.path, value, f"must be one of {', '.join(info.choices)}")
        return value
    if info.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    right_type = type(value) is info.type  # a bool is an int, but no whole number
    if not right_type or (info.type is float and not math.isfinite(value)):
        raise invalid(info.path, value, f"must be {_TYPE_NAMES[info.type]}")
    if (info.minimum is not None and value < info.minimum) or (info.maximum is not None and value > info.maximum):
        raise invalid(info.path, value, f"must be between {info.minimum} and {info.maximum}{' ' + info.unit if info.unit else ''}")
    return value


_TYPE_NAMES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
_INFOS = {info.path: info for info in walk()}
_GROUPS = {path.rpartition(".")[0] for path in _INFOS} - {""}
