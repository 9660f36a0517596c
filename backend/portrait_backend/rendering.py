"""Render a finished head from given cameras: colour, depth and normals of the radiance field."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from portrait_backend import __version__, devices
from portrait_backend.camera_file import read_cameras
from portrait_backend.context import Context, Progress
from portrait_backend.job_folder import job_folder, write_record
from portrait_backend.outputs import straight_rgba8
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head, Upsample
from portrait_shared.errors import PortraitDiffusionError

PASSES = ("rgba", "depth", "normals")


def render_cameras(
    job: str | Path,
    cameras: str | Path,
    output: str | Path,
    passes: Iterable[str] = ("rgba",),
    device: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    upsample: Upsample = "direct",
) -> dict[str, Any]:
    """Render the head of the folder `job` from every camera of the file `cameras` into the folder `output`; returns its record.

    passes: ``rgba`` NAME.png with straight alpha; ``depth`` NAME_depth.npy (H, W) float32 camera z in head units, 0 where
    nothing is; ``normals`` NAME_normals.png, world-space (n + 1) * 127.5. upsample: "direct" draws every pixel,
    "super_resolution" every fourth of a row and column, the rest by the head's psi_SR: quicker, and finest detail is its guess. Raises
    PortraitDiffusionError job-not-found, cameras-unreadable, cameras-invalid, passes-invalid, super-resolution-impossible and those of
    `job_folder`; Cancelled.
    """
    passes = tuple(passes)
    if not passes or not set(passes) <= set(PASSES):
        raise PortraitDiffusionError("passes-invalid", f"passes = {','.join(passes)!r}", f"Choose from {', '.join(PASSES)}")
    field = Path(job) / "head.safetensors"
    if not field.is_file():
        raise PortraitDiffusionError(
            "job-not-found", f"{job} holds no head.safetensors", "Give a folder that portrait-diffusion generate has written"
        )
    views = read_cameras(Path(cameras))
    target = devices.choose_device(device)
    context = Context(target, torch.float32, torch.Generator(target), on_progress, cancelled, "render")
    start = time.perf_counter()
    with devices.reproducible(), job_folder(Path(output)) as folder:
        head = Head.load(field).to(target)
        if upsample == "super_resolution":
            _check_upsampling(head, views)
        for index, (name, camera) in enumerate(views.items()):
            context.report(index, len(views))
            _write_view(head, camera.to(target), folder, name, passes, upsample)
        context.report(len(views), len(views))
        record = {
            "generator": f"portrait-diffusion {__version__}",
            "rendered_from": Path(job).name,
            "cameras": list(views),
            "passes": list(passes),
            "upsample": upsample,
            "seconds": round(time.perf_counter() - start, 2),
            "device": devices.describe_device(target),
        }
        return write_record(folder, record)


def _check_upsampling(head: Head, views: dict[str, Camera]) -> None:
    """PortraitDiffusionError ``super-resolution-impossible`` where the head has no psi_SR, or a picture is no multiple of its scale."""
    code, instead = "super-resolution-impossible", "leave --upsample out"
    if head.super_resolution is None:
        hint = f"Generate it again with --prior starter, or {instead}"
        raise PortraitDiffusionError(code, "this head holds no super-resolution network", hint)
    scale = head.super_resolution.config.scale
    for name, camera in views.items():
        if camera.width % scale or camera.height % scale:
            size = f"camera {name} is {camera.width} x {camera.height} px"
            raise PortraitDiffusionError(code, f"{size}, no multiple of {scale}", f"Choose multiples of {scale}, or {instead}")


def _write_view(head: Head, camera: Camera, folder: Path, name: str, passes: tuple[str, ...], upsample: Upsample) -> None:
    if upsample == "direct":
        view = head.picture(camera, normals="normals" in passes)
    else:
        with torch.no_grad():
            view = head.render(camera, upsample=upsample, normals="normals" in passes)
    if "rgba" in passes:
        Image.fromarray(straight_rgba8(view.rgb, view.alpha)).save(folder / f"{name}.png")
    if "depth" in passes:
        np.save(folder / f"{name}_depth.npy", torch.where(view.alpha > 0.5, view.depth, 0).float().cpu().numpy())
    if view.normals is not None:
        normals = ((view.normals + 1) * 127.5).round().clamp(0, 255) * (view.alpha > 0.5)[..., None]
        Image.fromarray(normals.to(torch.uint8).cpu().numpy()).save(folder / f"{name}_normals.png")
