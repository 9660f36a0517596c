"""Read and write a cameras.json file (format: docs/cameras.md): named OpenCV cameras in head units."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError

FORMAT = 1
MAX_SIDE = 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ROTATION_TOLERANCE = 1e-3


def read_cameras(path: Path) -> dict[str, Camera]:
    """Return the cameras of a file by name, in file order; raises PortraitDiffusionError cameras-unreadable, cameras-invalid."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PortraitDiffusionError(
            "cameras-unreadable", f"can't read cameras from {path} ({reason})", "Give a JSON file as described in docs/cameras.md"
        ) from error
    entries = data.get("cameras") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise _invalid(path, 'it needs a list "cameras" with at least one camera')
    if data.get("format", FORMAT) != FORMAT:
        raise _invalid(path, f'"format" is {data["format"]!r}, this version reads {FORMAT}')
    cameras: dict[str, Camera] = {}
    for index, entry in enumerate(entries):
        where = f"camera {index}"
        if not isinstance(entry, dict):
            raise _invalid(path, f"{where} must be an object")
        name = entry.get("name", f"{index:03d}")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise _invalid(path, f"{where}: name {name!r} must be letters, digits, '_', '-' or '.'")
        if name.lower() in map(str.lower, cameras):
            raise _invalid(path, f"{where}: the name {name!r} is there twice")
        cameras[name] = _camera(path, f"{where} ({name})", entry)
    return cameras


def write_cameras(cameras: Mapping[str, Camera], path: Path) -> None:
    """Write cameras so that `read_cameras` returns the same ones."""
    entries = [
        {
            "name": name,
            "width": camera.width,
            "height": camera.height,
            "world_to_camera": camera.world_to_camera.tolist(),
            "intrinsics": camera.intrinsics.tolist(),
        }
        for name, camera in cameras.items()
    ]
    path.write_text(json.dumps({"format": FORMAT, "cameras": entries}, indent=2) + "\n", encoding="utf-8")


def _camera(path: Path, where: str, entry: dict[str, Any]) -> Camera:
    width, height = (entry.get(side) for side in ("width", "height"))
    for side, value in (("width", width), ("height", height)):
        if type(value) is not int or not 1 <= value <= MAX_SIDE:
            raise _invalid(path, f"{where}: {side} {value!r} must be a whole number from 1 to {MAX_SIDE}")
    pose = _matrix(path, where, entry, "world_to_camera", 3, 4)
    rotation = pose[:, :3]
    error = float((rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if error > ROTATION_TOLERANCE or torch.linalg.det(rotation) < 0:
        raise _invalid(path, f"{where}: the left 3x3 of world_to_camera must be a rotation (off by {error:.2g})")
    intrinsics = _matrix(path, where, entry, "intrinsics", 3, 3)
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or intrinsics[1, 0] != 0 or intrinsics[2].tolist() != [0, 0, 1]:
        raise _invalid(path, f"{where}: intrinsics must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0")
    assert isinstance(width, int) and isinstance(height, int)
    return Camera(pose.float(), intrinsics.float(), width, height)


def _matrix(path: Path, where: str, entry: dict[str, Any], key: str, rows: int, columns: int) -> torch.Tensor:
    values = entry.get(key)
    if key == "world_to_camera" and isinstance(values, list) and len(values) == 4 and values[3] == [0, 0, 0, 1]:
        values = values[:3]  # many tools write the whole 4x4 matrix
    if not (isinstance(values, list) and len(values) == rows and all(isinstance(row, list) and len(row) == columns for row in values)):
        raise _invalid(path, f"{where}: {key} must be {rows} rows of {columns} numbers")
    if not all(type(x) in (int, float) and math.isfinite(x) for row in values for x in row):
        raise _invalid(path, f"{where}: {key} must hold finite numbers")
    return torch.tensor(values, dtype=torch.float64)


def _invalid(path: Path, what: str) -> PortraitDiffusionError:
    return PortraitDiffusionError("cameras-invalid", f"{path.name}: {what}", "docs/cameras.md describes the format")
