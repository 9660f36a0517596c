"""Pictures of a finished head: the seven views, the turntable film, and their 8-bit encoding."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.mesh.exr import check_exr
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.mesh.usd import check_usd
from portrait_backend.mesh.views import ProjectedView
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import OutputSettings

VIEWS: dict[str, tuple[float, float]] = {
    "front": (0, 0),
    "left_front": (45, 0),
    "left": (90, 0),
    "back": (180, 0),
    "right": (-90, 0),
    "right_front": (-45, 0),
    "top": (0, 60),
}
"""View name -> azimuth and pitch in degrees; left is the subject's left."""
PHOTO_SIDE = 2048
"""Longer side of the photo's copy."""
PNG_LEVEL = 3
"""zlib's level: a third of the time of the usual 6 for files that are a tenth larger."""
TURNTABLE_BACKGROUND = 0.86
TURNTABLE_SECONDS = 3.6
"""One turn of the film, whatever its number of frames."""


def write_views(head: Head, folder: Path, settings: OutputSettings, context: Context) -> None:
    """Write the seven views as RGBA PNG with straight alpha into `folder`."""
    folder.mkdir()
    preview: Tensor | None = None
    with ThreadPoolExecutor(1) as writer:  # packs a picture while the next one is drawn
        written = []
        for index, (name, camera) in enumerate(view_cameras(settings).items()):
            context.report(index, len(VIEWS), preview)
            view = head.picture(camera.to(context.device))
            image = Image.fromarray(straight_rgba8(view.rgb, view.alpha))
            written.append(writer.submit(image.save, folder / f"{name}.png", compress_level=PNG_LEVEL))
            preview = on_light(view.rgb, view.alpha) if context.wants_preview() else None
        for picture in written:
            picture.result()
    context.report(len(VIEWS), len(VIEWS))


def view_cameras(settings: OutputSettings) -> dict[str, Camera]:
    """Return the cameras of the seven views by name."""
    return {name: Camera.orbit(azimuth, pitch, settings.view_size) for name, (azimuth, pitch) in VIEWS.items()}


def photo_camera(portrait: Portrait, width: int, height: int) -> Camera:
    """Return the camera of the upright photo at a size, for a portrait that knows where it lies in it."""
    if portrait.to_photo is None:
        raise ValueError("this portrait doesn't know its place in the photo")
    return portrait.camera.in_image(portrait.to_photo, *portrait.photo_size).stretched(width, height)


def write_turntable(mesh: HeadMesh, path: Path, settings: OutputSettings, context: Context) -> None:
    """Write one full turn of the textured mesh on a light background as GIF or MP4, by the suffix of `path`."""
    frames = list(_turntable_frames(mesh, settings, context))
    if path.suffix == ".mp4":
        _write_mp4(frames, path)
    else:
        _write_gif(frames, path)


def write_ring(views: Sequence[ProjectedView], folder: Path) -> None:
    """Write stage 3's pictures as RGBA PNG with straight alpha into `folder`, by the names of their cameras."""
    folder.mkdir()
    for name, view in ring_names(views).items():
        Image.fromarray(_uint8(torch.cat([view.image, view.matte[..., None]], -1).clamp(0, 1))).save(folder / f"{name}.png")


def ring_names(views: Sequence[ProjectedView]) -> dict[str, ProjectedView]:
    """Return stage 3's pictures by the names that they and their cameras have: ring_01, ..."""
    return {f"ring_{number:02d}": view for number, view in enumerate(views, 1)}


def check_outputs(settings: OutputSettings, stages: Sequence[str]) -> None:
    """Raise PortraitDiffusionError if what is asked for can't be written here, or isn't made by these stages.

    Its codes: ``mp4-unavailable``, ``usd-unavailable``, ``exr-unavailable``, ``ring-unavailable``.
    """
    if settings.turntable == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise PortraitDiffusionError(
            "mp4-unavailable", "an mp4 turntable needs the package imageio-ffmpeg", "pip install imageio-ffmpeg, or use --turntable gif"
        )
    if settings.format == "usd":
        check_usd()
    if settings.texture_format == "exr":
        check_exr()
    if settings.ring_views and "refinement" not in stages:
        raise PortraitDiffusionError(
            "ring-unavailable",
            f"--ring-views are the pictures of stage 3, and the stages are {','.join(stages)}",
            "Add refinement to --stages, or leave out --ring-views",
        )


def write_photo(photo: Path, path: Path) -> tuple[int, int]:
    """Write the photo upright as a small sRGB JPEG without its private data, what the head is laid over; returns its width and height."""
    from portrait_backend.portrait.read_image import read_photo

    image = Image.fromarray(read_photo(photo).rgb)
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    image.save(path, "JPEG", quality=90)
    return image.size


def straight_rgba8(rgb: Tensor, alpha: Tensor) -> NDArray[np.uint8]:
    """Return (H, W, 4) uint8 with straight alpha from premultiplied rgb (H, W, 3) and alpha (H, W) in [0, 1]."""
    straight = (rgb / alpha.clamp_min(1e-6)[..., None]).clamp(0, 1) * (alpha > 0)[..., None]
    return _uint8(torch.cat([straight, alpha.clamp(0, 1)[..., None]], -1))


def on_light(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Return (H, W, 3) in [0, 1]: premultiplied rgb (H, W, 3) with alpha (H, W) on a light background."""
    return (rgb + (1 - alpha[..., None]) * TURNTABLE_BACKGROUND).clamp(0, 1)


def _uint8(values: Tensor) -> NDArray[np.uint8]:
    return (values * 255).round().to(torch.uint8).cpu().numpy()


def _turntable_frames(mesh: HeadMesh, settings: OutputSettings, context: Context) -> Iterator[NDArray[np.uint8]]:
    from portrait_backend.mesh.picture import picture

    count = settings.turntable_frames
    preview: Tensor | None = None
    for index in range(count):
        context.report(index, count, preview)
        preview = on_light(*picture(mesh, Camera.orbit(360 * index / count, 0, settings.turntable_size)))
        yield _uint8(preview)
    context.report(count, count)


def _write_gif(frames: list[NDArray[np.uint8]], path: Path) -> None:
    # One palette for all frames: a palette per frame makes the colours flicker.
    strip = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)], axis=1))
    palette = strip.quantize(255, method=Image.Quantize.MEDIANCUT)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames]
    duration = max(20, round(1000 * TURNTABLE_SECONDS / len(frames) / 10) * 10)
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)


def _write_mp4(frames: list[NDArray[np.uint8]], path: Path) -> None:
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=len(frames) / TURNTABLE_SECONDS, macro_block_size=2, quality=8)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
