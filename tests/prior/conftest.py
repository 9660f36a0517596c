"""A drawn sitter that the prior's tests share."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.portrait.types import Portrait
from tests.drawn_portraits import sitter


@pytest.fixture(scope="session")
def portrait() -> Portrait:
    """A flat-coloured head shape: skin disc, darker hair cap."""
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    head = (((x - 256) / 130) ** 2 + ((y - 250) / 190) ** 2 < 1).float()
    neck = ((x - 256).abs() < 70) & (y > 350)
    matte = torch.maximum(head, neck.float())
    colour = torch.tensor([0.8, 0.6, 0.5]).expand(512, 512, 3).clone()
    colour[:180] = torch.tensor([0.3, 0.1, 0.05])
    return sitter(colour, matte)
