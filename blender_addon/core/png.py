"""Write an image that exists only in Blender as a PNG file, without Blender: so it can be done in another thread."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_png(path: Path, pixels: NDArray[np.float32], linear: bool) -> None:
    """Write pixels (H, W, 4) as 8-bit RGBA; row 0 at the bottom, straight alpha, as Blender has them.

    linear: the values are scene-linear (float images), sRGB otherwise.
    """
    import numpy as np

    values = np.clip(np.nan_to_num(pixels[::-1]), 0, 1)
    if linear:
        colour = values[..., :3]
        values = values.copy()
        values[..., :3] = np.where(colour <= 0.0031308, colour * 12.92, 1.055 * np.maximum(colour, 1e-9) ** (1 / 2.4) - 0.055)
    data = np.round(values * 255).astype(np.uint8)
    height, width = data.shape[:2]
    rows = np.zeros((height, 1 + width * 4), np.uint8)  # every row begins with its filter, 0: none
    rows[:, 1:] = data.reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)), (b"IDAT", zlib.compress(rows.tobytes(), 3)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
