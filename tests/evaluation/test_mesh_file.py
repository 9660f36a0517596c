"""Meshes of any tool render as what they are: a ball's depth, normals and colours; several materials; bad files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from portrait_backend.evaluation.candidates import ViewImages, find_peer, load_peer
from portrait_backend.evaluation.geometry_metrics import depth_error_mm, normal_error_degrees
from portrait_backend.evaluation.image_metrics import mask_iou, psnr
from portrait_backend.evaluation.mesh_file import MeshHead, from_head_mesh, load_mesh, load_own_mesh
from portrait_backend.mesh.export import export_mesh
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_shared.errors import PortraitDiffusionError
from tests.evaluation.balls import PaintedBall, ball_mesh


def textured_ball(radius: float = 0.3) -> HeadMesh:
    """A ball in metres whose texture is red on the left half of its image, green on the right."""
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=radius * METRES_PER_UNIT)
    vertices = np.array(sphere.vertices, np.float32)
    normals = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    uv = (normals[:, :2] / 2 + 0.5).astype(np.float32)
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:, :32, 0] = texture[:, 32:, 1] = 200
    return HeadMesh(vertices, np.array(sphere.faces, np.int64), uv, normals, texture)


def test_a_ball_of_triangles_is_the_ball() -> None:
    camera = Camera.orbit(30, 20, 128)
    exact, mesh = PaintedBall().render(camera, normals=True), ball_mesh().render(camera, normals=True)
    assert mesh.normals is not None and exact.normals is not None
    inside = (mesh.alpha > 0.99) & (exact.alpha > 0.5)
    assert mask_iou(mesh.alpha, exact.alpha) > 0.98
    assert depth_error_mm(mesh.depth, exact.depth, inside) < 0.3  # type: ignore[operator]
    assert normal_error_degrees(mesh.normals, exact.normals, inside) < 1  # type: ignore[operator]
    assert psnr(mesh.rgb, exact.rgb, inside) > 40
    assert float(mesh.alpha.min()) == 0 and ((mesh.alpha > 0) & (mesh.alpha < 1)).any(), "the outline is smooth"


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_our_own_files_come_back_in_head_units(tmp_path: Path, suffix: str) -> None:
    mesh = textured_ball()
    export_mesh(mesh, tmp_path / f"head.{suffix}")
    camera = Camera.orbit(0, 0, 64)
    read, direct = (head.render(camera) for head in (load_own_mesh(tmp_path / f"head.{suffix}"), from_head_mesh(mesh)))
    torch.testing.assert_close(read.rgb, direct.rgb, atol=2e-3, rtol=0)
    torch.testing.assert_close(read.depth, direct.depth, atol=1e-4, rtol=0)
    assert float(direct.depth[32, 32]) == pytest.approx(2.4, abs=0.01)
    left, right = direct.rgb[32, 24], direct.rgb[32, 40]
    torch.testing.assert_close(left, torch.tensor([200 / 255, 0, 0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(right, torch.tensor([0, 200 / 255, 0]), atol=1e-3, rtol=0)


def test_vertex_colours_are_read(tmp_path: Path) -> None:
    export_mesh(textured_ball(), tmp_path / "head.ply")
    view = load_own_mesh(tmp_path / "head.ply").render(Camera.orbit(0, 0, 64))
    torch.testing.assert_close(view.rgb[32, 22], torch.tensor([200 / 255, 0, 0]), atol=1e-3, rtol=0)


def test_several_parts_with_transforms_and_plain_colours(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    for x, colour in ((-0.2, [255, 0, 0, 255]), (0.2, [0, 55, 255, 255])):
        box = trimesh.creation.box((0.2, 0.2, 0.2))
        box.visual = trimesh.visual.TextureVisuals(
            material=trimesh.visual.material.PBRMaterial(baseColorFactor=colour), uv=np.zeros((8, 2))
        )
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix((x, 0, 0)))
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb")
    assert len(mesh.parts) == 2
    view = mesh.render(Camera.orbit(0, 0, 64))
    at = {name: view.rgb[32, column].tolist() for name, column in (("left", 18), ("right", 46), ("between", 32))}
    assert at["left"] == [1, 0, 0] and at["between"] == [0, 0, 0]
    assert at["right"] == pytest.approx([0, 128 / 255, 1], abs=0.004), "linear 55 / 255 is displayed as 128 / 255"


def test_a_transformed_mesh_moves_with_its_normals() -> None:
    turn = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    mesh = ball_mesh().transformed(0.5, turn, torch.tensor([0.1, 0, 0]))
    (part,) = mesh.parts
    torch.testing.assert_close((part.vertices - torch.tensor([0.1, 0, 0])) / 0.15, part.normals, atol=1e-5, rtol=0)


@pytest.mark.parametrize("content", [b"", b"no mesh", b"glTF\x02\x00\x00\x00"])
def test_bad_files_are_named(tmp_path: Path, content: bytes) -> None:
    for name in ("bad.glb", "bad.obj"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PortraitDiffusionError, match=name) as caught:
            load_mesh(tmp_path / name)
        assert caught.value.code == "mesh-unreadable"


def test_peers_are_found_by_the_name_of_the_photo(tmp_path: Path) -> None:
    export_mesh(textured_ball(), tmp_path / "anna.glb")
    (tmp_path / "ben").mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "ben/front.png")
    assert find_peer(tmp_path, "anna") == tmp_path / "anna.glb"
    assert find_peer(tmp_path, "ben") == tmp_path / "ben"
    assert find_peer(tmp_path, "carla") is None
    assert find_peer(tmp_path / "anna.glb", "whoever") == tmp_path / "anna.glb"
    assert find_peer(tmp_path / "ben", "whoever") == tmp_path / "ben"
    assert isinstance(load_peer(tmp_path / "anna.glb"), MeshHead)
    images = load_peer(tmp_path / "ben")
    assert isinstance(images, ViewImages) and images.images["front"].shape == (8, 8, 4)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/left.png").write_bytes(b"no image")
    for folder in ("empty", "broken"):
        with pytest.raises(PortraitDiffusionError) as caught:
            load_peer(tmp_path / folder)
        assert caught.value.code == "peer-unreadable"
