"""What can be evaluated: the radiance field and the mesh of a job, another tool's mesh, or a folder of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from portrait_backend.evaluation.mesh_file import SUFFIXES, MeshHead, load_mesh, load_own_mesh
from portrait_backend.job_folder import read_record
from portrait_backend.outputs import VIEWS
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import RenderOutput
from portrait_shared.errors import PortraitDiffusionError

IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
REFERENCE = "reference"
"""Name of the image that a folder of images may hold for the photo's own view."""


class Renderable(Protocol):
    """Anything in head units that a camera can look at."""

    def render(self, camera: Camera, size: int | None = None, *, normals: bool = False) -> RenderOutput:
        """Return rgb (premultiplied), alpha, z-depth and, on request, world normals."""


@dataclass(frozen=True)
class FieldHead:
    """A radiance field on its device; what it renders comes back to the CPU.

    images: pictures {view: rgba (H, W, 4) straight} of it that are there already.
    """

    head: Head
    device: torch.device
    images: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def render(self, camera: Camera, size: int | None = None, *, normals: bool = False) -> RenderOutput:
        """Render the field."""
        out = self.head.render(camera.to(self.device), size, normals=normals)
        return RenderOutput(out.rgb.cpu(), out.alpha.cpu(), out.depth.cpu(), None, None if out.normals is None else out.normals.cpu())


@dataclass(frozen=True)
class ViewImages:
    """Images of a head without its geometry: {view: rgba (H, W, 4) straight, in [0, 1]}."""

    images: dict[str, Tensor]


Candidate = Renderable | ViewImages


@dataclass(frozen=True)
class Job:
    """A finished job: its record, and its head as a field and as a mesh."""

    record: dict[str, Any]
    methods: dict[str, Renderable]


def load_job(folder: Path, device: torch.device) -> Job:
    """Read a folder that `generate` wrote; raises PortraitDiffusionError job-not-found, head-unreadable, mesh-unreadable."""
    record = read_record(folder)
    if record is None or not (folder / "head.safetensors").is_file():
        raise no_job(folder)
    images = {name: _read_rgba(path) for name, path in _view_files(folder / "views").items()}
    methods: dict[str, Renderable] = {"field": FieldHead(Head.load(folder / "head.safetensors").to(device), device, images)}
    mesh = next((folder / f"head{suffix}" for suffix in SUFFIXES if (folder / f"head{suffix}").is_file()), None)
    if mesh is not None:
        methods["mesh"] = load_own_mesh(mesh)
    return Job(record, methods)


def no_job(folder: Path) -> PortraitDiffusionError:
    """Return the error for something that is no finished job; another tool's result may have been meant for --compare."""
    peer = folder.suffix.lower() in SUFFIXES or bool(_view_files(folder))
    hint = (
        f"Another tool's result is given with --compare {folder}" if peer else "Give a folder that portrait-diffusion generate has written"
    )
    return PortraitDiffusionError("job-not-found", f"{folder} holds no finished job", hint)


def find_peer(path: Path, subject: str) -> Path | None:
    """Return what `path` holds for a subject: PATH/SUBJECT.glb (another mesh, a folder of images), else PATH itself; None: nothing."""
    if path.is_dir():
        own = [path / subject, *(path / f"{subject}{suffix}" for suffix in SUFFIXES)]
        found = next((place for place in own if place.exists()), None)
        return found or (path if _view_files(path) else None)
    return path if path.is_file() else None


def load_peer(path: Path) -> MeshHead | ViewImages:
    """Read another tool's result: a mesh file in its own axes and units, a folder with one, or a folder of images named by view.

    Raises PortraitDiffusionError peer-unreadable, mesh-unreadable.
    """
    if path.is_file():
        return load_mesh(path)
    images = {name: _read_rgba(file) for name, file in _view_files(path).items()}
    if images:
        return ViewImages(images)
    meshes = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(meshes) == 1:
        return load_mesh(meshes[0])
    names = ", ".join(f"{name}.png" for name in VIEWS)
    raise PortraitDiffusionError(
        "peer-unreadable", f"{path} holds {len(meshes)} meshes and no image named by its view", f"Give one mesh, or images named {names}"
    )


def _view_files(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by the view that their names say."""
    names: Iterable[str] = (*VIEWS, REFERENCE)
    places = {name: [folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES] for name in names}
    found = {name: next((p for p in candidates if p.is_file()), None) for name, candidates in places.items()}
    return {name: path for name, path in found.items() if path is not None}


def _read_rgba(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.asarray(image.convert("RGBA"), np.float32) / 255)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise PortraitDiffusionError("peer-unreadable", f"can't read the image {path} ({error})", "Give PNG, JPEG or WebP files") from error
