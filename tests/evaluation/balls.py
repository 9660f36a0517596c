"""A painted ball whose images, depth and normals are known exactly, as a head, as a mesh and as a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image

from portrait_backend.evaluation.mesh_file import MeshHead, MeshPart
from portrait_backend.portrait.head_pose import LANDMARK_SIZE, landmark_size, load_landmark_model
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_backend.radiance.renderer import RenderOutput
from portrait_backend.training.synthetic import DEPTH_SCALE_M, EVALUATION_VIEWS
from tests.cli.fake_parts import RADIUS, BallHead

SIZE = 160
VIEWS = [(10.0, 5.0), *EVALUATION_VIEWS, *((float(azimuth), 15.0) for azimuth in range(-160, 200, 45))]
Paint = Callable[[torch.Tensor], torch.Tensor]


def waves(points: torch.Tensor) -> torch.Tensor:
    """A smooth colour (N, 3) in [0.2, 0.8] for points (N, 3)."""
    return 0.5 + 0.3 * torch.sin(9 * points + torch.tensor([0.0, 1.0, 2.0]))


class PaintedBall(BallHead):
    """A `BallHead` painted with smooth waves."""

    def __init__(self, paint: Paint = waves) -> None:
        super().__init__()
        self.paint = paint

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return self.paint(points)


def ball_mesh(radius: float = RADIUS, paint: Paint = waves, subdivisions: int = 5) -> MeshHead:
    """The ball as triangles with painted vertices, head units."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    vertices = torch.from_numpy(np.array(sphere.vertices)).float()
    faces = torch.from_numpy(np.array(sphere.faces)).long()
    part = MeshPart(vertices, faces, vertices / radius, paint(vertices), torch.zeros(len(vertices), 2), None)
    return MeshHead((part,))


def write_balls(folder: Path, count: int = 1) -> None:
    """Write identities of 15 views in the layout of `training/synthetic.py`, the landmarks those of the mean face in head units."""
    ball, mean = PaintedBall(), load_landmark_model().mean.numpy()
    points = np.concatenate([np.zeros((68, 3)), mean * (LANDMARK_SIZE / landmark_size(mean))])
    for k in range(count):
        home = folder / f"id{k:06d}"
        home.mkdir(parents=True)
        views, landmarks = [], []
        for j, (azimuth, pitch) in enumerate(VIEWS):
            camera = Camera.orbit(azimuth, pitch, SIZE)
            _write_view(home, j, ball.render(camera, normals=True))
            pose = camera.world_to_camera.numpy().copy()
            pose[:, 3] *= METRES_PER_UNIT
            pixels, depth = camera.project(torch.from_numpy(points).float())
            landmarks.append(np.concatenate([pixels.numpy(), depth[:, None].numpy(), np.ones((len(points), 1))], 1))
            views.append({"view": j, "azimuth": azimuth, "pitch": pitch, "world_to_camera": pose.tolist()})
        np.savez(home / "landmarks.npz", landmarks=np.stack(landmarks), points=points * METRES_PER_UNIT)
        meta = {"metres_per_unit": METRES_PER_UNIT, "depth_scale_m": DEPTH_SCALE_M, "views": views}
        (home / "cameras.json").write_text(json.dumps(meta))


def _write_view(home: Path, number: int, view: RenderOutput) -> None:
    assert view.normals is not None
    rgba = torch.cat([view.rgb, view.alpha[..., None]], -1).mul(255).round().to(torch.uint8).numpy()
    Image.fromarray(rgba).save(home / f"rgb_{number:03d}.png")
    depth = (view.depth.numpy() * METRES_PER_UNIT / DEPTH_SCALE_M).round().astype(np.uint16)
    Image.fromarray(depth).save(home / f"depth_{number:03d}.png")
    normals = ((view.normals + 1) * 127.5).round() * view.alpha[..., None]
    Image.fromarray(normals.to(torch.uint8).numpy()).save(home / f"normal_{number:03d}.png")
