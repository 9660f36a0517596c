"""Write a HeadMesh as USD: a binary layer, and beside it its texture; needs the extra `usd`.

Metres, +y up, the face toward +z; one mesh with a UsdPreviewSurface. Schemas: openusd.org, UsdGeom, UsdShade, UsdPreviewSurface.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from portrait_backend.files import atomic_path
from portrait_backend.mesh.types import HeadMesh
from portrait_shared.errors import PortraitDiffusionError

ROOT = "/Head"
EXTRAS = "portraitDiffusion"
"""Key of the layer's custom data: JSON text."""


def check_usd() -> None:
    """Raise PortraitDiffusionError ``usd-unavailable`` where USD can't be written."""
    if importlib.util.find_spec("pxr") is None:
        raise PortraitDiffusionError("usd-unavailable", "USD needs the package usd-core", "pip install usd-core, or use --format glb")


def write_usd(mesh: HeadMesh, path: Path | str, texture: str, roughness: float, extras: Mapping[str, Any] | None = None) -> None:
    """Write a USD layer whose material reads the image file `texture` beside it; `extras` (JSON) go into the layer's custom data."""
    check_usd()
    from pxr import Sdf, Usd, UsdGeom

    layer = Sdf.Layer.CreateAnonymous(".usdc")
    stage = Usd.Stage.Open(layer)
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, UsdGeom.LinearUnits.meters)
    root = UsdGeom.Xform.Define(stage, ROOT)
    stage.SetDefaultPrim(root.GetPrim())
    Usd.ModelAPI(root.GetPrim()).SetKind("component")
    _bind(stage, _geometry(stage, mesh), texture, roughness)
    if extras:
        layer.customLayerData = {EXTRAS: json.dumps(extras, sort_keys=True, ensure_ascii=False)}
    with atomic_path(path) as temporary:
        if not layer.Export(str(temporary)):
            raise OSError(f"USD could not write {path}")


def _geometry(stage: Any, mesh: HeadMesh) -> Any:
    from pxr import Sdf, UsdGeom, Vt

    def vectors(values: Any) -> Any:
        return np.ascontiguousarray(values, np.float32)

    made = UsdGeom.Mesh.Define(stage, f"{ROOT}/Mesh")
    made.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    made.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(vectors(mesh.vertices)))
    made.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(vectors([mesh.vertices.min(0), mesh.vertices.max(0)])))
    made.CreateFaceVertexCountsAttr(Vt.IntArray(len(mesh.faces), 3))
    made.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(np.ascontiguousarray(mesh.faces.reshape(-1), np.int32)))
    made.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(vectors(mesh.normals)))
    made.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    coordinates = UsdGeom.PrimvarsAPI(made).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.vertex)
    coordinates.Set(Vt.Vec2fArray.FromNumpy(vectors(mesh.uv)))
    return made


def _bind(stage: Any, mesh: Any, texture: str, roughness: float) -> None:
    """Give the mesh a material: the texture as the diffuse colour of a preview surface."""
    from pxr import Sdf, UsdShade

    path, types = f"{ROOT}/Material", Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, path)

    def shader(name: str, kind: str, **inputs: tuple[Any, Any]) -> Any:
        made = UsdShade.Shader.Define(stage, f"{path}/{name}")
        made.CreateIdAttr(kind)
        for key, (value_type, value) in inputs.items():
            made.CreateInput(key, value_type).Set(value)
        return made

    coordinates = shader("Coordinates", "UsdPrimvarReader_float2", varname=(types.String, "st"))
    wrap = dict.fromkeys(("wrapS", "wrapT"), (types.Token, "clamp"))
    image = shader("Texture", "UsdUVTexture", file=(types.Asset, f"./{texture}"), sourceColorSpace=(types.Token, "sRGB"), **wrap)
    image.CreateInput("st", types.Float2).ConnectToSource(coordinates.CreateOutput("result", types.Float2))
    surface = shader("Surface", "UsdPreviewSurface", roughness=(types.Float, roughness), metallic=(types.Float, 0.0))
    surface.CreateInput("diffuseColor", types.Color3f).ConnectToSource(image.CreateOutput("rgb", types.Float3))
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", types.Token))
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
