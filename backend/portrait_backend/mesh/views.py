"""What a posed image knows about points of the surface: a colour, and how far to trust it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from portrait_backend.geometry.rasterise import rasterise
from portrait_backend.portrait.collar import Collar
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera

PHOTO_PRIORITY = 100
REFERENCE_SIZE = 512
"""The pixel lengths below hold for images of this width and scale with it."""
MATTE_FEATHER = (1.5, 9.0)
"""Pixels inside the solid matte over which trust rises from 0 to 1."""
FAR_FEATHER, NEAR_FEATHER = (1.0, 5.0), (0.0, 1.5)
"""Pixels from a depth edge over which trust rises from 0 to 1, on its far and its near side.

Photo and mesh never agree to the pixel there; on the far side the colours of what is in front would stick."""
EDGE_REACH = 4
"""Pixels around in which something nearer puts a point on the far side."""
SOLID_MATTE = 0.9
DEPTH_EDGE = 0.03
"""Depth range (head units) in 3 x 3 pixels that makes a depth edge; a surface at 80 degrees stays below."""
DEPTH_BIAS = 0.006
"""A point this much behind the z-buffer (head units) still counts as seen."""
COSINE_FEATHER = (0.3, 0.65)
"""Cosine between normal and direction to the camera over which trust rises from 0 to 1 (73 to 49 degrees): pixels that look at a place
more askew are smeared over it."""


FRONTALITY = 16
"""Power of the cosine by which equal views are averaged: the one that looks at a point most squarely decides, its neighbours only soften
the change-over. Images of a ring 28 degrees apart never agree to the pixel, and an even average would blur what each of them shows."""

NOTHING = 1e-24
"""A joint weight below this is none: the sixteenth power of a grazing cosine is small, but its view may be the only one."""


@dataclass(frozen=True)
class ProjectedView:
    """A posed image to bake: image (H, W, 3) foreground colours in [0, 1], matte (H, W), valid (H, W), its camera.

    Views of higher priority cover those of lower; equal ones are averaged by `weight`, trust and how squarely they look at the point.

    change (H, W, 3): how the image differs from the field's own colours. Where it is given the bake adds it to those: they are finer in
    a texture than in any view. Views of one priority all have it or all lack it.

    hidden: how surely (N,) the image shows something that stands before the surface's points (N, 3), such as a collar; None: nowhere.
    """

    image: Tensor
    matte: Tensor
    valid: Tensor
    camera: Camera
    priority: int = 0
    weight: float = 1.0
    change: Tensor | None = None
    hidden: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if tuple(self.image.shape) != (*size, 3) or tuple(self.matte.shape) != size or tuple(self.valid.shape) != size:
            raise ValueError(
                f"ProjectedView needs image {(*size, 3)}, matte and valid {size} to fit its camera, "
                f"got {tuple(self.image.shape)}, {tuple(self.matte.shape)}, {tuple(self.valid.shape)}"
            )
        if self.change is not None and self.change.shape != self.image.shape:
            raise ValueError(f"ProjectedView needs a change like its image {tuple(self.image.shape)}, got {tuple(self.change.shape)}")


def photo_view(portrait: Portrait) -> ProjectedView:
    """Return the photo as the view of highest priority."""
    return ProjectedView(
        portrait.rgba[..., :3], portrait.matte, portrait.valid, portrait.camera, PHOTO_PRIORITY, hidden=Collar(portrait).hides
    )


def smoothstep(value: Tensor, low: float, high: float) -> Tensor:
    """Return 0 below low, 1 above high, and the cubic 3t^2 - 2t^3 between."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


class Projector:
    """A view and the z-buffer of the mesh in it; vertices (V, 3) head units, faces (F, 3)."""

    def __init__(self, view: ProjectedView, vertices: Tensor, faces: Tensor) -> None:
        self.view = view
        camera = view.camera
        pixels, z = camera.project(vertices)
        depth = rasterise(torch.cat([pixels, z[:, None]], 1), faces, camera.height, camera.width).depth
        high = F.max_pool2d(depth[None, None], 3, stride=1, padding=1)[0, 0]
        low = -F.max_pool2d(-depth[None, None], 3, stride=1, padding=1)[0, 0]
        scale = camera.width / REFERENCE_SIZE
        edge = ~torch.isfinite(high) | (high - low > DEPTH_EDGE)
        solid = (view.matte >= SOLID_MATTE) & (view.valid >= 0.5)
        trust = _rise(solid, MATTE_FEATHER, scale)
        shown = view.image if view.change is None else view.change
        self.maps = torch.cat(
            [shown.permute(2, 0, 1), torch.stack([trust * _rise(~edge, feather, scale) for feather in (FAR_FEATHER, NEAR_FEATHER)])]
        )
        window = 2 * round(EDGE_REACH * scale) + 1
        nearest = -F.max_pool2d(-depth[None, None], window, stride=1, padding=window // 2)[0, 0]
        self.depths = torch.stack([torch.where(torch.isfinite(high), high, depth.nan_to_num(posinf=0.0)), nearest.nan_to_num(posinf=0.0)])

    def sample(self, points: Tensor, normals: Tensor, smooth_normals: Tensor) -> tuple[Tensor, Tensor]:
        """Return colours, or their changes, (N, 3) and trust (N,) in [0, 1] of points (N, 3) with unit normals (N, 3).

        smooth_normals (N, 3), the low-frequency normals, decide the feathering by angle; the true ones only cull.
        """
        camera = self.view.camera
        pixels, z = camera.project(points)
        size = torch.tensor([camera.width, camera.height], dtype=pixels.dtype)
        inside = ((pixels > 0) & (pixels < size)).all(1) & (z > 0)
        grid = (2 * pixels / size - 1).clamp(-2, 2)[None, None]
        sampled = F.grid_sample(self.maps[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T
        depth, nearest = F.grid_sample(self.depths[None], grid, mode="nearest", padding_mode="border", align_corners=False)[0, :, 0]
        to_camera = F.normalize(camera.centre - points, dim=1)
        angle = smoothstep((smooth_normals * to_camera).sum(1), *COSINE_FEATHER) * smoothstep((normals * to_camera).sum(1), 0.0, 0.25)
        seen = inside & (z <= depth + DEPTH_BIAS)
        trust = torch.where(z > nearest + DEPTH_EDGE, sampled[:, 3], sampled[:, 4])
        if self.view.hidden is not None:
            trust = trust * (1 - self.view.hidden(points))
        return sampled[:, :3], trust * angle * seen


def _rise(region: Tensor, feather: tuple[float, float], scale: float) -> Tensor:
    """Return (H, W): 0 outside `region`, rising to 1 with the distance from its border (the image's border included)."""
    padded: NDArray[np.bool_] = np.pad(region.numpy(), 1)
    distance = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    return smoothstep(torch.from_numpy(distance).float(), feather[0] * scale, feather[1] * scale)


def blend_views(projectors: list[Projector], points: Tensor, normals: Tensor, smooth_normals: Tensor) -> tuple[Tensor, Tensor]:
    """Average views of equal priority by squared trust and a power of the cosine: colours (or changes) (N, 3), joint trust (N,)."""
    total, weights, doubt = torch.zeros(len(points), 3), torch.zeros(len(points), 1), torch.ones(len(points))
    for projector in projectors:
        colour, trust = projector.sample(points, normals, smooth_normals)
        squarely = (smooth_normals * F.normalize(projector.view.camera.centre - points, dim=1)).sum(1).clamp_min(0)
        weight = (projector.view.weight * trust**2 * squarely**FRONTALITY)[:, None]
        total, weights, doubt = total + weight * colour, weights + weight, doubt * (1 - trust)
    return total / weights.clamp_min(NOTHING), (1 - doubt) * (weights[:, 0] > NOTHING)
