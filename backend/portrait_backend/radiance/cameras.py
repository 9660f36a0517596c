"""Pinhole cameras; every camera convention of the project is decided (and converted) here.

OpenCV: camera x right, y down, z forward; world-to-camera (3, 4); pixel centres at +0.5.
World: head units, +y up, the face looks along +z, +x is the subject's left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

METRES_PER_UNIT = 0.37
"""Metres per head unit: an adult head is then about 0.24 m from chin to crown."""
ORBIT_RADIUS, FOV_DEGREES = 2.7, 18.837
"""The reference camera: distance in head units, field of view per image axis."""


def focal_pixels(size: int, fov_deg: float = FOV_DEGREES) -> float:
    """Return the focal length in pixels of a `size` px image with `fov_deg` degrees per axis."""
    return 0.5 * size / math.tan(math.radians(fov_deg) / 2)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: world_to_camera (3, 4), intrinsics (3, 3) in pixels, image width and height in pixels."""

    world_to_camera: Tensor
    intrinsics: Tensor
    width: int
    height: int

    def __post_init__(self) -> None:
        if tuple(self.world_to_camera.shape) != (3, 4) or tuple(self.intrinsics.shape) != (3, 3):
            raise ValueError(
                "Camera needs world_to_camera (3, 4) and intrinsics (3, 3), "
                f"got {tuple(self.world_to_camera.shape)} and {tuple(self.intrinsics.shape)}"
            )

    @classmethod
    def orbit(cls, azimuth_deg: float, pitch_deg: float, size: int, radius: float = ORBIT_RADIUS, fov_deg: float = FOV_DEGREES) -> Camera:
        """Return a camera that looks at the origin; azimuth > 0 is the subject's left (+x), pitch > 0 from above (|pitch| < 90)."""
        a, p = math.radians(azimuth_deg), math.radians(pitch_deg)
        position = radius * torch.tensor([math.sin(a) * math.cos(p), math.sin(p), math.cos(a) * math.cos(p)], dtype=torch.float64)
        z = -position / position.norm()
        x = torch.linalg.cross(z, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        x = x / x.norm()
        rotation = torch.stack([x, torch.linalg.cross(z, x), z])
        pose = torch.cat([rotation, -(rotation @ position)[:, None]], 1)
        f = focal_pixels(size, fov_deg)
        return cls(pose.float(), torch.tensor([[f, 0, size / 2], [0, f, size / 2], [0, 0, 1]]), size, size)

    def resized(self, size: int) -> Camera:
        """Return the same view with `size` pixels along the width (height in proportion)."""
        s = size / self.width
        scale = torch.tensor([[s], [s], [1.0]], dtype=self.intrinsics.dtype, device=self.intrinsics.device)
        return replace(self, intrinsics=self.intrinsics * scale, width=size, height=round(self.height * s))

    def in_image(self, similarity: Tensor, width: int, height: int) -> Camera:
        """Return the camera of the larger image that this one's image lies in, turned and scaled.

        similarity (2, 3): pixels here -> pixels there. A turn in the image plane is a turn of the camera about its axis.
        Raises ValueError for other maps, and for unequal focal lengths.
        """
        k = self.intrinsics.double()
        turn, scale = similarity[:, :2].double(), float(similarity[:, 0].double().norm())
        turn = turn / scale
        if not torch.allclose(turn @ turn.T, torch.eye(2).double(), atol=1e-3) or torch.linalg.det(turn) < 0:
            raise ValueError(f"a camera can be turned and scaled only, got {similarity.tolist()}")
        if abs(float(k[0, 0] - k[1, 1])) > 1e-3 * float(k[0, 0]) or float(k[0, 1]) != 0:
            raise ValueError(f"only a camera with square pixels can be turned, got intrinsics {k.tolist()}")
        about_axis = torch.block_diag(turn, torch.ones(1, 1).double())
        centre = similarity.double() @ torch.cat([k[:2, 2], torch.ones(1).double()])
        focal = scale * float(k[0, 0])
        intrinsics = torch.tensor([[focal, 0, float(centre[0])], [0, focal, float(centre[1])], [0, 0, 1]])
        return Camera((about_axis @ self.world_to_camera.double()).float(), intrinsics, width, height)

    def stretched(self, width: int, height: int) -> Camera:
        """Return the same view in an image of another size."""
        scale = torch.tensor([[width / self.width], [height / self.height], [1.0]], dtype=self.intrinsics.dtype)
        return replace(self, intrinsics=self.intrinsics * scale.to(self.intrinsics.device), width=width, height=height)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Camera:
        """Return the camera with its matrices on `device`."""
        return replace(self, world_to_camera=self.world_to_camera.to(device, dtype), intrinsics=self.intrinsics.to(device, dtype))

    @property
    def centre(self) -> Tensor:
        """Camera position (3,) in the world."""
        return -self.world_to_camera[:, :3].T @ self.world_to_camera[:, 3]

    def eg3d_label(self) -> Tensor:
        """Return the camera as EG3D's networks take it (25,): camera-to-world (4, 4) and intrinsics in units of the image, row by row.

        EG3D's world is ours: its faces look along +z, +y is up, and its camera is OpenCV's too.
        """
        pose = torch.eye(4, dtype=self.world_to_camera.dtype, device=self.world_to_camera.device)
        pose[:3, :3], pose[:3, 3] = self.world_to_camera[:, :3].T, self.centre
        size = self.intrinsics.new_tensor([[self.width], [self.height], [1.0]])
        return torch.cat([pose.flatten(), (self.intrinsics / size).flatten()])

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points (..., 3) to pixels (..., 2) and camera z (...,)."""
        x = points @ self.world_to_camera[:, :3].T + self.world_to_camera[:, 3]
        uvw = x @ self.intrinsics.T
        return uvw[..., :2] / uvw[..., 2:], x[..., 2]

    def pixel_centres(self) -> Tensor:
        """Return (height * width, 2) pixel-centre coordinates, row by row."""
        device, dtype = self.intrinsics.device, self.intrinsics.dtype
        y, x = torch.meshgrid(
            torch.arange(self.height, device=device, dtype=dtype), torch.arange(self.width, device=device, dtype=dtype), indexing="ij"
        )
        return torch.stack([x, y], -1).reshape(-1, 2) + 0.5

    def rays_through(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return origin (3,) and directions (N, 3) through pixels (N, 2); directions have unit camera z, so the parameter t is z-depth."""
        k = self.intrinsics
        d = torch.stack(
            [
                (pixels[:, 0] - k[0, 2] - k[0, 1] * (pixels[:, 1] - k[1, 2]) / k[1, 1]) / k[0, 0],
                (pixels[:, 1] - k[1, 2]) / k[1, 1],
                torch.ones_like(pixels[:, 0]),
            ],
            -1,
        )
        return self.centre, d @ self.world_to_camera[:, :3]

    def rays(self) -> tuple[Tensor, Tensor]:
        """Return origin (3,) and directions (height * width, 3) through all pixel centres."""
        return self.rays_through(self.pixel_centres())


def mirror_cameras(cameras: Tensor) -> Tensor:
    """Return the world-to-camera matrices (..., 3, 4) that see the mirrored head as mirrored images."""
    sign = torch.tensor([-1.0, 1.0, 1.0])
    return cameras * sign[:, None] * torch.tensor([-1.0, 1.0, 1.0, 1.0])
