"""Pack a mesh for the viewer of the report (`page/viewer.js`): 16-bit positions and UVs, 8-bit normals and colours, a JPEG texture.

The steps of 1/65535 of a head are 6 micrometres; the GLB itself is untouched.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from portrait_backend.evaluation.image_metrics import as_bytes
from portrait_backend.evaluation.mesh_file import MeshHead, MeshPart

MAX_TEXTURE = 2048
JPEG_QUALITY = 90


def viewer_mesh(mesh: MeshHead) -> list[dict[str, Any]]:
    """Return the parts of a mesh as JSON data for the viewer."""
    return [_packed(part) for part in mesh.parts]


def _packed(part: MeshPart) -> dict[str, Any]:
    return {
        "position": _steps(part.vertices),
        "uv": _steps(part.uv),
        "normal": _base64((part.normals * 127).round().to(torch.int8).numpy()),
        "colour": _base64(as_bytes(part.colours.clamp(0, 1))),
        "index": _base64(part.faces.reshape(-1).numpy().astype("<u4")),
        "texture": None if part.texture is None else image_url(as_bytes(part.texture), MAX_TEXTURE),
    }


def image_url(image: NDArray[np.uint8], largest: int) -> str:
    """Return an image (H, W, 3) as a data URL, its longer side at most `largest` px."""
    picture = Image.fromarray(image)
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _steps(values: Tensor) -> dict[str, Any]:
    """Return columns (N, C) in 16-bit steps between their lowest and highest value."""
    low, high = values.amin(0), values.amax(0)
    steps = ((values - low) / (high - low).clamp_min(1e-12) * 65535).round().numpy().astype("<u2")
    return {"data": _base64(steps), "low": low.tolist(), "high": high.tolist()}


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
