"""The head with phi's residual on its planes: what the renderer sees while phi and the decoder learn."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from portrait_backend.radiance.decoder import FEATURES, Decoder
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.triplane import resize_planes, sample_planes, to_channels_last, to_neutral
from portrait_backend.restoration.detail_unet import DetailPreservationUNet


class RestoredField:
    """A radiance field: the head's planes plus residuals of phi's own size, and a decoder that may be another than the head's.

    The residuals (1, 3, D, H, W, C) are sampled beside the planes instead of being added to them: colour planes are larger, and
    resizing and copying them in every step would cost more than all the rest.
    """

    def __init__(self, head: Head, phi: DetailPreservationUNet, decoder: Decoder | None = None, autocast: bool = False) -> None:
        geometry = head.geometry
        shared, channels = head.appearance is geometry, geometry.depth * geometry.channels
        if (phi.config.channels, phi.config.outputs) != (channels, channels if shared else 2 * channels):
            raise ValueError(f"phi is for {phi.config.channels} -> {phi.config.outputs} channels, the head has planes of {channels}")
        with torch.autocast(geometry.planes.device.type, torch.bfloat16, enabled=autocast):
            residual = phi(to_neutral(geometry.planes)).float()
        self.head, self.decoder = head, decoder or head.decoder
        self.half_extent, self.surface_density = head.half_extent, head.surface_density
        self.shape = to_channels_last(residual[:, :channels], geometry.depth)
        self.colour = None if shared else to_channels_last(residual[:, channels:], geometry.depth)

    def _sample(self, residual: Tensor, points: Tensor) -> Tensor:
        geometry = self.head.geometry
        sampled = sample_planes(residual, (points / self.half_extent)[None], geometry.axes)[0]
        return sampled / 3 if geometry.reduce == "mean" else sampled

    def _inside(self, raw: Tensor, points: Tensor) -> Tensor:
        return self.head.activation(raw) * (points.abs() <= self.half_extent).all(-1)

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) per head unit at points (N, 3); 0 outside the box."""
        features = self.head.geometry.sample(points) + self._sample(self.shape, points)
        return self._inside(self.decoder(features, outputs=1)[0], points)

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
        """Return a head whose planes hold the residuals."""
        geometry, appearance = self.head.geometry, self.head.appearance
        shape = geometry.with_planes(geometry.planes + resize_planes(self.shape, geometry.planes.shape[3]))
        if self.colour is None:
            return replace(self.head.with_planes(geometry=shape), decoder=self.decoder)
        colour = appearance.with_planes(appearance.planes + resize_planes(self.colour, appearance.planes.shape[3]))
        return replace(self.head.with_planes(geometry=shape, appearance=colour), decoder=self.decoder)
