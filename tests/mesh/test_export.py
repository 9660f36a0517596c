"""The files are what other programs expect, and the same every time."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from portrait_backend.files import atomic_path
from portrait_backend.mesh.export import export_mesh, glb_bytes, vertex_colours
from portrait_backend.mesh.exr import linear
from portrait_backend.mesh.types import HeadMesh
from portrait_shared.errors import PortraitDiffusionError

NODE = Path(__file__).parents[1] / "node"
EXTRAS = {"seed": 7, "photo": "Zoë.png"}


def test_glb_is_read_back_by_trimesh(head_mesh: HeadMesh, tmp_path: Path) -> None:
    export_mesh(head_mesh, tmp_path / "head.glb", EXTRAS)
    scene = trimesh.load(tmp_path / "head.glb", process=False)
    (mesh,) = scene.geometry.values()
    assert np.array_equal(mesh.faces, head_mesh.faces)
    assert np.allclose(mesh.vertices, head_mesh.vertices)
    assert np.allclose(mesh.vertex_normals, head_mesh.normals, atol=1e-6)
    assert np.allclose(mesh.visual.uv, head_mesh.uv, atol=1e-6)
    assert np.array_equal(np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")), head_mesh.texture)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_glb_header_and_extras(head_mesh: HeadMesh) -> None:
    data = glb_bytes(head_mesh, EXTRAS)
    assert data[:4] == b"glTF"
    assert int.from_bytes(data[8:12], "little") == len(data)
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert document["asset"] == {"version": "2.0", "generator": "Portrait Diffusion", "extras": EXTRAS}
    assert document["nodes"][0]["extras"] == EXTRAS
    (material,) = document["materials"]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert material["doubleSided"] is False


def test_glb_passes_the_khronos_validator(head_mesh: HeadMesh, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (NODE / "node_modules/gltf-validator").is_dir():
        pytest.skip("the glTF validator is not installed: npm install --prefix tests/node")
    export_mesh(head_mesh, tmp_path / "head.glb", EXTRAS)
    run = subprocess.run(
        ["node", NODE / "gltf_validate.mjs", tmp_path / "head.glb"], capture_output=True, text=True, check=True, timeout=120
    )
    report: dict[str, Any] = json.loads(run.stdout)
    assert report["issues"]["numErrors"] == 0, report["issues"]["messages"]
    assert report["issues"]["numWarnings"] == 0, report["issues"]["messages"]
    assert report["info"]["totalTriangleCount"] == len(head_mesh.faces)


def test_obj_with_material_and_texture(head_mesh: HeadMesh, tmp_path: Path) -> None:
    export_mesh(head_mesh, tmp_path / "head.obj")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head.mtl", "head.obj", "head.png"]
    mesh = trimesh.load(tmp_path / "head.obj", process=False)
    assert len(mesh.faces) == len(head_mesh.faces)
    assert np.allclose(mesh.bounds, [head_mesh.vertices.min(0), head_mesh.vertices.max(0)], atol=1e-5)
    assert np.array_equal(np.asarray(mesh.visual.material.image.convert("RGB")), head_mesh.texture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "head.png")), head_mesh.texture)


def test_ply_with_vertex_colours(head_mesh: HeadMesh, tmp_path: Path) -> None:
    export_mesh(head_mesh, tmp_path / "head.ply")
    mesh = trimesh.load(tmp_path / "head.ply", process=False)
    assert np.array_equal(mesh.faces, head_mesh.faces)
    assert np.allclose(mesh.vertices, head_mesh.vertices)
    assert np.array_equal(mesh.visual.vertex_colors[:, :3], vertex_colours(head_mesh))


def test_usd_is_read_back_by_usd(head_mesh: HeadMesh, tmp_path: Path) -> None:
    pxr = pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Sdf, Usd, UsdGeom, UsdShade

    export_mesh(head_mesh, tmp_path / "head.usd", EXTRAS)
    assert pxr and sorted(p.name for p in tmp_path.iterdir()) == ["head.png", "head.usd"]
    stage = Usd.Stage.Open(str(tmp_path / "head.usd"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert json.loads(stage.GetRootLayer().customLayerData["portraitDiffusion"]) == EXTRAS
    assert stage.GetDefaultPrim().GetPath() == "/Head"
    (mesh,) = (UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
    points = np.array(mesh.GetPointsAttr().Get())
    assert np.array_equal(points, head_mesh.vertices)
    assert np.array_equal(np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3), head_mesh.faces)
    assert set(mesh.GetFaceVertexCountsAttr().Get()) == {3} and mesh.GetSubdivisionSchemeAttr().Get() == "none"
    assert np.array_equal(np.array(mesh.GetNormalsAttr().Get()), head_mesh.normals)
    assert np.allclose(np.array(mesh.GetExtentAttr().Get()), [points.min(0), points.max(0)])
    valid, reason = UsdGeom.Mesh.ValidateTopology(mesh.GetFaceVertexIndicesAttr().Get(), mesh.GetFaceVertexCountsAttr().Get(), len(points))
    assert valid, reason
    coordinates = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    assert np.array_equal(np.array(coordinates.Get()), head_mesh.uv) and coordinates.GetInterpolation() == "vertex"
    material = UsdShade.MaterialBindingAPI(mesh).ComputeBoundMaterial()[0]
    surface = material.ComputeSurfaceSource()[0]
    image = UsdShade.Shader(surface.GetInput("diffuseColor").GetConnectedSources()[0][0].source.GetPrim())
    asset: Sdf.AssetPath = image.GetInput("file").Get()
    assert np.array_equal(np.asarray(Image.open(asset.resolvedPath)), head_mesh.texture), "the texture is found beside the layer"


def test_usd_passes_its_own_checker(head_mesh: HeadMesh, tmp_path: Path) -> None:
    validation = pytest.importorskip("pxr.UsdValidation", reason="usd-core is not installed")
    from pxr import Usd

    export_mesh(head_mesh, tmp_path / "head.usd", EXTRAS)
    context = validation.ValidationContext(validation.ValidationRegistry().GetOrLoadAllValidators())
    found = context.Validate(Usd.Stage.Open(str(tmp_path / "head.usd")))
    assert [(error.GetName(), error.GetMessage()) for error in found] == []
    (tmp_path / "head.png").unlink()
    assert context.Validate(Usd.Stage.Open(str(tmp_path / "head.usd"))), "the check can fail: the texture is gone"


@pytest.mark.parametrize("suffix", ["glb", "ply"])
def test_the_texture_as_a_file_of_its_own(head_mesh: HeadMesh, tmp_path: Path, suffix: str) -> None:
    export_mesh(head_mesh, tmp_path / f"head.{suffix}", EXTRAS, separate_texture=True)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "head.png")), head_mesh.texture)
    export_mesh(head_mesh, tmp_path / f"plain.{suffix}", EXTRAS)
    assert (tmp_path / f"head.{suffix}").read_bytes() == (tmp_path / f"plain.{suffix}").read_bytes()
    assert not (tmp_path / "plain.png").exists()


def test_the_texture_as_exr_holds_linear_light(head_mesh: HeadMesh, tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR", reason='needs OpenEXR: pip install ".[exr]"')
    for name in ("head.glb", "again.ply"):
        export_mesh(head_mesh, tmp_path / name, EXTRAS, texture_format="exr")
    assert (tmp_path / "head.exr").read_bytes() == (tmp_path / "again.exr").read_bytes() and not (tmp_path / "head.png").exists()
    file = OpenEXR.File(str(tmp_path / "head.exr"))
    pixels = file.channels()["RGB"].pixels
    assert pixels.dtype == np.float16 and pixels.shape == head_mesh.texture.shape
    encoded = pixels.astype(np.float64)  # back again, by the other half of the standard
    back = np.where(encoded <= 0.0031308, 12.92 * encoded, 1.055 * encoded ** (1 / 2.4) - 0.055)
    assert np.array_equal((255 * back).round().astype(np.uint8), head_mesh.texture), "nothing is lost, no row is swapped"
    assert file.header()["chromaticities"] == pytest.approx((0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290))


def test_linear_light() -> None:
    found = linear(np.array([0, 10, 11, 128, 188, 255], np.uint8))
    assert found == pytest.approx([0, 0.0030353, 0.0033465, 0.2158605, 0.5028865, 1], abs=1e-6)


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "usd"])
def test_equal_meshes_give_equal_bytes(head_mesh: HeadMesh, tmp_path: Path, suffix: str) -> None:
    if suffix == "usd":
        pytest.importorskip("pxr", reason="usd-core is not installed")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        export_mesh(head_mesh, tmp_path / folder / f"head.{suffix}", dict(reversed(EXTRAS.items())) if folder == "b" else EXTRAS)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_unknown_format_is_named(head_mesh: HeadMesh, tmp_path: Path) -> None:
    with pytest.raises(PortraitDiffusionError, match=r"\.fbx"):
        export_mesh(head_mesh, tmp_path / "head.fbx")


def test_atomic_path_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "result.txt"
    with atomic_path(target) as path:
        path.write_text("old")
    with pytest.raises(KeyError), atomic_path(target) as path:
        path.write_text("half")
        assert path.suffix == ".txt"
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_head_mesh_refuses_wrong_shapes(head_mesh: HeadMesh) -> None:
    with pytest.raises(ValueError, match="normals"):
        HeadMesh(head_mesh.vertices, head_mesh.faces, head_mesh.uv, head_mesh.normals[1:], head_mesh.texture)
    with pytest.raises(ValueError, match="index"):
        HeadMesh(head_mesh.vertices, head_mesh.faces + 10**6, head_mesh.uv, head_mesh.normals, head_mesh.texture)
