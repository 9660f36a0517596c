"""A data set in the project's layout without the head pack: coloured spheres, exact depth and normals, the mean landmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from portrait_backend.portrait.head_pose import LANDMARK_SIZE, landmark_size, load_landmark_model
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera

RADIUS, SIZE = 0.33, 120
VIEWS = [(0.0, 0.0), (15.0, 5.0), (120.0, -10.0)]


def write_spheres(folder: Path, count: int = 2, size: int = SIZE, radius: float = RADIUS, file_unit: float = METRES_PER_UNIT) -> None:
    """Write `count` identities of three views of `size` px each; `file_unit` is the files' own metres per unit, which must not matter."""
    mean = load_landmark_model().mean.numpy()
    points = np.concatenate([np.zeros((68, 3)), mean * (LANDMARK_SIZE / landmark_size(mean))])
    for k in range(count):
        home = folder / f"id{k:06d}"
        home.mkdir(parents=True)
        views, landmarks = [], []
        for j, (azimuth, pitch) in enumerate(VIEWS):
            camera = Camera.orbit(azimuth, pitch, size)
            origin, directions = camera.rays()
            a, b, c = directions.pow(2).sum(-1), directions @ origin, origin @ origin - radius**2
            hit = b**2 - a * c > 0
            z = torch.where(hit, (-b - (b**2 - a * c).clamp_min(0).sqrt()) / a, 0.0).view(size, size)
            colour = np.zeros((size, size, 4), np.uint8)
            colour[...] = (200, 120 + 60 * k, 80, 255)
            colour[~hit.view(size, size).numpy()] = 0
            Image.fromarray(colour).save(home / f"rgb_{j:03d}.png")
            surface = (origin + directions * z.view(-1, 1)) / radius
            normals = np.where(hit[:, None].numpy(), np.rint(surface.numpy() * 127.5 + 127.5), 0).clip(0, 255).astype(np.uint8)
            Image.fromarray(normals.reshape(size, size, 3)).save(home / f"normal_{j:03d}.png")
            Image.fromarray((z.numpy() * METRES_PER_UNIT / 1e-4).round().astype(np.uint16)).save(home / f"depth_{j:03d}.png")
            pose = camera.world_to_camera.numpy().copy()
            pose[:, 3] *= METRES_PER_UNIT
            pixels, depth = camera.project(torch.from_numpy(points).float())
            landmarks.append(np.concatenate([pixels.numpy(), depth[:, None].numpy(), np.ones((len(points), 1))], 1))
            views.append(
                {"view": j, "azimuth": azimuth, "pitch": pitch, "world_to_camera": pose.tolist(), "intrinsics": camera.intrinsics.tolist()}
            )
        np.savez(home / "landmarks.npz", landmarks=np.stack(landmarks), points=points * METRES_PER_UNIT)
        meta = {"resolution": size, "metres_per_unit": file_unit, "depth_scale_m": 1e-4, "views": views}
        (home / "cameras.json").write_text(json.dumps(meta))
