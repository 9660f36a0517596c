"""Figures of one image against another: PSNR, SSIM, mask IoU, and how sharp an image is. Images (H, W, 3) in [0, 1], masks (H, W)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

MAX_PSNR = 100.0
"""What equal images get, in dB; a mean over images stays finite."""
LUMA = (0.299, 0.587, 0.114)
EDGE_PX = 5
"""Pixels along the silhouette that sharpness leaves out, so that the outline against the background doesn't count."""


def over_white(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Return premultiplied rgb (H, W, 3) with alpha (H, W) over white, in [0, 1]."""
    return (rgb + 1 - alpha[..., None]).clamp(0, 1)


def over_grey(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Return premultiplied rgb (H, W, 3) with alpha (H, W) over mid grey, in [0, 1]."""
    return (rgb + 0.5 * (1 - alpha[..., None])).clamp(0, 1)


def as_bytes(image: Tensor) -> NDArray[np.uint8]:
    """Return an image (..., 3) in [0, 1] as 8-bit values on the CPU."""
    return np.asarray((image * 255).round().to(torch.uint8).cpu().numpy())


def psnr(image: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB, over the mask `where` if it is given; equal images get MAX_PSNR."""
    error = ((image - truth) ** 2).mean(-1)
    mean = error.mean() if where is None else error[where].mean()
    return float((-10 * mean.log10()).clamp_max(MAX_PSNR))


def ssim(image: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """Return the structural similarity (7 x 7 windows, scikit-image), over the windows centred in `where` if it is given."""
    mean, full = structural_similarity(image.cpu().numpy(), truth.cpu().numpy(), channel_axis=2, data_range=1.0, full=True)
    return float(mean) if where is None else float(torch.from_numpy(full).mean(-1)[where.cpu()].mean())


def mask_iou(mask: Tensor, truth: Tensor) -> float:
    """Return intersection over union at 0.5; two empty masks agree."""
    a, b = mask > 0.5, truth > 0.5
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


def sharpness(image: Tensor, mask: Tensor) -> float | None:
    """Return the mean absolute Laplacian of the luma inside the mask, in 1/255; None where the mask is too thin.

    Noise counts as sharp: read it beside the other figures.
    """
    solid = (mask > 0.9).float()[None, None]
    inside = -F.max_pool2d(-solid, 2 * EDGE_PX + 1, 1, EDGE_PX)[0, 0] > 0.5
    if not bool(inside.any()):
        return None
    luma = image @ image.new_tensor(LUMA)
    laplacian = F.conv2d(luma[None, None], image.new_tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]]), padding=1)[0, 0]
    return float(255 * laplacian.abs()[inside].mean())
