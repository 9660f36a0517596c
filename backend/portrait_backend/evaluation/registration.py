"""Bring another tool's head into head units: its axes, scale and place are found from its own face.

The mesh is looked at from each side that may be its front, with +y or +z up; where a face is found, the landmarks are lifted
onto the surface and fitted to known landmarks by a similarity (Umeyama 1991), then measured and fitted once more.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.evaluation.image_metrics import as_bytes, over_grey
from portrait_backend.evaluation.mesh_file import MeshHead
from portrait_backend.portrait.faces import FaceDetector, find_face
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError

LOOK_SIZE = 512
UPS = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}
"""Rotations that bring the up axis to +y."""
TURNS = (0, 90, 180, 270)
KEPT = 0.8
"""Share of the landmarks, the best-fitting ones, that the final fit counts: the others lie on hair or beyond an edge."""
MIN_LANDMARKS = 100


def register(mesh: MeshHead, landmarks: Tensor, detector: FaceDetector) -> MeshHead:
    """Return `mesh` in head units, its face at the `landmarks` (468, 3); raises PortraitDiffusionError ``peer-no-face``."""
    boxed = _boxed(mesh)
    for up, turn in product(UPS, TURNS):
        a = np.radians(turn)
        yaw = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        turned = boxed.transformed(1.0, torch.from_numpy(yaw @ UPS[up]).float(), torch.zeros(3))
        found = _lifted_landmarks(turned, detector)
        if found is not None:
            placed = _fitted(turned, *found, landmarks)
            again = _lifted_landmarks(placed, detector)
            return placed if again is None else _fitted(placed, *again, landmarks)
    raise PortraitDiffusionError(
        "peer-no-face", "no face is found on the mesh from any side", "Turn it so that +y is up and the face looks along +z, or give images"
    )


def _boxed(mesh: MeshHead) -> MeshHead:
    """Return the mesh centred, its longest side 1."""
    points = torch.cat([part.vertices for part in mesh.parts])
    low, high = points.amin(0), points.amax(0)
    scale = 1 / float((high - low).max().clamp_min(1e-9))
    return mesh.transformed(scale, torch.eye(3), -scale * (low + high) / 2)


def _lifted_landmarks(mesh: MeshHead, detector: FaceDetector) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Return which landmarks (n,) of the face seen from the front lie on the surface, and where (n, 3); None if no face is found."""
    camera = Camera.orbit(0, 0, LOOK_SIZE)
    view = mesh.render(camera)
    try:
        face, _, _ = find_face(as_bytes(over_grey(view.rgb, view.alpha)), detector)
    except PortraitDiffusionError:
        return None
    column, row = (face.landmarks.T).astype(np.int64).clip(0, LOOK_SIZE - 1)
    on_surface = np.nonzero(view.alpha.numpy()[row, column] > 0.95)[0]
    if len(on_surface) < MIN_LANDMARKS:
        return None
    origin, directions = camera.rays_through(torch.from_numpy(face.landmarks[on_surface]).float())
    depth = view.depth[torch.from_numpy(row[on_surface]), torch.from_numpy(column[on_surface])]
    return on_surface, (origin + directions * depth[:, None]).double().numpy()


def _fitted(mesh: MeshHead, which: NDArray[np.int64], points: NDArray[np.float64], landmarks: Tensor) -> MeshHead:
    target = landmarks.double().numpy()[which]
    scale, rotation, translation = similarity(points, target)
    residual = np.linalg.norm(scale * points @ rotation.T + translation - target, axis=1)
    best = residual <= np.quantile(residual, KEPT)
    scale, rotation, translation = similarity(points[best], target[best])
    return mesh.transformed(scale, torch.from_numpy(rotation).float(), torch.from_numpy(translation).float())


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return scale, rotation (3, 3) and translation (3,) that map source (N, 3) onto target (N, 3) with least squares (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = float((s * sign).sum() / (a**2).sum(1).mean())
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)
