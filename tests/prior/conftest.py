"""A drawn sitter that the prior's tests share."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera


def face_landmarks() -> torch.Tensor:
    from portrait_backend.portrait.head_pose import load_landmark_model

    return Camera.orbit(0, 0, 512).project(load_landmark_model().mean.float())[0]


@pytest.fixture(scope="session")
def portrait() -> Portrait:
    """A flat-coloured head shape: skin disc, darker hair cap."""
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    head = (((x - 256) / 130) ** 2 + ((y - 250) / 190) ** 2 < 1).float()
    neck = ((x - 256).abs() < 70) & (y > 350)
    matte = torch.maximum(head, neck.float())
    colour = torch.tensor([0.8, 0.6, 0.5]).expand(512, 512, 3).clone()
    colour[:180] = torch.tensor([0.3, 0.1, 0.05])
    return Portrait(
        image=colour,
        rgba=torch.cat([colour, matte[..., None]], -1),
        valid=torch.ones(512, 512),
        landmarks=face_landmarks(),
        camera=Camera.orbit(0, 0, 512),
        coefficients=torch.zeros(25),
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        source="drawn",
        sha256="0" * 64,
    )
