"""Single views of a multi-view head data set (`synthetic.py` documents the layout), read from disk as they are drawn.

Images as the diffusion prior sees them: rgb or camera-space normals over mid grey (`portrait_backend.diffusion`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from portrait_backend.diffusion import BACKGROUND
from portrait_shared.errors import PortraitDiffusionError

NEAR_AZIMUTH, NEAR_PITCH = 42.0, 20.0
"""Views within these angles (degrees) can be the reference portrait."""


def camera_space(normals: Tensor, rotation: Tensor) -> Tensor:
    """Turn world normals (3, H, W) by a world-to-camera rotation (3, 3) into camera space: x right, y up, z toward the viewer.

    OpenCV cameras have y down and z forward, hence the two signs.
    """
    flip = normals.new_tensor([1.0, -1.0, -1.0])
    return torch.einsum("ij,jhw->ihw", flip[:, None] * rotation, normals)


class HeadViews:
    """All finished identities of a data set. angles (N, V, 2) degrees; near: (identity, view) pairs that can be references."""

    def __init__(self, data: Path, limit: int | None = None) -> None:
        self.folders = [f for f in sorted(data.glob("id*")) if (f / "cameras.json").exists()][:limit]
        if not self.folders:
            raise PortraitDiffusionError(
                "data-empty",
                f"there are no finished identities (id*/cameras.json) in {data}",
                "Render some with portrait-diffusion train dataset",
            )
        records = [json.loads((f / "cameras.json").read_text())["views"] for f in self.folders]
        self.angles = torch.tensor([[[v["azimuth"], v["pitch"]] for v in views] for views in records])
        self.rotations = torch.tensor([[v["world_to_camera"] for v in views] for views in records])[..., :3]
        self.near = (self.angles[..., 0].abs() <= NEAR_AZIMUTH) & (self.angles[..., 1].abs() <= NEAR_PITCH)

    def __len__(self) -> int:
        return len(self.folders)

    @property
    def views(self) -> int:
        """Views per identity."""
        return self.angles.shape[1]

    def rgba(self, identity: int, view: int) -> Tensor:
        """Return straight rgba (4, H, W) in [0, 1]."""
        pixels = np.asarray(Image.open(self.folders[identity] / f"rgb_{view:03d}.png"))
        return torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)

    def normals(self, identity: int, view: int, matte: Tensor) -> Tensor:
        """Return the normal map (3, H, W) as an image: camera space, (n + 1) / 2, over mid grey by matte (1, H, W)."""
        stored = torch.from_numpy(np.asarray(Image.open(self.folders[identity] / f"normal_{view:03d}.png")).astype(np.float32))
        n = camera_space(stored.permute(2, 0, 1) / 127.5 - 1, self.rotations[identity, view])
        known = (stored.sum(-1) > 0).float() * matte
        return (n * 0.5 + 0.5).clamp(0, 1) * known + BACKGROUND * (1 - known)


def over_grey(rgb: Tensor, matte: Tensor) -> Tensor:
    """Composite straight rgb (..., 3, H, W) over mid grey."""
    return rgb * matte + BACKGROUND * (1 - matte)
