"""Views of the head for the diffusion prior: where to look from, and rgb and normal images as the prior knows them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.diffusion import BACKGROUND
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.field import RadianceField
from portrait_backend.radiance.renderer import RenderOutput, render

PITCH = 30.0
"""Views lie within this pitch, degrees; their azimuths go all around."""
SAMPLES = 12


@dataclass(frozen=True)
class View:
    """A rendered view: azimuth and pitch in degrees, what was rendered, and rgb and normals as images (1, 3, S, S) over mid grey."""

    azimuth: float
    pitch: float
    out: RenderOutput
    rgb: Tensor
    normal: Tensor


def draw_angles(step: int, offset: float, generator: torch.Generator) -> tuple[float, float]:
    """Return azimuth and pitch in degrees of a step's view: azimuths visit the circle evenly (golden angle), pitch is uniform."""
    jitter, pitch = (float(x) for x in torch.rand(2, generator=generator, device=generator.device))
    azimuth = offset + 360 * (step * 0.6180339887) + 20 * (jitter - 0.5)
    return (azimuth + 180) % 360 - 180, PITCH * (2 * pitch - 1)


def camera_normals(normals: Tensor, camera: Camera) -> Tensor:
    """Turn world normals (H, W, 3) into camera space, x right, y up, z toward the viewer."""
    return (normals @ camera.world_to_camera[:, :3].T) * normals.new_tensor([1.0, -1.0, -1.0])


def normal_image(out: RenderOutput, camera: Camera) -> Tensor:
    """Return the normal map (1, 3, H, W) of a render as an image over mid grey."""
    assert out.normals is not None
    n = camera_normals(out.normals, camera) * 0.5 + 0.5
    alpha = out.alpha[..., None]
    return (n * alpha + BACKGROUND * (1 - alpha)).permute(2, 0, 1)[None]


def render_view(field: RadianceField, azimuth: float, pitch: float, size: int, grid: DensityGrid, memory_budget_mb: float) -> View:
    """Render a view of a head or field at `size` px; differentiable in what it is made of."""
    camera = Camera.orbit(azimuth, pitch, size).to(grid.values.device, grid.values.dtype)
    out = render(field, camera, grid=grid, samples=SAMPLES, normals=True, memory_budget_mb=memory_budget_mb)
    rgb = (out.rgb + BACKGROUND * (1 - out.alpha[..., None])).permute(2, 0, 1)[None]
    return View(azimuth, pitch, out, rgb, normal_image(out, camera))


def resized(image: Tensor, size: int) -> Tensor:
    """Resize an image (B, C, H, W) to size x size: bilinear up, area down."""
    if image.shape[-1] == size:
        return image
    if size > image.shape[-1]:
        return F.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
    return F.interpolate(image, size=(size, size), mode="area")


def matte_of_normals(image: Tensor) -> Tensor:
    """Return the matte (B, 1, H, W) that a normal image implies: the length of its vectors, 0 in mid grey.

    A denoised image is soft and its vectors short inside the figure too: lengths from 0.3 to 0.7 make the edge, half at a half.
    """
    return (((image * 2 - 1).norm(dim=1, keepdim=True) - 0.3) / 0.4).clamp(0, 1)


def clean_normals(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return a denoised normal image (B, 3, H, W) with unit vectors over mid grey, and its matte (B, 1, H, W)."""
    matte = matte_of_normals(image)
    return F.normalize(image * 2 - 1, dim=1) * 0.5 * matte + BACKGROUND, matte


def matched_colours(target: Tensor, source: Tensor, matte: Tensor) -> Tensor:
    """Return target (1, 3, H, W) with the mean and spread that source has per channel within the matte (1, 1, H, W).

    A denoiser trained on synthetic skins must not re-style the sitter: only the pattern of its colours counts.
    """
    weight = matte / matte.sum().clamp_min(1e-6)

    def statistics(image: Tensor) -> tuple[Tensor, Tensor]:
        mean = (image * weight).sum((2, 3), keepdim=True)
        return mean, ((image - mean).pow(2) * weight).sum((2, 3), keepdim=True).sqrt()

    (m, s), (m0, s0) = statistics(target), statistics(source)
    return (target - m) * (s0 / s.clamp_min(1e-3)).clamp(0.5, 2.0) + m0
