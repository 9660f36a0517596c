"""A finished job's files -> plain arrays in Blender's axes, ready for foreach_set. Runs in the link's thread.

The files are our own backend's (`portrait_backend.mesh.export`): one mesh, one embedded PNG. glTF is +y up with the face
along +z; Blender is +z up with the face along -y. Vertices that the file splits at texture seams are welded: in Blender a
vertex may have another UV in each face.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MESH, RECORD, PHOTO, FRONT = "head.glb", "job.json", "photo.jpg", "views/front.png"
WANTED = (MESH, RECORD, PHOTO, FRONT)
"""The files of a result that an import needs; those after the first two may be absent."""


@dataclass(frozen=True)
class PhotoCamera:
    """The camera that took the photo, in Blender's terms.

    matrix (4, 4) camera-to-world in metres, rows; width, height of the photo in pixels; focal length and principal point in
    pixels (x right, y down).
    """

    matrix: tuple[tuple[float, ...], ...]
    width: int
    height: int
    focal: float
    centre: tuple[float, float]


@dataclass(frozen=True)
class HeadData:
    """A head as flat arrays.

    vertices (V * 3) f32 metres; corners (F * 3) i32 vertex of each corner; uvs (F * 3 * 2) f32 of each corner, origin bottom left;
    texture: a PNG file; identity: seed, settings, hashes; camera and photo: None for a job without them.
    """

    vertices: NDArray[np.float32]
    corners: NDArray[np.int32]
    uvs: NDArray[np.float32]
    texture: bytes
    mesh_sha256: str
    identity: dict[str, Any]
    camera: PhotoCamera | None
    photo: Path | None

    @property
    def faces(self) -> int:
        """Number of triangles."""
        return len(self.corners) // 3


def read_head(folder: Path) -> HeadData:
    """Read the result in `folder`; raises PortraitDiffusionError result-unreadable."""
    try:
        data = (folder / MESH).read_bytes()
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        vertices, corners, uvs, texture = parse_glb(data)
        camera = photo_camera(record)
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise PortraitDiffusionError(
            "result-unreadable", f"{folder} holds no readable head ({error})", "Fetch it again from History"
        ) from error
    photo = folder / PHOTO
    identity = {name: record.get(name) for name in ("generator", "photo", "seed", "settings", "weights")}
    sha = hashlib.sha256(data).hexdigest()
    return HeadData(vertices, corners, uvs, texture, sha, identity, camera, photo if photo.is_file() else None)


def parse_glb(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32], bytes]:
    """Return (vertices, corners, uvs, PNG) of a GLB with one mesh of one primitive, in Blender's axes, welded."""
    import numpy as np

    magic, _, length = struct.unpack_from("<4sII", data)
    if magic != b"glTF" or length != len(data):
        raise ValueError("not a complete GLB")
    json_length, _ = struct.unpack_from("<I4s", data, 12)
    document = json.loads(data[20 : 20 + json_length])
    blob = data[20 + json_length + 8 :]

    def view(index: int) -> bytes:
        entry = document["bufferViews"][index]
        start = entry.get("byteOffset", 0)
        return blob[start : start + entry["byteLength"]]

    def array(index: int, kind: str, columns: int) -> NDArray[Any]:
        accessor = document["accessors"][index]
        if accessor["componentType"] != {"<f4": 5126, "<u4": 5125}[kind]:
            raise ValueError(f"accessor {index} has component type {accessor['componentType']}")
        return np.frombuffer(view(accessor["bufferView"]), kind, accessor["count"] * columns).reshape(-1, columns)

    primitive = document["meshes"][0]["primitives"][0]
    position = array(primitive["attributes"]["POSITION"], "<f4", 3)
    uv = array(primitive["attributes"]["TEXCOORD_0"], "<f4", 2)
    index = array(primitive["indices"], "<u4", 1)[:, 0]
    image = document["images"][document["textures"][0]["source"]]
    vertices, welded = np.unique(position, axis=0, return_inverse=True)
    triangles = welded.reshape(-1)[index].reshape(-1, 3)
    proper = (triangles[:, 0] != triangles[:, 1]) & (triangles[:, 1] != triangles[:, 2]) & (triangles[:, 2] != triangles[:, 0])
    corner_uv = uv[index].reshape(-1, 3, 2)[proper]
    corner_uv = np.stack([corner_uv[..., 0], 1 - corner_uv[..., 1]], -1)
    axes = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], 1)
    return (
        np.ascontiguousarray(axes, np.float32).reshape(-1),
        np.ascontiguousarray(triangles[proper], np.int32).reshape(-1),
        np.ascontiguousarray(corner_uv, np.float32).reshape(-1),
        view(image["bufferView"]),
    )


def photo_camera(record: dict[str, Any]) -> PhotoCamera | None:
    """Return the camera of the whole photo from job.json's `camera`, None if it has none.

    The reference camera sees the aligned crop; crop_to_photo (2, 3), a turn, scale and shift, says where the crop lies in
    the photo. A pinhole camera's image under such a map is that of the same camera rolled by the turn, its focal length scaled,
    its principal point moved.
    """
    given = record.get("camera")
    if not isinstance(given, dict) or not given.get("crop_to_photo"):
        return None
    import numpy as np

    to_photo = np.array(given["crop_to_photo"], float)
    pose = np.array(given["world_to_camera"], float)
    intrinsics = np.array(given["intrinsics"], float)
    scale = float(np.hypot(to_photo[0, 0], to_photo[1, 0]))
    roll = np.eye(3)
    roll[:2, :2] = to_photo[:, :2] / scale
    rotation = roll @ pose[:, :3]
    position = -pose[:, :3].T @ pose[:, 3] * float(given["metres_per_unit"])
    to_blender = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # glTF's axes -> Blender's
    matrix = np.eye(4)
    matrix[:3, :3] = to_blender @ rotation.T @ np.diag([1.0, -1, -1])  # OpenCV looks along +z with y down, Blender along -z with y up
    matrix[:3, 3] = to_blender @ position
    centre = to_photo[:, :2] @ intrinsics[:2, 2] + to_photo[:, 2]
    return PhotoCamera(
        matrix=tuple(tuple(float(v) for v in row) for row in matrix),
        width=int(given["photo_size"][0]),
        height=int(given["photo_size"][1]),
        focal=float(intrinsics[0, 0]) * scale,
        centre=(float(centre[0]), float(centre[1])),
    )
