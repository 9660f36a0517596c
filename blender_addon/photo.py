"""The chosen photo: what is wrong with it, and its way into a job's folder (main thread takes it, the link's thread writes it)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bpy

from portrait_shared.errors import PortraitDiffusionError

MAGIC = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"RIFF", ".webp"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"))
"""Packed data that is sent as it is; anything else goes through pixels."""


@dataclass(frozen=True)
class ChosenPhoto:
    """A photo as it is now: its name, and the function that writes it to a path (adding the suffix) and returns the file."""

    name: str
    write: Callable[[Path], Path]


def problem(props: bpy.types.PropertyGroup) -> str:
    """Return what is wrong with the chosen photo in one line, "" if nothing is (or none is chosen)."""
    if props.photo_source == "FILE":
        if not props.photo_path:
            return ""
        path = Path(bpy.path.abspath(props.photo_path))
        return "" if path.is_file() else f"There is no photo {path.name} in {path.parent}"
    image = props.photo_image
    if image is None:
        return ""
    if image.source in ("MOVIE", "SEQUENCE", "TILED"):
        return f"{image.name} is a film or a set of tiles, not one photo"
    return "" if min(image.size) > 0 else f"{image.name} has no pixels (is its file gone?)"


def chosen(props: bpy.types.PropertyGroup) -> bool:
    """Return whether a photo is chosen."""
    return bool(props.photo_path) if props.photo_source == "FILE" else props.photo_image is not None


def take(props: bpy.types.PropertyGroup) -> ChosenPhoto:
    """Return the chosen photo as it is now; raises PortraitDiffusionError photo-not-chosen, photo-unusable."""
    if not chosen(props):
        raise PortraitDiffusionError("photo-not-chosen", "no photo is chosen", "Choose a file or an image of this Blender file")
    if text := problem(props):
        raise PortraitDiffusionError("photo-unusable", text, "Choose another photo")
    if props.photo_source == "FILE":
        return of_file(Path(bpy.path.abspath(props.photo_path)))
    return of_image(props.photo_image)


def of_file(path: Path) -> ChosenPhoto:
    """Return a photo that lies on the disk."""
    return ChosenPhoto(path.stem, lambda target: Path(shutil.copyfile(path, with_ending(target, path.suffix.lower() or ".img"))))


def of_image(image: bpy.types.Image) -> ChosenPhoto:
    """Return an image of this Blender file: its packed bytes or its file where these are what is seen, else its pixels."""
    name = Path(image.name).stem
    if not image.is_dirty and image.source == "FILE":
        if image.packed_file is not None:
            data = bytes(image.packed_file.data)
            suffix = next((end for start, end in MAGIC if data.startswith(start)), "")
            if suffix:
                return ChosenPhoto(name, lambda target: _written(with_ending(target, suffix), data))
        else:
            path = Path(bpy.path.abspath(image.filepath, library=image.library))
            if path.is_file():
                return ChosenPhoto(name, of_file(path).write)
    return _of_pixels(image, name)


def _of_pixels(image: bpy.types.Image, name: str) -> ChosenPhoto:
    import numpy as np

    from .core.png import write_png

    width, height = image.size
    channels = image.channels
    flat = np.empty(width * height * channels, np.float32)
    image.pixels.foreach_get(flat)
    pixels = flat.reshape(height, width, channels)
    linear = bool(image.is_float)

    def write(target: Path) -> Path:
        whole = pixels
        if channels == 1:
            whole = np.repeat(pixels, 3, 2)
        if whole.shape[2] == 3:
            whole = np.concatenate([whole, np.ones((height, width, 1), np.float32)], 2)
        path = with_ending(target, ".png")
        write_png(path, whole, linear)
        return path

    return ChosenPhoto(name, write)


def with_ending(path: Path, suffix: str) -> Path:
    """Return the path with a suffix appended (a name may hold dots), its name no longer than file systems take."""
    return path.with_name(bpy.path.clean_name(path.name)[:100] + suffix)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
