"""Posed images for the provider `multiview`: a folder with cameras.json (docs/cameras.md) and a picture per camera, or a turnaround sheet.

A sheet is a grid picture with ``turnaround.json`` beside it (docs/multiview.md): columns, rows, and the angles of the cells, row by row.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from portrait_backend.camera_file import read_cameras
from portrait_backend.radiance.cameras import FOV_DEGREES, ORBIT_RADIUS, Camera
from portrait_shared.errors import PortraitDiffusionError

CAMERAS, SHEET = "cameras.json", "turnaround.json"
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
PHOTO = "photo"
"""A picture of this name, with its matte, takes the place of the job's own photo."""
FEWEST, MOST = 3, 256
"""Pictures that a shape can be told from, and that are read."""
LARGEST = 512
"""Width to which pictures are reduced."""
UNIFORM, NEAR, FAR = 0.05, 0.06, 0.16
"""A border varies by less than this where its colour can be keyed; distances from it that count as background and as figure."""
HINT = "docs/multiview.md describes what the folder holds"


@dataclass(frozen=True)
class PosedImage:
    """A picture and its camera: premultiplied rgb (H, W, 3) and matte (H, W), float."""

    name: str
    camera: Camera
    rgb: Tensor
    matte: Tensor


@dataclass(frozen=True)
class _Sheet:
    image: Path
    columns: int
    rows: int
    angles: list[tuple[float, float]]
    radius: float
    fov: float


def find_views(folder: str) -> tuple[Path, list[Path]]:
    """Return the description and the pictures of a folder. PortraitDiffusionError ``views-missing`` or ``views-invalid``."""
    if not folder:
        raise PortraitDiffusionError("views-missing", "the prior multiview needs posed images", "Name their folder with --views")
    home = Path(folder).expanduser()
    if (home / CAMERAS).is_file():
        pictures = [_picture(home, name) for name in read_cameras(home / CAMERAS)]
        return home / CAMERAS, [p for p in pictures if p is not None]
    if (home / SHEET).is_file():
        return home / SHEET, [_read_sheet(home / SHEET).image]
    raise PortraitDiffusionError("views-missing", f"there is no {CAMERAS} or {SHEET} in {home}", HINT)


def view_sums(folder: str) -> dict[str, str]:
    """Return {file name: sha256} of everything that is read."""
    description, pictures = find_views(folder)
    return {f"views/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in (description, *pictures)}


def read_views(folder: str) -> list[PosedImage]:
    """Read the pictures; a camera without a picture is left out. PortraitDiffusionError as `find_views`, or ``views-unreadable``."""
    description, _ = find_views(folder)
    home = description.parent
    if description.name == CAMERAS:
        cameras = read_cameras(description)
        found = [(n, c, _read(path)) for n, c in cameras.items() if (path := _picture(home, n)) is not None]
        views = [_posed(name, camera, pixels) for name, camera, pixels in found]
    else:
        views = _cells(_read_sheet(description))
    if not FEWEST <= len(views) <= MOST:
        raise _invalid(f"{home} has {len(views)} pictures with a camera, {FEWEST} to {MOST} are needed")
    return views


def _picture(home: Path, name: str) -> Path | None:
    """Return a camera's picture, beside the cameras or in views/ (as `generate` writes them; its photo.jpg has no matte)."""
    for folder in (home, home / "views"):
        for suffix in SUFFIXES if name != PHOTO else SUFFIXES[:2]:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def _read(path: Path) -> NDArray[np.float32]:
    """Return a picture as straight rgba (H, W, 4)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGBA"), np.float32) / 255
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise PortraitDiffusionError("views-unreadable", f"can't read {path} ({error})", "Save it again as PNG") from error


def _posed(name: str, camera: Camera, rgba: NDArray[np.float32]) -> PosedImage:
    height, width = rgba.shape[:2]
    if abs(width * camera.height - height * camera.width) > max(width, height):
        raise _invalid(f"{name} is {width} x {height} px, its camera {camera.width} x {camera.height}: the proportions differ")
    pixels = torch.from_numpy(_with_matte(name, rgba)).permute(2, 0, 1)[None]
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)
    camera = camera.resized(min(width, LARGEST))
    pixels = torch.nn.functional.interpolate(pixels, size=(camera.height, camera.width), mode="area")[0].permute(1, 2, 0)
    return PosedImage(name, camera, pixels[..., :3].contiguous(), pixels[..., 3].contiguous())


def _with_matte(name: str, rgba: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the picture with a matte: its own alpha, else the distance from a border of one colour."""
    if rgba[..., 3].min() < 0.5:
        return rgba
    border = np.concatenate([rgba[0], rgba[-1], rgba[:, 0], rgba[:, -1]])[:, :3]
    colour = np.median(border, 0)
    # a bust touches the lower edge: most of the border must be of one colour, not all of it
    if float(np.mean(np.abs(border - colour).max(1) < UNIFORM)) < 0.6:
        raise _invalid(f"{name} has neither an alpha channel nor a background of one colour")
    distance = np.abs(rgba[..., :3] - colour).max(-1)
    matte = ((distance - NEAR) / (FAR - NEAR)).clip(0, 1)
    # what shines through at the edge is the background's: take it out of the colour
    own = (rgba[..., :3] - (1 - matte[..., None]) * colour) / np.maximum(matte[..., None], 0.1)
    return np.concatenate([own.clip(0, 1), matte[..., None]], -1).astype(np.float32)


def _cells(sheet: _Sheet) -> list[PosedImage]:
    rgba = _read(sheet.image)
    height, width = rgba.shape[0] // sheet.rows, rgba.shape[1] // sheet.columns
    views = []
    for k, (azimuth, elevation) in enumerate(sheet.angles):
        row, column = divmod(k, sheet.columns)
        cell = rgba[row * height : (row + 1) * height, column * width : (column + 1) * width]
        if width != height:
            raise _invalid(f"the cells of {sheet.image.name} are {width} x {height} px: they must be square")
        views.append(_posed(f"cell {k}", Camera.orbit(azimuth, elevation, width, sheet.radius, sheet.fov), cell))
    return views


def _read_sheet(path: Path) -> _Sheet:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        angles = [(float(v["azimuth"]), float(v.get("elevation", 0.0))) for v in data["views"]]
        sheet = _Sheet(
            image=path.parent / str(data["image"]),
            columns=_count(data, "columns"),
            rows=_count(data, "rows"),
            angles=angles,
            radius=float(data.get("distance", ORBIT_RADIUS)),
            fov=float(data.get("fov", FOV_DEGREES)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(f"{path} is no description of a turnaround sheet ({type(error).__name__}: {error})") from error
    if sheet.image.parent != path.parent or not sheet.image.is_file():
        raise _invalid(f"{path.name} names the picture {sheet.image.name!r}, which is not beside it")
    if len(angles) > sheet.columns * sheet.rows:
        raise _invalid(f"{path.name} has {len(angles)} views but {sheet.columns} x {sheet.rows} cells")
    if not (all(abs(e) < 90 for _, e in angles) and sheet.radius > 0 and 1 <= sheet.fov <= 120):
        raise _invalid(f"{path.name}: elevations are less than 90 degrees, fov 1 to 120 degrees, distance positive")
    return sheet


def _count(data: dict[str, Any], name: str) -> int:
    value = data[name]
    if type(value) is not int or not 1 <= value <= 64:
        raise ValueError(f"{name} must be a whole number from 1 to 64")
    return value


def _invalid(what: str) -> PortraitDiffusionError:
    return PortraitDiffusionError("views-invalid", what, HINT)
