"""An input view of a data set as the Portrait that the product would make of such a photo."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.training.head_dataset import HeadDataset


def portrait_of(data: HeadDataset, row: int) -> Portrait:
    """Return an input view of the data set as the Portrait that the product would make of it."""
    rgba = data.rgba[data.input_id[row], data.input_view[row]].float().permute(2, 0, 1)[None] / 255
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    grid = F.affine_grid(data.similarity[row : row + 1], [1, 4, PORTRAIT_SIZE, PORTRAIT_SIZE], align_corners=False)
    crop = F.grid_sample(premultiplied, grid, align_corners=False)[0].permute(1, 2, 0)
    matte = crop[..., 3:]
    straight = torch.cat([(crop[..., :3] / matte.clamp_min(1e-3)).clamp(0, 1), matte], -1)
    yaw, pitch = (float(x) for x in torch.rad2deg(data.fitted_angles[row]))
    # landmarks matter to the product for the hair region only: map the true ones into the crop
    s = data.similarity[row]
    normalised = data.landmarks[data.input_id[row], data.input_view[row]] / data.size * 2 - 1
    marks = torch.linalg.solve(s[:, :2], (normalised - s[:, 2]).T).T
    return Portrait(
        image=straight[..., :3] * matte + 0.5 * (1 - matte),
        rgba=straight,
        valid=(grid[0].abs() <= 1).all(-1).float(),
        landmarks=(marks + 1) / 2 * PORTRAIT_SIZE,
        camera=Camera.orbit(yaw, pitch, PORTRAIT_SIZE),
        coefficients=data.coefficients[row],
        yaw=yaw,
        pitch=pitch,
        roll=0.0,
        source=f"identity {int(data.input_id[row])}",
        sha256="",
    )
