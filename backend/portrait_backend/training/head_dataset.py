"""Multi-view head data sets in memory, with the pose fits that the product would make on each input view."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from portrait_backend.portrait.head_pose import LANDMARK_SIZE, fit_parameters, landmark_size, load_landmark_model, orbit_rotation
from portrait_backend.radiance.cameras import ORBIT_RADIUS, Camera
from portrait_backend.training.landmark_model import FACE_MESH
from portrait_shared.errors import PortraitDiffusionError

INPUT_AZIMUTH, INPUT_PITCH = 42.0, 20.0
"""Views within these angles (degrees) can be inputs."""
LANDMARK_NOISE = 0.004
"""Detector noise added to the landmarks, share of the image side."""
DEPTH_ORIGIN, DEPTH_STEPS, EMPTY = 2.0, 20000.0, -32768
"""Stored depth: steps per head unit around an origin; the value of empty pixels."""

EAR = 4
"""Part id of ears in a data set's part_*.png."""


@dataclass
class HeadDataset:
    """N identities x V views of S px: rgba (N, V, S, S, 4) u8 straight; depth (N, V, S, S) i16 (see `decode_depth`).

    cameras (N, V, 3, 4) head units; angles (N, V, 2) degrees; landmarks (N, V, 468, 2) px; points (N, 468, 3) head units.
    Inputs (M,): identity `input_id`, view `input_view`, whether everything is mirrored left to right `mirrored`,
    fitted similarity (M, 2, 3) on [-1, 1], yaw/pitch (M, 2) radians, coefficients (M, K).
    """

    rgba: Tensor
    depth: Tensor
    cameras: Tensor
    angles: Tensor
    landmarks: Tensor
    points: Tensor
    input_id: Tensor
    input_view: Tensor
    mirrored: Tensor
    similarity: Tensor
    fitted_angles: Tensor
    coefficients: Tensor

    @property
    def size(self) -> int:
        """Image side in pixels."""
        return int(self.rgba.shape[2])

    def __len__(self) -> int:
        return len(self.rgba)


def _encode_depth(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, np.clip(np.rint((z - DEPTH_ORIGIN) * DEPTH_STEPS), EMPTY + 1, 32767), EMPTY).astype(np.int16)


def decode_depth(stored: Tensor) -> Tensor:
    """Return z-depth in head units (0 where empty) of stored depth."""
    return torch.where(stored > EMPTY, stored.float() / DEPTH_STEPS + DEPTH_ORIGIN, 0.0)


def _load_identity(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    meta = json.loads((folder / "cameras.json").read_text())
    marks, views = np.load(folder / "landmarks.npz"), meta["views"]
    unit = landmark_size(marks["points"][FACE_MESH]) / LANDMARK_SIZE  # the file's own unit is one that no photo tells
    rgba = np.stack([np.asarray(Image.open(folder / f"rgb_{v['view']:03d}.png")) for v in views])
    z = np.stack([np.asarray(Image.open(folder / f"depth_{v['view']:03d}.png")) for v in views])
    cameras = np.array([v["world_to_camera"] for v in views], np.float32)
    cameras[:, :, 3] /= unit
    angles = np.array([[v["azimuth"], v["pitch"]] for v in views], np.float32)
    return (
        rgba,
        _encode_depth(z * np.float32(meta["depth_scale_m"] / unit)),
        cameras,
        angles,
        marks["landmarks"][:, FACE_MESH, :2].astype(np.float32),
        (marks["points"][FACE_MESH] / unit).astype(np.float32),
    )


def camera_of(angles: Tensor) -> Tensor:
    """World-to-camera (B, 3, 4) of the reference orbit camera at yaw, pitch (B, 2) in radians."""
    rotation = orbit_rotation(angles[:, 0], angles[:, 1])[0]
    t = torch.zeros(len(angles), 3, 1, dtype=angles.dtype)
    t[:, 2] = ORBIT_RADIUS
    return torch.cat([rotation, t], 2)


def camera_at(data: HeadDataset, identity: int, view: int, size: int) -> Camera:
    """Return a data-set camera at `size` px."""
    return replace(Camera.orbit(0, 0, size), world_to_camera=data.cameras[identity, view])


def fit_inputs(landmarks: np.ndarray, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit noisy landmarks (M, 468, 2) px as the product does: similarity (M, 2, 3), angles (M, 2) rad, coefficients (M, K)."""
    rng, model = np.random.default_rng(seed), load_landmark_model()
    smooth = rng.normal(0, LANDMARK_NOISE * size, (len(landmarks), 1, 2))
    noisy = torch.from_numpy(landmarks + rng.normal(0, LANDMARK_NOISE * size * 0.7, landmarks.shape) + smooth)
    similarity, angles, coefficients = [], [], []
    for chunk in noisy.split(64):
        p, centre, scale = fit_parameters(chunk, model, iterations=7)
        a, b = p[:, 2] * scale, p[:, 3] * scale
        t = p[:, 4:6] * scale[:, None] + centre
        s = torch.stack([torch.stack([a, -b, t[:, 0]], 1), torch.stack([b, a, t[:, 1]], 1)], 1) * (2 / size)
        s[:, :, 2] -= 1
        similarity.append(s.float())
        angles.append(p[:, :2].float())
        coefficients.append(p[:, 6:].float())
    return torch.cat(similarity), torch.cat(angles), torch.cat(coefficients)


def mirror_landmarks(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Return the landmarks (..., 468, 2) px of mirrored images `size` px wide; each becomes its nearest twin on the mean face."""
    swapped = landmarks[..., load_landmark_model().twins, :].copy()
    swapped[..., 0] = size - swapped[..., 0]
    return swapped


def finished_identities(data: Path) -> list[Path]:
    """Return the folders of the finished identities of `data`, in the order in which they are read."""
    return [folder for folder in sorted(data.glob("id*")) if (folder / "cameras.json").exists()]


def part_pixels(data: Path, part: int, limit: int | None = None) -> list[Tensor]:
    """Return where every identity shows a part: view, y and x (K, 3) each; none where the data set has no part_*.png."""

    def of(folder: Path) -> Tensor:
        views = range(len(list(folder.glob("part_*.png"))))
        found = [np.argwhere(np.asarray(Image.open(folder / f"part_{view:03d}.png")) == part) for view in views]
        rows = [np.insert(pixels, 0, view, 1) for view, pixels in enumerate(found)]
        return torch.from_numpy(np.concatenate([np.zeros((0, 3), np.int64), *rows]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(of, finished_identities(data)[:limit]))


def load_heads(
    data: Path,
    limit: int | None = None,
    seed: int = 0,
    input_views: tuple[int, ...] | None = None,
    cache: Path | None = None,
    mirror: bool = False,
) -> HeadDataset:
    """Read all finished identities of `data`; `input_views` fixes which views are inputs (default: those near the front).

    `mirror` adds the mirrored heads as further inputs.

    `cache`: a file that keeps the result for the next start (it is trusted to belong to the same arguments).
    """
    if cache is not None and cache.exists():
        return HeadDataset(**torch.load(cache, weights_only=True, mmap=True))
    folders = finished_identities(data)[:limit]
    if not folders:
        raise PortraitDiffusionError(
            "data-empty",
            f"there are no finished identities (id*/cameras.json) in {data}",
            "Render some with portrait-diffusion train dataset",
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = list(pool.map(_load_identity, folders))
    rgba, depth, cameras, angles, marks, points = (list(x) for x in zip(*loaded, strict=True))
    turn = np.stack(angles)
    near = (np.abs(turn[..., 0]) <= INPUT_AZIMUTH) & (np.abs(turn[..., 1]) <= INPUT_PITCH)
    if input_views is not None:
        near = np.zeros_like(near)
        near[:, list(input_views)] = True
    ids, views = np.nonzero(near)
    size = rgba[0].shape[1]
    inputs = np.stack(marks)[ids, views]
    mirrored = np.zeros(len(ids), bool)
    if mirror:
        inputs = np.concatenate([inputs, mirror_landmarks(inputs, size)])
        ids, views, mirrored = np.tile(ids, 2), np.tile(views, 2), np.concatenate([mirrored, ~mirrored])
    similarity, fitted, coefficients = fit_inputs(inputs, size, seed)
    heads = HeadDataset(
        torch.from_numpy(np.stack(rgba)),
        torch.from_numpy(np.stack(depth)),
        torch.from_numpy(np.stack(cameras)),
        torch.from_numpy(turn),
        torch.from_numpy(np.stack(marks)),
        torch.from_numpy(np.stack(points)),
        torch.from_numpy(ids),
        torch.from_numpy(views),
        torch.from_numpy(mirrored),
        similarity,
        fitted,
        coefficients,
    )
    if cache is not None:
        torch.save({f.name: getattr(heads, f.name) for f in fields(heads)}, cache)
    return heads
