"""Render a multi-view data set from a prior provider's heads, in the layout that `synthetic.py` documents (the paper trains on such heads).

panohead: random heads of the generator. portrait4d: it has no random heads, so the heads of photos in a folder, one each.
Landmarks are found on the head and lifted with its depth; a head without a face is left out. Of the 536 landmarks of the layout the first
68, which nothing here reads, are 0 and invisible. Part ids: 1 is the figure.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from portrait_backend.context import Context
from portrait_backend.portrait.faces import FaceDetector
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.prior.placement import lifted_landmarks
from portrait_backend.radiance.cameras import FOV_DEGREES, METRES_PER_UNIT, ORBIT_RADIUS, Camera
from portrait_backend.radiance.head import Head
from portrait_backend.training.landmark_model import FACE_MESH
from portrait_backend.training.synthetic import DEPTH_SCALE_M, view_plan
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PriorSettings

HeadOf = Callable[[int], Head]
"""Number of an identity -> its head in our world."""
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SEARCH = 512
VISIBLE = 0.02
"""A landmark this close to the rendered depth (head units) is seen."""
log = logging.getLogger(__name__)


def head_source(provider: Literal["panohead", "portrait4d"], seed: int, photos: Path | None, device: torch.device) -> HeadOf:
    """Return what makes identity k of a provider. PortraitDiffusionError ``weights-missing``, ``photos-empty`` or ``prior-unknown``."""
    from portrait_backend.prior import create_prior

    prior = create_prior(provider)
    if provider == "panohead":
        from portrait_backend.prior.panohead import random_head

        return lambda k: random_head(int(np.random.default_rng([seed, k]).integers(2**62)), device)
    if provider != "portrait4d":
        raise PortraitDiffusionError("prior-unknown", f"{provider} has no heads to render", "Use --prior panohead or portrait4d")
    found = sorted(p for p in photos.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES) if photos is not None and photos.is_dir() else []
    if not found:
        raise PortraitDiffusionError(
            "photos-empty", f"portrait4d makes heads of photos, and there are none in {photos}", "Use --photos DIR"
        )

    def of_photo(k: int) -> Head:
        from portrait_backend.portrait.align import prepare_portrait

        if k >= len(found):
            raise PortraitDiffusionError(
                "photos-empty", f"identity {k} needs a photo, there are {len(found)}", "Lower --count or add photos"
            )
        context = Context(device, torch.float32, torch.Generator(device).manual_seed(seed))
        return prior.initialise(prepare_portrait(found[k], context), PriorSettings(provider=provider), context)

    return of_photo


def render_prior_dataset(
    head_of: HeadOf, out: Path, first: int, count: int, seed: int, resolution: int, detector: FaceDetector, evaluation: bool = False
) -> tuple[int, int]:
    """Render identities first..first+count-1; finished ones are skipped. Returns how many were made and how many had no face."""
    made = faceless = 0
    for k in range(first, first + count):
        folder = out / f"id{k:06d}"
        if (folder / "cameras.json").exists():
            continue
        head = head_of(k)
        points = canonical_landmarks(head, detector)
        if points is None:
            log.warning("identity %d has no face: left out", k)
            faceless += 1
            continue
        folder.mkdir(parents=True, exist_ok=True)
        _write_identity(head, points, folder, view_plan(np.random.default_rng([seed, k]), evaluation), resolution)
        made += 1
    return made, faceless


def canonical_landmarks(head: Head, detector: FaceDetector) -> Tensor | None:
    """Return the landmarks (468, 3) of a head in head units; those that can't be lifted are the landmark model's. None without a face."""
    found = lifted_landmarks(head, Camera.orbit(0, 0, SEARCH), detector)
    if found is None:
        return None
    points, sure = found
    return torch.where(sure[:, None], points, load_landmark_model().mean.float())


def _write_identity(head: Head, points: Tensor, folder: Path, plan: list[tuple[float, float]], resolution: int) -> None:
    device = head.geometry.planes.device
    landmarks, views = [], []
    for index, (azimuth, pitch) in enumerate(plan):
        camera = Camera.orbit(azimuth, pitch, resolution)
        depth = write_view(head, camera.to(device), folder, index)
        landmarks.append(_seen(points, camera, depth))
        pose = camera.world_to_camera.clone()
        pose[:, 3] *= METRES_PER_UNIT
        record = {"view": index, "azimuth": azimuth, "pitch": pitch}
        views.append(record | {"world_to_camera": pose.tolist(), "intrinsics": camera.intrinsics.tolist()})
    canonical = np.zeros((FACE_MESH.stop, 3))
    canonical[FACE_MESH] = points.numpy() * METRES_PER_UNIT
    np.savez_compressed(folder / "landmarks.npz", landmarks=np.stack(landmarks), points=canonical)
    meta = {
        "resolution": resolution,
        "fov_deg": FOV_DEGREES,
        "radius_units": ORBIT_RADIUS,
        "metres_per_unit": METRES_PER_UNIT,
        "depth_scale_m": DEPTH_SCALE_M,
        "identity": {name: head.meta[name] for name in ("provider", "seed", "weights_sha256", "photo_sha256") if name in head.meta},
        "views": views,
    }
    part = folder / "cameras.json.part"
    part.write_text(json.dumps(meta))
    part.rename(folder / "cameras.json")


def _seen(points: Tensor, camera: Camera, depth: Tensor) -> np.ndarray:
    """Return landmarks (536, 4) of a view: x, y px, z metres, whether the depth map (H, W) shows them."""
    pixels, z = camera.project(points)
    column, row = (pixels[:, axis].long().clamp(0, depth.shape[1 - axis] - 1) for axis in (0, 1))
    visible = (depth[row, column] - z).abs() < VISIBLE
    found = np.zeros((FACE_MESH.stop, 4), np.float32)
    found[FACE_MESH] = torch.cat([pixels, z[:, None] * METRES_PER_UNIT, visible[:, None].float()], 1).numpy()
    return found


@torch.no_grad()
def write_view(head: Head, camera: Camera, folder: Path, view: int) -> Tensor:
    """Render and write one view: rgb, depth, normal and part pictures. Returns the depth (H, W) in head units on the CPU, 0 where empty."""
    out = head.render(camera, normals=True)
    assert out.normals is not None
    solid = (out.alpha > 0.5).cpu()
    rgb = (out.rgb / out.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1)
    depth = torch.where(solid, out.depth.cpu(), 0.0)
    steps = np.rint(depth.numpy() * METRES_PER_UNIT / DEPTH_SCALE_M)
    normals = torch.where(solid[..., None], (out.normals.cpu() * 127.5 + 127.5).round(), 0.0)
    arrays = {
        "rgb": (torch.cat([rgb, out.alpha[..., None]], -1).clamp(0, 1) * 255).round().byte().cpu().numpy(),
        "depth": steps.clip(0, 65535).astype(np.uint16),
        "normal": normals.byte().numpy(),
        "part": solid.byte().numpy(),
    }
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"{name}_{view:03d}.png", compress_level=2)
    return depth
