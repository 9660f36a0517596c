"""cameras.json and `render`: what is accepted, what is refused, and what the pictures hold."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from portrait_backend import rendering
from portrait_backend.camera_file import read_cameras, write_cameras
from portrait_backend.cli import main
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.super_resolution import SuperResolution
from portrait_shared.errors import PortraitDiffusionError
from tests.cli.fake_parts import RADIUS, BallHead

DOCS = Path(__file__).parents[2] / "docs"


def entry(name: str, camera: Camera) -> dict[str, Any]:
    matrices = {"world_to_camera": camera.world_to_camera.tolist(), "intrinsics": camera.intrinsics.tolist()}
    return {"name": name, "width": camera.width, "height": camera.height, **matrices}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cameras.json"
    cameras = [entry("front", Camera.orbit(0, 0, 64)), entry("left.low", Camera.orbit(90, -20, 48))]
    path.write_text(json.dumps({"format": 1, "cameras": cameras}))
    return path


def test_written_cameras_are_read_bit_by_bit(tmp_path: Path) -> None:
    cameras = {"front": Camera.orbit(0, 0, 64), "left.low": Camera.orbit(77, -20, 48).stretched(60, 30)}
    write_cameras(cameras, tmp_path / "cameras.json")
    read = read_cameras(tmp_path / "cameras.json")
    assert list(read) == list(cameras)
    for name, camera in cameras.items():
        assert torch.equal(read[name].world_to_camera, camera.world_to_camera)
        assert torch.equal(read[name].intrinsics, camera.intrinsics)
        assert (read[name].width, read[name].height) == (camera.width, camera.height)


def test_cameras_come_back_as_written(file: Path) -> None:
    cameras = read_cameras(file)
    assert list(cameras) == ["front", "left.low"]
    torch.testing.assert_close(cameras["left.low"].world_to_camera, Camera.orbit(90, -20, 48).world_to_camera)
    torch.testing.assert_close(cameras["front"].intrinsics, Camera.orbit(0, 0, 64).intrinsics)


def test_a_4x4_matrix_and_missing_names_are_fine(file: Path) -> None:
    data = json.loads(file.read_text())
    data["cameras"][0]["world_to_camera"].append([0, 0, 0, 1])
    del data["cameras"][0]["name"]
    file.write_text(json.dumps(data))
    assert list(read_cameras(file)) == ["000", "left.low"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("width", 0, "width 0"),
        ("height", 5000, "height 5000"),
        ("width", True, "width True"),
        ("name", "../up", "name '../up'"),
        ("name", "LEFT.LOW", "twice"),
        ("intrinsics", [[1, 0], [0, 1]], "3 rows of 3"),
        ("intrinsics", [[-9, 0, 1], [0, 9, 1], [0, 0, 1]], "fx, fy > 0"),
        ("world_to_camera", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]], "rotation"),
        ("world_to_camera", [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], "rotation"),
        ("world_to_camera", [[1, 0, 0, "a"], [0, 1, 0, 0], [0, 0, 1, 0]], "finite numbers"),
        ("world_to_camera", None, "3 rows of 4"),
    ],
)
def test_refuses_and_names_the_camera(file: Path, key: str, value: object, told: str) -> None:
    data = json.loads(file.read_text())
    data["cameras"][0][key] = copy.deepcopy(value)
    file.write_text(json.dumps(data))
    with pytest.raises(PortraitDiffusionError) as caught:
        read_cameras(file)
    assert caught.value.code == "cameras-invalid" and told in caught.value.message and "camera" in caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cameras": []}', '{"cameras": [3]}', '{"format": 2, "cameras": [{}]}'])
def test_refuses_what_is_no_camera_file(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(PortraitDiffusionError, match="cameras"):
        read_cameras(file)


def test_the_example_in_the_documentation_is_valid(tmp_path: Path) -> None:
    text = (DOCS / "cameras.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    (tmp_path / "cameras.json").write_text(example)
    camera = read_cameras(tmp_path / "cameras.json")["front"]
    torch.testing.assert_close(camera.world_to_camera, Camera.orbit(0, 0, 512).world_to_camera)
    torch.testing.assert_close(camera.intrinsics, Camera.orbit(0, 0, 512).intrinsics, atol=0.01, rtol=0)


def test_renders_every_pass(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "Head", BallHead)
    (tmp_path / "job").mkdir()
    BallHead().save(tmp_path / "job/head.safetensors")
    arguments = ["render", str(tmp_path / "job"), "--cameras", str(file), "-o", str(tmp_path / "out"), "--passes", "rgba,depth,normals"]
    assert main(arguments) == 0
    names = {f"{c}{p}" for c in ("front", "left.low") for p in (".png", "_depth.npy", "_normals.png")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {"job.json"}
    depth = np.load(tmp_path / "out/front_depth.npy")
    assert depth.shape == (64, 64) and depth.dtype == np.float32 and depth[0, 0] == 0
    assert depth[32, 32] == pytest.approx(2.7 - RADIUS, abs=1e-3)
    normals = np.asarray(Image.open(tmp_path / "out/left.low_normals.png"))
    toward = Camera.orbit(90, -20, 48).centre.numpy()
    assert np.allclose(normals[24, 24] / 127.5 - 1, toward / np.linalg.norm(toward), atol=0.05)
    assert Image.open(tmp_path / "out/left.low.png").size == (48, 48)
    assert main([*arguments[:-1], "heat"]) == 2


def test_super_resolution_draws_the_same_picture(file: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.mkdir()
    replace(ellipsoid_head(size=32), super_resolution=SuperResolution()).save(job / "head.safetensors")
    shown = []
    for how in ("direct", "super_resolution"):
        out = tmp_path / how
        arguments = ["render", str(job), "--cameras", str(file), "-o", str(out), "--upsample", how, "--passes", "rgba,normals"]
        assert main(arguments) == 0
        assert json.loads((out / "job.json").read_text())["upsample"] == how
        shown.append(np.asarray(Image.open(out / "front.png")).astype(float) / 255)
        assert Image.open(out / "left.low_normals.png").size == (48, 48)
    assert np.abs(shown[0][..., 3] - shown[1][..., 3]).mean() < 0.03
    solid = (shown[0][..., 3] > 0.9) & (shown[1][..., 3] > 0.9)
    assert 0 < np.abs(shown[0] - shown[1])[solid].mean() < 0.03


@pytest.mark.parametrize(("network", "size", "told"), [(None, 64, "no super-resolution"), (SuperResolution(), 50, "no multiple of 4")])
def test_super_resolution_that_is_impossible_is_refused(
    file: Path, tmp_path: Path, network: SuperResolution | None, size: int, told: str
) -> None:
    (tmp_path / "job").mkdir()
    replace(ellipsoid_head(size=32), super_resolution=network).save(tmp_path / "job/head.safetensors")
    write_cameras({"front": Camera.orbit(0, 0, size)}, file)
    with pytest.raises(PortraitDiffusionError) as caught:
        rendering.render_cameras(tmp_path / "job", file, tmp_path / "out", upsample="super_resolution")
    assert caught.value.code == "super-resolution-impossible" and told in caught.value.message
    assert not (tmp_path / "out").exists()
