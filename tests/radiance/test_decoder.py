"""What the decoder's first output means, and which samples its backward pass leaves out."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.radiance.decoder import Decoder, DensityActivation
from portrait_backend.radiance.decoder_kernel import samples_with_gradient
from portrait_backend.radiance.triplane import sample_planes


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


def test_samples_without_gradient_are_left_out() -> None:
    grad = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [0.0, float("nan")], [1.0, 0.3]])
    assert samples_with_gradient(grad).tolist() == [1, 2, 3]
    assert samples_with_gradient(torch.zeros(0, 2)).tolist() == []
    features = torch.ones(3, 8, requires_grad=True)
    raw, _ = Decoder(8, 16)(features, outputs=1)
    raw.backward(torch.tensor([0.0, 1.0, -0.5]))
    assert features.grad is not None
    assert (features.grad != 0).any(1).tolist() == [False, True, True]


def test_a_gradient_that_is_no_number_reaches_the_planes() -> None:
    planes = torch.zeros(1, 3, 1, 4, 4, 8, requires_grad=True)
    raw, _ = Decoder(8, 16)(sample_planes(planes, torch.zeros(1, 2, 3))[0], outputs=1)
    raw.backward(torch.tensor([float("nan"), 1.0]))
    assert planes.grad is not None
    assert planes.grad.isnan().any()
