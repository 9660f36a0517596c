"""The head with phi's residual on its planes: what the renderer sees while phi and the decoder learn."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from portrait_backend.painting.surface import smoothstep
from portrait_backend.precision import bf16_autocast
from portrait_backend.radiance.decoder import FEATURES, Decoder
from portrait_backend.radiance.head import Head, TriPlane
from portrait_backend.radiance.triplane import mirror_planes, resize_planes, sample_planes, to_channels_last, to_neutral
from portrait_backend.restoration.detail_unet import DetailPreservationUNet

TONES = 4
"""Texels of the shape that one of the colour's residual spans: phi may change tones, never the photo's detail or the strands."""

BEHIND, BELOW = (0.04, -0.06), (-0.12, -0.2)
"""z and y (head units) between which the residual of the shape rises from 0 to 1: behind the ears, and below the chin. Of the rest the
photo tells more than phi: twelve validation heads, chamfer distance 4.97 mm before the stage, 4.97 with it everywhere, 4.92 so."""


def phi_input(head: Head) -> Tensor:
    """Return the neutral planes (3, channels, H, W) that phi reads: the shape's, then the colour's reduced to the same size."""
    shape = to_neutral(head.geometry.planes)
    if head.appearance is head.geometry:
        return shape
    return torch.cat([shape, F.interpolate(to_neutral(head.appearance.planes), size=shape.shape[2:], mode="area")], 1)


def residual_of(phi: DetailPreservationUNet, planes: Tensor, geometry: TriPlane) -> Tensor:
    """Return phi's residual to planes (3, channels, H, W): the mean of its answers to them and, mirrored, to their mirror image.

    geometry: says how the planes lie.
    """
    return (phi(planes).float() + _mirrored(phi(_mirrored(planes, geometry)).float(), geometry)) / 2


def _mirrored(planes: Tensor, geometry: TriPlane) -> Tensor:
    parts = planes.split(geometry.depth * geometry.channels, 1)  # the shape's, and the colour's
    return torch.cat([to_neutral(mirror_planes(to_channels_last(part, geometry.depth), geometry.axes)) for part in parts], 1)


def counts(geometry: TriPlane, size: int, front: float) -> Tensor:
    """Return how much the residual of the shape counts in planes of size x size texels: (1, 3, 1, size, size, 1) in [front, 1].

    A plane without height or depth can't tell what is below or behind: there it counts for what the plane does tell.
    """
    at = ((torch.arange(size) + 0.5) / size * 2 - 1) * geometry.half_extent
    behind, below = (smoothstep(at + geometry.centre[axis], *between) for axis, between in ((2, BEHIND), (1, BELOW)))
    share = torch.zeros(len(geometry.axes), size, size)
    for plane, (u, v, _) in zip(share, geometry.axes, strict=True):
        for axis, here in ((2, behind), (1, below)):
            if axis in (u, v):
                plane.copy_(torch.maximum(plane, here[:, None] if axis == v else here[None]))
    return front + (1 - front) * share[None, :, None, :, :, None]


class RestoredField:
    """A radiance field: the head's planes plus phi's residuals, and a decoder that may be another than the head's.

    The residuals (1, 3, D, H, W, C) are sampled beside the planes instead of being added to them: colour planes are larger, and
    resizing and copying them in every step would cost more than all the rest. `planes`: `phi_input`, if it was made before.
    `front`: the share of the shape's residual that counts where the photo looks (`counts`). `mirrored`: take the mean of phi's two
    answers (`residual_of`); training, which mirrors heads at random, learns from one.
    """

    def __init__(
        self,
        head: Head,
        phi: DetailPreservationUNet,
        decoder: Decoder | None = None,
        autocast: bool = False,
        planes: Tensor | None = None,
        front: float = 1.0,
        mirrored: bool = True,
    ) -> None:
        geometry = head.geometry
        shared, channels = head.appearance is geometry, geometry.depth * geometry.channels
        if phi.config.channels != (channels if shared else 2 * channels):
            raise ValueError(f"phi is for {phi.config.channels} channels, the head has planes of {channels}")
        with bf16_autocast(geometry.planes.device.type, autocast):
            planes = phi_input(head) if planes is None else planes
            residual = residual_of(phi, planes, geometry) if mirrored else phi(planes).float()
        self.head, self.decoder = head, decoder or head.decoder
        self.half_extent, self.surface_density = head.half_extent, head.surface_density
        shape = to_channels_last(residual[:, :channels], geometry.depth)
        self.shape = shape if front == 1 else shape * counts(geometry, residual.shape[-1], front).to(shape)
        self.colour = (
            None if shared else to_channels_last(F.avg_pool2d(residual[:, channels:], max(1, TONES // phi.config.stride)), geometry.depth)
        )

    def _sample(self, residual: Tensor, points: Tensor) -> Tensor:
        geometry = self.head.geometry
        sampled = sample_planes(residual, geometry.normalised(points)[None], geometry.axes, geometry.padding)[0]
        return sampled / 3 if geometry.reduce == "mean" else sampled

    def _inside(self, raw: Tensor, points: Tensor) -> Tensor:
        return self.head.activation(raw) * self.head.inside(points)

    def raw(self, points: Tensor) -> Tensor:
        """Raw density (N,) of points (N, 3)."""
        return self.decoder(self.head.geometry.sample(points) + self._sample(self.shape, points), outputs=1)[0]

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit at points (N, 3); 0 outside the box."""
        return self._inside(self.raw(points), points)

    def decode(self, points: Tensor, features: bool = False) -> tuple[Tensor, Tensor]:
        """Density (N,) and rgb (N, 3), or all features (N, 32), at points (N, 3)."""
        outputs = 1 + FEATURES if features else 4
        shape = self.head.geometry.sample(points) + self._sample(self.shape, points)
        if self.colour is None:
            raw, values = self.decoder(shape, outputs)
            return self._inside(raw, points), values
        raw = self.decoder(shape, outputs=1)[0]
        return self._inside(raw, points), self.decoder(self.head.appearance.sample(points) + self._sample(self.colour, points), outputs)[1]

    def merged(self) -> Head:
        """Return a head whose planes hold the residuals, enlarged as sampling reads them."""
        geometry, appearance = self.head.geometry, self.head.appearance
        shape = geometry.with_planes(geometry.planes + resize_planes(self.shape, geometry.planes.shape[3], "bilinear"))
        if self.colour is None:
            return replace(self.head.with_planes(geometry=shape), decoder=self.decoder)
        colour = appearance.with_planes(appearance.planes + resize_planes(self.colour, appearance.planes.shape[3], "bilinear"))
        return replace(self.head.with_planes(geometry=shape, appearance=colour), decoder=self.decoder)
