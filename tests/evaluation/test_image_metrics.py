"""Known answers: an image against itself, and shifted, blurred and noised copies in their order."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.evaluation.image_metrics import MAX_PSNR, mask_iou, over_white, psnr, sharpness, ssim


@pytest.fixture
def image() -> Tensor:
    """A picture with large and small shapes (96, 96, 3)."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    return torch.stack([0.5 + 0.3 * torch.sin(x / 5), 0.5 + 0.3 * torch.sin(y / 3), 0.5 + 0.2 * torch.sin((x + y) / 2)], -1)


def blurred(image: Tensor, radius: int) -> Tensor:
    padded = F.pad(image.permute(2, 0, 1)[None], [radius] * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, 1)[0].permute(1, 2, 0)


def noised(image: Tensor, sigma: float) -> Tensor:
    return image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))


def test_an_image_against_itself(image: Tensor) -> None:
    assert psnr(image, image) == MAX_PSNR
    assert ssim(image, image) == pytest.approx(1, abs=1e-6)
    assert mask_iou(image[..., 0], image[..., 0]) == 1


def test_psnr_of_a_known_error(image: Tensor) -> None:
    assert psnr(image + 0.1, image) == pytest.approx(20, abs=1e-4)
    half = torch.zeros(96, 96, dtype=torch.bool)
    half[:48] = True
    worse = image.clone()
    worse[48:] += 0.5
    assert psnr(worse, image, half) == MAX_PSNR and psnr(worse, image, ~half) == pytest.approx(-20 * math.log10(0.5), abs=1e-4)
    assert ssim(worse, image, half) > ssim(worse, image, ~half)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_worse_copies_rank_lower(image: Tensor, metric: object) -> None:
    assert callable(metric)
    for copies in (
        [blurred(image, r) for r in (1, 2, 4)],
        [noised(image, s) for s in (0.01, 0.05, 0.2)],
        [torch.roll(image, k, 1) for k in (1, 3, 6)],
    ):
        values = [metric(copy, image) for copy in (image, *copies)]
        assert values == sorted(values, reverse=True) and len(set(values)) == len(values)


def test_sharpness_falls_with_blur_and_sees_the_inside_only(image: Tensor) -> None:
    mask = torch.zeros(96, 96)
    mask[16:80, 16:80] = 1
    values = [sharpness(x, mask) for x in (image, blurred(image, 1), blurred(image, 3))]
    assert None not in values and values == sorted(values, reverse=True)  # type: ignore[type-var]
    outside = torch.where(mask[..., None] > 0, image, noised(image, 1.0))
    assert sharpness(outside, mask) == pytest.approx(values[0])
    flat = torch.full_like(image, 0.5)
    assert sharpness(flat, mask) == pytest.approx(0, abs=1e-4)
    assert sharpness(image, torch.zeros(96, 96)) is None


def test_masks() -> None:
    a, b = torch.zeros(10, 10), torch.zeros(10, 10)
    a[:, :6], b[:, 4:] = 1, 1
    assert mask_iou(a, b) == pytest.approx(0.2)
    assert mask_iou(torch.zeros(4, 4), torch.zeros(4, 4)) == 1
    assert mask_iou(torch.zeros(4, 4), torch.ones(4, 4)) == 0


def test_over_white() -> None:
    assert over_white(torch.zeros(1, 1, 3), torch.zeros(1, 1)).tolist() == [[[1, 1, 1]]]
    torch.testing.assert_close(over_white(torch.full((1, 1, 3), 0.25), torch.full((1, 1), 0.5)), torch.full((1, 1, 3), 0.75))
