"""Write a HeadMesh as GLB (texture embedded), OBJ (+ mtl + png), USD (+ png) or PLY (vertex colours); equal meshes give equal bytes.

+y up, the face toward +z, metres. GLB layout: glTF 2.0 specification, section 4.4 "Binary glTF".
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from portrait_backend.files import atomic_path
from portrait_backend.mesh.exr import write_exr
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.mesh.usd import write_usd
from portrait_shared.errors import PortraitDiffusionError

GENERATOR = "Portrait Diffusion"
PNG_LEVEL = 4
"""zlib's level for textures: less than half the time of the usual 6 for files that are a hundredth larger."""
ROUGHNESS = 0.8
READS_TEXTURE = (".obj", ".usd")
FLOAT, UNSIGNED_INT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963


def export_mesh(
    mesh: HeadMesh, path: Path | str, extras: Mapping[str, Any] | None = None, separate_texture: bool = False, texture_format: str = "png"
) -> None:
    """Write `mesh` in the format that the suffix of `path` names: .glb, .obj, .usd or .ply; `extras` go into a GLB or USD only.

    OBJ and USD read their texture from a PNG of the same name; `separate_texture` writes it beside the others too.
    texture_format "exr" writes an EXR of the same name besides.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".glb":
        write_glb(mesh, path, extras)
    elif suffix == ".obj":
        write_obj(mesh, path)
    elif suffix == ".usd":
        write_usd(mesh, path, path.with_suffix(".png").name, ROUGHNESS, extras)
    elif suffix == ".ply":
        write_ply(mesh, path)
    else:
        raise PortraitDiffusionError(
            "unknown-mesh-format", f"no mesh format has the suffix '{path.suffix}'", "Use .glb, .obj, .usd or .ply"
        )
    if separate_texture or suffix in READS_TEXTURE:
        with atomic_path(path.with_suffix(".png")) as temporary:
            temporary.write_bytes(png_bytes(mesh.texture))
    if texture_format == "exr":
        write_exr(mesh.texture, path.with_suffix(".exr"))


def write_glb(mesh: HeadMesh, path: Path | str, extras: Mapping[str, Any] | None = None) -> None:
    """Write a binary glTF with one node, mesh, material and embedded PNG; `extras` (JSON) go to the asset and to the node."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(glb_bytes(mesh, extras))


def glb_bytes(mesh: HeadMesh, extras: Mapping[str, Any] | None = None) -> bytes:
    """Return the binary glTF file of `mesh`."""
    uv = mesh.uv.copy()
    uv[:, 1] = 1 - uv[:, 1]
    arrays: list[NDArray[Any]] = [mesh.vertices, mesh.normals, uv, mesh.faces.reshape(-1)]
    chunks = [a.astype("<u4" if a.dtype.kind == "i" else "<f4").tobytes() for a in arrays] + [png_bytes(mesh.texture)]
    views, blob = [], b""
    for number, chunk in enumerate(chunks):
        view: dict[str, int] = {"buffer": 0, "byteOffset": len(blob), "byteLength": len(chunk)}
        if number < 4:
            view["target"] = ELEMENT_ARRAY_BUFFER if number == 3 else ARRAY_BUFFER
        views.append(view)
        blob += chunk + b"\0" * (-len(chunk) % 4)
    document = _document(mesh, views, len(blob), dict(extras or {}))
    header = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    header += b" " * (-len(header) % 4)
    length = 12 + 8 + len(header) + 8 + len(blob)
    return (
        struct.pack("<4sII", b"glTF", 2, length)
        + struct.pack("<I4s", len(header), b"JSON")
        + header
        + struct.pack("<I4s", len(blob), b"BIN\0")
        + blob
    )


def _document(mesh: HeadMesh, views: list[dict[str, int]], size: int, extras: dict[str, Any]) -> dict[str, Any]:
    count = len(mesh.vertices)
    position = mesh.vertices.astype(np.float32)
    accessors: list[dict[str, Any]] = [
        {
            "bufferView": 0,
            "componentType": FLOAT,
            "count": count,
            "type": "VEC3",
            "min": position.min(0).tolist(),
            "max": position.max(0).tolist(),
        },
        {"bufferView": 1, "componentType": FLOAT, "count": count, "type": "VEC3"},
        {"bufferView": 2, "componentType": FLOAT, "count": count, "type": "VEC2"},
        {"bufferView": 3, "componentType": UNSIGNED_INT, "count": mesh.faces.size, "type": "SCALAR"},
    ]
    asset: dict[str, Any] = {"version": "2.0", "generator": GENERATOR}
    node: dict[str, Any] = {"mesh": 0, "name": "Head"}
    if extras:
        asset["extras"] = node["extras"] = extras
    primitive = {"attributes": {"POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 2}, "indices": 3, "material": 0, "mode": 4}
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    return {
        "asset": asset,
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"name": "Head", "primitives": [primitive]}],
        "materials": [{"name": "Head", "pbrMetallicRoughness": surface, "doubleSided": False}],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
        "images": [{"bufferView": 4, "mimeType": "image/png", "name": "head"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": size}],
    }


def png_bytes(texture: NDArray[np.uint8]) -> bytes:
    """Return the texture (T, T, 3) as a PNG without time stamps."""
    buffer = io.BytesIO()
    Image.fromarray(texture).save(buffer, format="PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def write_obj(mesh: HeadMesh, path: Path | str) -> None:
    """Write an OBJ, and beside it its material (.mtl) that reads the texture (.png) of the same name."""
    path = Path(path)
    material = f"# {GENERATOR}\nnewmtl Head\nKd 1 1 1\nKs 0.04 0.04 0.04\nNs 30\nmap_Kd {path.stem}.png\n"
    with atomic_path(path.with_suffix(".mtl")) as temporary:
        temporary.write_text(material, encoding="utf-8")
    lines = [f"# {GENERATOR}: metres, +y up, the face looks along +z", f"mtllib {path.stem}.mtl", "o Head", "usemtl Head"]
    lines += ["v {:.6f} {:.6f} {:.6f}".format(*row) for row in mesh.vertices.tolist()]
    lines += ["vt {:.6f} {:.6f}".format(*row) for row in mesh.uv.tolist()]
    lines += ["vn {:.5f} {:.5f} {:.5f}".format(*row) for row in mesh.normals.tolist()]
    lines += ["f {0}/{0}/{0} {1}/{1}/{1} {2}/{2}/{2}".format(*row) for row in (mesh.faces + 1).tolist()]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_ply(mesh: HeadMesh, path: Path | str) -> None:
    """Write a binary PLY whose vertices carry normals and the texture's colours."""
    vertex = np.empty(len(mesh.vertices), dtype=[("position", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    vertex["position"], vertex["normal"], vertex["colour"] = mesh.vertices, mesh.normals, vertex_colours(mesh)
    face = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, mesh.faces
    properties = [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {GENERATOR}: metres, +y up, the face looks along +z",
        f"element vertex {len(vertex)}",
    ]
    header += [*properties, f"element face {len(face)}", "property list uchar int vertex_indices", "end_header", ""]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(header).encode("ascii") + vertex.tobytes() + face.tobytes())


def vertex_colours(mesh: HeadMesh) -> NDArray[np.uint8]:
    """Return (V, 3) uint8: the texel under each vertex."""
    size = mesh.texture.shape[0]
    column = np.clip((mesh.uv[:, 0] * size).astype(np.int64), 0, size - 1)
    row = np.clip(((1 - mesh.uv[:, 1]) * size).astype(np.int64), 0, size - 1)
    return np.asarray(mesh.texture[row, column])
