"""Where a published prior's world lies in ours: a scale and a shift, so that its head stands before our cameras.

The axes are the same in all of them (+y up, the face looks along +z); unit and origin are not. Both are measured: the face is found in a
picture of the prior's own head, its landmarks are lifted with the head's depth, and scale and shift bring them onto the landmark model.
Where no face is found, the placement that follows from the published crop of the training photos is taken, and the head says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.portrait.faces import FaceDetector, find_face
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head, TriPlane
from portrait_shared.errors import PortraitDiffusionError

EYE_RIGHT, EYE_LEFT, NOSE, MOUTH = (33, 133), (362, 263), 1, (61, 291)
"""Face-mesh landmarks: the corners of the sitter's right and left eye, the tip of the nose, the corners of the mouth (right, left)."""
PICTURE, GRID = 256, 96
"""Side of the picture in which the face is looked for, px; lattice resolution of its render."""
SOLID = 0.7
"""Least alpha of a pixel whose depth counts."""
FEWEST = 100
"""Landmarks that must lie on the head."""
WORST_FIT = 0.08
"""Root mean square distance in head units (3 cm) beyond which what was found is no face like ours."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """ours = scale * prior + shift; measured: on the prior's own face, otherwise nominal."""

    scale: float
    shift: tuple[float, float, float]
    measured: bool = False

    def head(self, head: Head) -> Head:
        """Return a head of the prior's world as it stands in ours. Gradients flow through."""

        def moved(plane: TriPlane) -> TriPlane:
            centre = tuple(self.scale * c + d for c, d in zip(plane.centre, self.shift, strict=True))
            return plane.placed(plane.half_extent * self.scale, (centre[0], centre[1], centre[2]))

        geometry = moved(head.geometry)
        appearance = geometry if head.appearance is head.geometry else moved(head.appearance)
        a, b = head.activation, head.bounds
        activation = replace(a, per_unit=a.per_unit / self.scale, surface=a.surface / self.scale)
        bounds = None if b is None else (b[0] * self.scale, b[1] * self.scale, b[2] * self.scale)
        return replace(head, geometry=geometry, appearance=appearance, activation=activation, bounds=bounds, _made={})

    def facts(self) -> dict[str, object]:
        """Return it as JSON data."""
        return {"scale": self.scale, "shift": list(self.shift), "measured": self.measured}


def five_points(landmarks: Tensor) -> Tensor:
    """Return image-left eye, image-right eye, nose tip, image-left and image-right mouth corner (5, C) of landmarks (468, C)."""
    eyes = [landmarks[list(corners)].mean(0) for corners in (EYE_RIGHT, EYE_LEFT)]
    return torch.stack([*eyes, landmarks[NOSE], landmarks[MOUTH[0]], landmarks[MOUTH[1]]])


def fit_placement(theirs: Tensor, ours: Tensor) -> tuple[Placement, float]:
    """Return scale and shift that bring points (N, 3) of the prior's world onto ours (N, 3), and the RMS distance left.

    Least squares, twice: the tenth that fits worst (depth at an edge) is left out the second time.
    """
    keep = torch.ones(len(theirs), dtype=torch.bool)
    for _ in range(2):
        a, b = theirs[keep].double(), ours[keep].double()
        a0, b0 = a - a.mean(0), b - b.mean(0)
        scale = (a0 * b0).sum() / (a0 * a0).sum().clamp_min(1e-12)
        shift = b.mean(0) - scale * a.mean(0)
        distance = (scale * theirs.double() + shift - ours.double()).norm(dim=1)
        keep = distance <= distance.quantile(0.9)
    x, y, z = shift.tolist()
    return Placement(float(scale), (x, y, z), measured=True), float(distance[keep].square().mean().sqrt())


@torch.no_grad()
def measure_placement(head: Head, camera: Camera, detector: FaceDetector, ours: Tensor) -> Placement | None:
    """Find the face of a head in its own world, seen by a camera there; ours (468, 3): its landmarks in head units. None without a face."""
    found = lifted_landmarks(head, camera, detector)
    if found is None:
        return None
    points, sure = found
    placement, error = fit_placement(points[sure], ours[sure])
    if not placement.scale > 0 or error > WORST_FIT:
        log.info("a face was found on the prior's head but does not fit (%.3f head units)", error)
        return None
    return placement


@torch.no_grad()
def lifted_landmarks(head: Head, camera: Camera, detector: FaceDetector) -> tuple[Tensor, Tensor] | None:
    """Return landmarks (468, 3) in the head's world, lifted with its depth, and which of them lie on it (468,); None without a face."""
    device = head.geometry.planes.device
    camera = camera.resized(PICTURE)
    grid = DensityGrid.build(head, GRID, device=device, dtype=head.geometry.planes.dtype)
    out = head.render(camera.to(device), grid=grid)
    picture = (out.rgb + 0.5 * (1 - out.alpha[..., None])).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    try:
        face, _, _ = find_face(picture, detector)
    except PortraitDiffusionError as error:
        log.info("no face on the prior's head: %s", error.code)
        return None
    pixels = torch.from_numpy(np.asarray(face.landmarks, np.float32))
    maps = torch.stack([out.depth, out.alpha]).cpu().float()[None]
    depth, alpha = F.grid_sample(maps, (pixels / PICTURE * 2 - 1)[None, None], align_corners=False)[0, :, 0]
    sure = (alpha > SOLID) & (depth > 0)
    if int(sure.sum()) < FEWEST:
        return None
    origin, directions = camera.rays_through(pixels)
    return origin + directions * depth[:, None], sure


def nominal_placement(theirs: Tensor) -> Placement:
    """Return the placement that brings a prior's five points (5, 3), as its crop rule has them, onto the mean face's."""
    return replace(fit_placement_all(theirs, five_points(load_landmark_model().mean)), measured=False)


def fit_placement_all(theirs: Tensor, ours: Tensor) -> Placement:
    """Return the least-squares placement of few points, none left out."""
    a, b = theirs.double(), ours.double()
    a0, b0 = a - a.mean(0), b - b.mean(0)
    scale = float((a0 * b0).sum() / (a0 * a0).sum())
    x, y, z = (b.mean(0) - scale * a.mean(0)).tolist()
    return Placement(scale, (x, y, z))
