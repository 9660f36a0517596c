"""What the decoder's first output means."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.radiance.decoder import DensityActivation


@pytest.mark.parametrize(
    "activation",
    [
        DensityActivation(),
        DensityActivation(gain=8.0, bias=-4.0, surface=100.0),
        DensityActivation("softplus", bias=-1.0, surface=9.0, per_unit=2.0),
    ],
)
def test_the_raw_density_at_the_surface(activation: DensityActivation) -> None:
    assert float(activation(torch.tensor(activation.raw_surface))) == pytest.approx(activation.surface, rel=1e-4)
