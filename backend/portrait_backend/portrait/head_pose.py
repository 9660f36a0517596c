"""Head pose and face shape from 2-D landmarks: a statistical landmark model seen by an orbit camera.

The model is a PCA of face-mesh landmarks in head units. The fit finds yaw, pitch, the similarity that
places the normalised crop in the photo (which is the alignment), and the shape coefficients, by
Gauss-Newton with robust (soft L1) weights. The reference camera follows the face, never the reverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.spatial import cKDTree
from torch import Tensor

from portrait_backend.models import starter_path
from portrait_backend.radiance.cameras import ORBIT_RADIUS, focal_pixels

LANDMARKS = 468
LANDMARK_SIZE = 0.131
"""Root mean square distance of the landmarks from their centre in head units: this defines the head unit of a face."""
PIXEL_SCALE, SHAPE_WEIGHT, ROBUST = 0.01, 1.4, 1.0
"""Landmark noise (share of the face height), weight of the shape prior, soft-L1 threshold in noise units.

A shape that is held stiffer turns up as pitch. 150 synthetic heads under what the detector's landmarks are off on photos, weights 1, 1.4,
2: pitch 1.67, 1.58, 1.65 degrees off; under the data sets' noise 0.90, 1.01 and 1.19 degrees."""


UNCERTAIN = 0.001
"""Weight (head units) that keeps coefficients small which hardly move a landmark."""


def landmark_size(points: np.ndarray) -> float:
    """Return the root mean square distance of landmarks (468, 3) from their centre, in the unit of the points."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))


@dataclass(frozen=True)
class LandmarkModel:
    """mean (468, 3) and basis (K, 468, 3) in head units; the basis is scaled to one standard deviation.

    All its faces have `LANDMARK_SIZE` to first order. A photo tells no absolute size, so the unit is one that landmarks tell.
    """

    mean: Tensor
    basis: Tensor

    def shape(self, coefficients: Tensor) -> Tensor:
        """Return landmarks (..., 468, 3) of coefficients (..., K)."""
        return self.mean + torch.einsum("...k,knd->...nd", coefficients, self.basis)

    @cached_property
    def twins(self) -> np.ndarray:
        """The landmark (468,) of which each is the mirror image: the nearest one on the mean face."""
        mean = self.mean.numpy()
        return np.asarray(cKDTree(mean * [-1, 1, 1]).query(mean)[1])

    def mirrored(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients (K,) of a face that differs from the mean as that of coefficients (K,) does in a mirror.

        The landmarks are no exact pairs, so it is the best that the basis can show.
        """
        differs = torch.einsum("k,knd->nd", coefficients.to(self.mean), self.basis)[self.twins] * self.mean.new_tensor([-1.0, 1.0, 1.0])
        basis = torch.cat([self.basis.flatten(1).T, UNCERTAIN * torch.eye(len(self.basis)).to(self.basis)])
        wanted = torch.cat([differs.flatten(), self.mean.new_zeros(len(self.basis))])
        return torch.linalg.lstsq(basis, wanted[:, None]).solution[:, 0].to(coefficients)


@dataclass(frozen=True)
class HeadPose:
    """Result of a fit: degrees; similarity (2, 3) maps crop coordinates (u right, v down, 1), u, v in [-1, 1], to photo px.

    coefficients (K,); rms: landmark residual in pixels of a 128 px crop.
    """

    yaw: float
    pitch: float
    roll: float
    similarity: np.ndarray
    coefficients: np.ndarray
    rms: float


@lru_cache(maxsize=1)
def load_landmark_model() -> LandmarkModel:
    """Load the shipped landmark model."""
    weights = load_file(starter_path("landmarks.safetensors"))
    return LandmarkModel(weights["mean"].double(), weights["basis"].double())


def orbit_rotation(yaw: Tensor, pitch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """World-to-camera rotations (B, 3, 3) of `Camera.orbit` and their derivatives by yaw and pitch."""
    sy, cy, sp, cp, o = torch.sin(yaw), torch.cos(yaw), torch.sin(pitch), torch.cos(pitch), torch.zeros_like(yaw)

    def stack(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    rotation = stack((cy, o, -sy), (sy * sp, -cp, cy * sp), (-sy * cp, -sp, -cy * cp))
    by_yaw = stack((-sy, o, -cy), (cy * sp, o, -sy * sp), (-cy * cp, o, sy * cp))
    by_pitch = stack((o, o, o), (sy * cp, sp, cy * cp), (sy * sp, -cp, cy * sp))
    return rotation, by_yaw, by_pitch


def predict_landmarks(model: LandmarkModel, p: Tensor) -> tuple[Tensor, Tensor]:
    """Landmarks (B, 468, 2) of parameters (B, 6 + K) and their Jacobian (B, 468, 2, 6 + K).

    Parameters: yaw, pitch [rad], similarity a, b, tx, ty, coefficients.
    """
    shape = model.shape(p[:, 6:])
    rotation, by_yaw, by_pitch = orbit_rotation(p[:, 0], p[:, 1])
    x = shape @ rotation.transpose(1, 2)
    depth, focal = x[..., 2] + ORBIT_RADIUS, 2 * focal_pixels(1)
    u, v = focal * x[..., 0] / depth, focal * x[..., 1] / depth

    def image_motion(d: Tensor) -> Tensor:
        """Motion (B, N, 2, M) in crop coordinates of camera-space motions (B, N, 3, M)."""
        z = d[:, :, 2]
        return torch.stack([focal * d[:, :, 0] - u[..., None] * z, focal * d[:, :, 1] - v[..., None] * z], 2) / depth[..., None, None]

    turn = torch.stack([shape @ by_yaw.transpose(1, 2), shape @ by_pitch.transpose(1, 2)], -1)
    bend = torch.einsum("bij,knj->bnik", rotation, model.basis)
    crop = image_motion(torch.cat([turn, bend], -1))
    a, b = p[:, 2, None], p[:, 3, None]
    points = torch.stack([a * u - b * v + p[:, 4, None], b * u + a * v + p[:, 5, None]], -1)
    a, b = a[..., None], b[..., None]
    moved = torch.stack([a * crop[:, :, 0] - b * crop[:, :, 1], b * crop[:, :, 0] + a * crop[:, :, 1]], 2)
    one, zero = torch.ones_like(u), torch.zeros_like(u)
    place = torch.stack([torch.stack([u, -v, one, zero], -1), torch.stack([v, u, zero, one], -1)], 2)
    return points, torch.cat([moved[..., :2], place, moved[..., 2:]], -1)


def fit_parameters(points: Tensor, model: LandmarkModel, iterations: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a batch of landmarks (B, 468, 2) px: returns parameters (B, 6 + K), their centre (B, 2) and scale (B,) in px."""
    points = points.double()
    k = model.basis.shape[0]
    centre = points.mean(1)
    scale = (points[..., 1].amax(1) - points[..., 1].amin(1)) / 0.45
    target = (points - centre[:, None]) / scale[:, None, None]
    p = torch.zeros(len(points), 6 + k, dtype=torch.float64)
    # in-plane start from the line between the outer eye corners
    eyes = target[:, 263] - target[:, 33]
    roll = torch.atan2(eyes[:, 1], eyes[:, 0])
    p[:, 2], p[:, 3] = 0.5 * torch.cos(roll), 0.5 * torch.sin(roll)
    prior = torch.cat([torch.zeros(6), torch.full((k,), SHAPE_WEIGHT**2)]).double()
    for _ in range(iterations):
        predicted, jacobian = predict_landmarks(model, p)
        r = ((predicted - target) / PIXEL_SCALE).flatten(1)
        j = (jacobian / PIXEL_SCALE).flatten(1, 2)
        weighted = j * torch.rsqrt(1 + (r / ROBUST) ** 2)[..., None]
        h = weighted.transpose(1, 2) @ j + torch.diag(prior + 1e-6)
        g = (weighted.transpose(1, 2) @ r[..., None])[..., 0] + prior * p
        step = torch.linalg.solve(h, g)
        p = p - step * (0.6 / step[:, :2].abs().amax(1, keepdim=True).clamp_min(0.6))
    return p, centre, scale


def fit_head_pose(points_px: np.ndarray, model: LandmarkModel) -> HeadPose:
    """Fit landmarks (468, 2) in photo pixels (MediaPipe face-mesh order)."""
    if points_px.shape != (LANDMARKS, 2):
        raise ValueError(f"expected landmarks ({LANDMARKS}, 2), got {points_px.shape}")
    parameters, centre, scale = fit_parameters(torch.from_numpy(np.asarray(points_px, np.float64))[None], model)
    p, c, s = parameters[0].numpy(), centre[0].numpy(), float(scale[0])
    a, b = p[2] * s, p[3] * s
    similarity = np.array([[a, -b, p[4] * s + c[0]], [b, a, p[5] * s + c[1]]])
    residual = predict_landmarks(model, parameters)[0][0].numpy() - (points_px - c) / s
    rms = float(np.sqrt((residual**2).sum(1).mean()) / math.hypot(p[2], p[3]) * 64)
    return HeadPose(math.degrees(p[0]), math.degrees(p[1]), math.degrees(math.atan2(b, a)), similarity, p[6:].copy(), rms)
