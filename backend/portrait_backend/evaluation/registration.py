"""Bring another tool's head into head units: its axes, scale and place are found from its own face.

The mesh is looked at from each side that may be its front, with +y or +z up; where a face is found, its landmarks are lifted onto the
surface and placed, then measured and placed once more. A `Placing` says where they belong: where the photo's camera sees them
(`onto_photo`), or on a known surface (`onto_surface`). Both sides' landmarks come from the same detector, whose habits cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from portrait_backend.evaluation.image_metrics import as_bytes, over_grey
from portrait_backend.evaluation.mesh_file import MeshHead
from portrait_backend.portrait.faces import FaceDetector, find_face
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_shared.errors import PortraitDiffusionError

LOOK_SIZE = 512
UPS = {"y": np.eye(3), "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])}
"""Rotations that bring the up axis to +y."""
TURNS = (0, 90, 180, 270)
KEPT = 0.8
"""Share of the landmarks, the best-fitting ones, that the final fit counts: the others lie on hair or beyond an edge."""
MIN_LANDMARKS = 100

Points = NDArray[np.float64]
Similarity = tuple[float, Points, Points]
"""Scale, rotation (3, 3), translation (3,): scale * rotation @ p + translation."""
Placing = Callable[[NDArray[np.int64], Points], Similarity]
"""fn(which of the 468 landmarks (n,), where they are (n, 3)) -> the similarity that brings them to where they belong."""


def register(mesh: MeshHead, place: Placing, detector: FaceDetector) -> MeshHead:
    """Return `mesh` in head units, its face where `place` puts it; raises PortraitDiffusionError ``peer-no-face``."""
    boxed, camera = _boxed(mesh), Camera.orbit(0, 0, LOOK_SIZE)
    for up, turn in product(UPS, TURNS):
        a = np.radians(turn)
        yaw = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        turned = _moved(boxed, (1.0, yaw @ UPS[up], np.zeros(3)))
        found = lifted_landmarks(turned.render(camera), camera, detector)
        if found is not None:
            placed = _moved(turned, place(*found))
            again = lifted_landmarks(placed.render(camera), camera, detector)
            return placed if again is None else _moved(placed, place(*again))
    raise PortraitDiffusionError(
        "peer-no-face", "no face is found on the mesh from any side", "Turn it so that +y is up and the face looks along +z, or give images"
    )


def _boxed(mesh: MeshHead) -> MeshHead:
    """Return the mesh centred, its longest side 1."""
    points = torch.cat([part.vertices for part in mesh.parts])
    low, high = points.amin(0), points.amax(0)
    scale = 1 / float((high - low).max().clamp_min(1e-9))
    return mesh.transformed(scale, torch.eye(3), -scale * (low + high) / 2)


def _moved(mesh: MeshHead, similarity: Similarity) -> MeshHead:
    scale, rotation, translation = similarity
    return mesh.transformed(scale, torch.from_numpy(rotation).float(), torch.from_numpy(translation).float())


def lifted_landmarks(view: RenderOutput, camera: Camera, detector: FaceDetector) -> tuple[NDArray[np.int64], Points] | None:
    """Return which landmarks (n,) of the face in a view lie on the surface, and where (n, 3), world; None if no face is found."""
    try:
        face, _, _ = find_face(as_bytes(over_grey(view.rgb, view.alpha)), detector)
    except PortraitDiffusionError:
        return None
    column, row = (face.landmarks.T).astype(np.int64).clip(0, camera.width - 1)
    on_surface = np.nonzero((view.alpha.numpy()[row, column] > 0.95) & (view.depth.numpy()[row, column] > 0))[0]
    if len(on_surface) < MIN_LANDMARKS:
        return None
    origin, directions = camera.rays_through(torch.from_numpy(face.landmarks[on_surface]).float())
    depth = view.depth[torch.from_numpy(row[on_surface]), torch.from_numpy(column[on_surface])]
    return on_surface, (origin + directions * depth[:, None]).double().numpy()


def onto_surface(landmarks: Points) -> Placing:
    """Place a face on landmarks (468, 3) of a known surface, NaN where they are not known."""

    def place(which: NDArray[np.int64], points: Points) -> Similarity:
        known = np.isfinite(landmarks[which]).all(1)
        points, target = points[known], landmarks[which[known]]
        scale, rotation, translation = similarity(points, target)
        best = _best(np.linalg.norm(scale * points @ rotation.T + translation - target, axis=1))
        return similarity(points[best], target[best])

    return place


def onto_photo(landmarks: Points, camera: Camera, shape: Points) -> Placing:
    """Place a face where the photo's camera sees its landmarks (468, 2) px. A photo tells no size: it gets that of `shape` (468, 3)."""
    matrix = camera.intrinsics.double().numpy()
    pose, undistorted = camera.world_to_camera.double().numpy(), np.zeros(4)  # no lens distortion

    def place(which: NDArray[np.int64], points: Points) -> Similarity:
        scale, target = similarity(points, shape[which])[0], landmarks[which]
        best = np.ones(len(which), bool)
        for _ in range(2):
            _, turn, move = cv2.solvePnP(scale * points[best], target[best], matrix, undistorted, flags=cv2.SOLVEPNP_SQPNP)
            turn, move = cv2.solvePnPRefineLM(scale * points[best], target[best], matrix, undistorted, turn, move)
            seen = cv2.projectPoints(scale * points, turn, move, matrix, undistorted)[0][:, 0]
            best = _best(np.linalg.norm(seen - target, axis=1))
        rotation = np.asarray(cv2.Rodrigues(turn)[0], np.float64)
        return scale, pose[:, :3].T @ rotation, pose[:, :3].T @ (np.asarray(move, np.float64)[:, 0] - pose[:, 3])

    return place


def _best(residual: Points) -> NDArray[np.bool_]:
    return np.asarray(residual <= np.quantile(residual, KEPT))


def similarity(source: Points, target: Points) -> Similarity:
    """Return the similarity that maps source (N, 3) onto target (N, 3) with least squares (Umeyama 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, s, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = float((s * sign).sum() / (a**2).sum(1).mean())
    return scale, rotation, target.mean(0) - scale * rotation @ source.mean(0)
