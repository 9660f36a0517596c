"""An input view of a data set as the Portrait that the product would make of such a photo."""

from __future__ import annotations

import torch

from portrait_backend.portrait.crop import sample_straight
from portrait_backend.portrait.types import PORTRAIT_SIZE, Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.training.head_dataset import HeadDataset


def portrait_of(data: HeadDataset, row: int) -> Portrait:
    """Return an input view of the data set as the Portrait that the product would make of it."""
    s = data.similarity[row]
    straight, inside = sample_straight(data.rgba[data.input_id[row], data.input_view[row]].float() / 255, s, PORTRAIT_SIZE)
    matte = straight[..., 3:]
    yaw, pitch = (float(x) for x in torch.rad2deg(data.fitted_angles[row]))
    # landmarks matter to the product for the hair region only: map the true ones into the crop
    normalised = data.landmarks[data.input_id[row], data.input_view[row]] / data.size * 2 - 1
    marks = torch.linalg.solve(s[:, :2], (normalised - s[:, 2]).T).T
    return Portrait(
        image=straight[..., :3] * matte + 0.5 * (1 - matte),
        rgba=straight,
        valid=inside.float(),
        landmarks=(marks + 1) / 2 * PORTRAIT_SIZE,
        camera=Camera.orbit(yaw, pitch, PORTRAIT_SIZE),
        coefficients=data.coefficients[row],
        yaw=yaw,
        pitch=pitch,
        roll=0.0,
        source=f"identity {int(data.input_id[row])}",
        sha256="",
    )
