"""Write a texture as OpenEXR: half float, linear light; needs the extra `exr`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portrait_backend.files import atomic_path
from portrait_shared.errors import PortraitDiffusionError

REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)
"""Chromaticities of red, green, blue and white: those of sRGB."""


def check_exr() -> None:
    """Raise PortraitDiffusionError ``exr-unavailable`` where EXR can't be written."""
    if importlib.util.find_spec("OpenEXR") is None:
        hint = 'pip install "portrait-diffusion[exr]", or leave out --texture-format exr'
        raise PortraitDiffusionError("exr-unavailable", "an EXR texture needs the package OpenEXR", hint)


def write_exr(texture: NDArray[np.uint8], path: Path | str) -> None:
    """Write a texture (T, T, 3) of sRGB values as channels R, G, B of linear light in [0, 1]; equal textures give equal bytes."""
    check_exr()
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, "chromaticities": REC709}
    pixels = np.ascontiguousarray(linear(texture).astype(np.float16))
    with atomic_path(path) as temporary:
        OpenEXR.File(header, {"RGB": pixels}).write(str(temporary))


def linear(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the linear light in [0, 1] of 8-bit sRGB values (IEC 61966-2-1)."""
    encoded = np.arange(256, dtype=np.float64) / 255
    table = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.asarray(table.astype(np.float32)[values])
