"""The prepared photo that every stage reads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from portrait_backend.radiance.cameras import Camera

PORTRAIT_SIZE = 512


@dataclass(frozen=True)
class Portrait:
    """One aligned portrait; tensors are float32 on the CPU.

    image (512, 512, 3) aligned crop in [0, 1], edge padded; rgba (512, 512, 4) straight alpha, estimated
    foreground colours and matte; valid (512, 512) 1 inside the photo, 0 in the padding; landmarks
    (468, 2) pixels of the crop; camera: the reference view; coefficients (K,) of the landmark model;
    yaw, pitch, roll in degrees; source: file name; sha256 of the file; warnings: one line each; to_photo
    (2, 3) crop px -> photo px, None where there is no larger photo; photo_size: its width and height in px.
    """

    image: Tensor
    rgba: Tensor
    valid: Tensor
    landmarks: Tensor
    camera: Camera
    coefficients: Tensor
    yaw: float
    pitch: float
    roll: float
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()
    to_photo: Tensor | None = None
    photo_size: tuple[int, int] = (0, 0)

    @property
    def matte(self) -> Tensor:
        """Return the matte (512, 512) in [0, 1]."""
        return self.rgba[..., 3]
