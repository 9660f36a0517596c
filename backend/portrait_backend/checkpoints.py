"""Finished stages on disk: what a job made so far, exact to the bit, so that it can go on after an interruption.

A stage is a folder of payload files and a record ``STAGE.json`` that names them with their sha256. The record is written
last and at once (temporary file, sync, rename): a checkpoint is there completely or not at all. It also holds the
key of the stage's inputs, and is used again only for the same ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from portrait_backend.files import atomic_path
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    from portrait_backend.mesh.types import HeadMesh
    from portrait_backend.mesh.views import ProjectedView
    from portrait_backend.radiance.head import Head

FORMAT = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """What a stage made; what it didn't make is None."""

    portrait: Portrait | None = None
    head: Head | None = None
    views: tuple[ProjectedView, ...] | None = None
    mesh: HeadMesh | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A finished stage: what it made, the inputs it was made of (JSON data), its timing as it stands in job.json."""

    made: Made
    inputs: dict[str, Any]
    timing: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The finished stages in a folder, which is made at the first `save`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, stage: str, checkpoint: Checkpoint) -> None:
        """Write a finished stage; an earlier one of that name is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record(stage).unlink(missing_ok=True)  # first: the old record must not stand beside new payloads
        payloads = {}
        for name, write in _writers(checkpoint.made).items():
            path = self.folder / f"{stage}.{name}.safetensors"
            with atomic_path(path) as temporary:
                write(temporary)
            payloads[name] = _sha256(path)
        record = {"format": FORMAT, "inputs": checkpoint.inputs, "timing": checkpoint.timing, "payloads": payloads}
        with atomic_path(self._record(stage)) as temporary:
            temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")
        self.state(stage).unlink(missing_ok=True)

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Checkpoint | None:
        """Return the stage if it was made of the same inputs and its files are whole, None otherwise."""
        record = self._read(stage)
        if record is None or record["inputs"] != json.loads(json.dumps(inputs)):
            return None
        return self._load(stage, record)

    def get(self, stage: str) -> Checkpoint:
        """Return the stage whatever it was made of; raises PortraitDiffusionError ``geometry-missing`` if it isn't there."""
        record = self._read(stage)
        found = None if record is None else self._load(stage, record)
        if found is None:
            raise PortraitDiffusionError(
                "geometry-missing", f"the stage {stage!r} of the finished job is not there any more", "Generate the head again"
            )
        return found

    def sums(self, stage: str) -> dict[str, str]:
        """Return {name: sha256} of what a finished stage made; empty if it isn't there."""
        record = self._read(stage)
        return dict(record["payloads"]) if record else {}

    def state(self, stage: str) -> Path:
        """Return the file for what an unfinished stage keeps (`Context.state`), in a folder that exists; `save` removes it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{stage}.unfinished.safetensors"

    def _record(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def _read(self, stage: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("format") == FORMAT else None

    def _load(self, stage: str, record: dict[str, Any]) -> Checkpoint | None:
        paths = {name: self.folder / f"{stage}.{name}.safetensors" for name in record["payloads"]}
        try:
            for name, path in paths.items():
                if _sha256(path) != record["payloads"][name]:
                    raise ValueError(f"{path.name} is damaged")
            made = {name: _READERS[name](path) for name, path in paths.items()}
        except (OSError, ValueError, KeyError, SafetensorError, PortraitDiffusionError) as error:
            log.warning("the checkpoint of stage %s can't be used: %s", stage, error)
            return None
        return Checkpoint(Made(**made), record["inputs"], record["timing"])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _writers(made: Made) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if made.portrait is not None:
        found["portrait"] = lambda path, value=made.portrait: write_portrait(value, path)
    if made.head is not None:
        found["head"] = lambda path, value=made.head: write_head(value, path)
    if made.views is not None:
        found["views"] = lambda path, value=made.views: write_views(value, path)
    if made.mesh is not None:
        found["mesh"] = lambda path, value=made.mesh: write_mesh(value, path)
    return found


def write_head(head: Head, path: Path) -> None:
    """Write a head with its planes in full precision."""
    from portrait_backend.radiance.head_file import save_head

    save_head(head, path, torch.float32)


def read_head(path: Path) -> Head:
    """Read what `write_head` wrote."""
    from portrait_backend.radiance.head_file import load_head

    return load_head(path)


def write_portrait(portrait: Portrait, path: Path) -> None:
    """Write a portrait: its tensors, everything else as JSON."""
    tensors = {f.name: getattr(portrait, f.name) for f in fields(portrait) if isinstance(getattr(portrait, f.name), Tensor)}
    other = {f.name: getattr(portrait, f.name) for f in fields(portrait) if f.name not in tensors and f.name != "camera"}
    _write(path, {**tensors, **_camera_tensors("camera", portrait.camera)}, {**other, "size": _size(portrait.camera)})


def read_portrait(path: Path) -> Portrait:
    """Read what `write_portrait` wrote."""
    tensors, other = _read(path)
    camera = _camera("camera", tensors, other.pop("size"))
    values: dict[str, Any] = {name: value for name, value in tensors.items() if "." not in name}
    lists = {name: tuple(other[name]) for name in ("warnings", "photo_size")}
    return Portrait(**values, **{**other, **lists}, camera=camera)


def write_views(views: Sequence[ProjectedView], path: Path) -> None:
    """Write posed images."""
    tensors: dict[str, Tensor] = {}
    for index, view in enumerate(views):
        maps = {name: getattr(view, name) for name in ("image", "matte", "valid", "change")}
        tensors |= {f"{index}.{name}": value for name, value in maps.items() if value is not None}
        tensors |= _camera_tensors(f"{index}.camera", view.camera)
    _write(path, tensors, {"views": [{"size": _size(v.camera), "priority": v.priority, "weight": v.weight} for v in views]})


def read_views(path: Path) -> tuple[ProjectedView, ...]:
    """Read what `write_views` wrote."""
    from portrait_backend.mesh.views import ProjectedView

    tensors, other = _read(path)
    found = []
    for index, record in enumerate(other["views"]):
        camera = _camera(f"{index}.camera", tensors, record["size"])
        image, matte, valid = (tensors[f"{index}.{name}"] for name in ("image", "matte", "valid"))
        change = tensors.get(f"{index}.change")
        found.append(ProjectedView(image, matte, valid, camera, record["priority"], record["weight"], change))
    return tuple(found)


def write_mesh(mesh: HeadMesh, path: Path) -> None:
    """Write a mesh with its texture."""
    _write(path, {f.name: torch.from_numpy(getattr(mesh, f.name)) for f in fields(mesh)}, {})


def read_mesh(path: Path) -> HeadMesh:
    """Read what `write_mesh` wrote."""
    from portrait_backend.mesh.types import HeadMesh

    tensors, _ = _read(path)
    return HeadMesh(**{name: tensor.numpy() for name, tensor in tensors.items()})


_READERS: dict[str, Any] = {
    "portrait": read_portrait,
    "head": lambda path: read_head(path),
    "views": read_views,
    "mesh": read_mesh,
}


def _write(path: Path, tensors: dict[str, Tensor], other: dict[str, Any]) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path, {"json": json.dumps(other)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return tensors, json.loads((file.metadata() or {})["json"])


def _camera_tensors(name: str, camera: Camera) -> dict[str, Tensor]:
    return {f"{name}.world_to_camera": camera.world_to_camera, f"{name}.intrinsics": camera.intrinsics}


def _camera(name: str, tensors: Mapping[str, Tensor], size: Sequence[int]) -> Camera:
    return Camera(tensors[f"{name}.world_to_camera"], tensors[f"{name}.intrinsics"], *size)


def _size(camera: Camera) -> tuple[int, int]:
    return camera.width, camera.height
