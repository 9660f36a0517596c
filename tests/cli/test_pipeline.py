"""The pipeline with an analytic head: what it writes, that it repeats, and that cancelling leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import portrait_backend
from portrait_backend import stages
from portrait_backend.camera_file import read_cameras
from portrait_backend.context import Cancelled, Progress, cpu_context
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.outputs import straight_rgba8, write_turntable
from portrait_backend.radiance.cameras import Camera
from portrait_backend.stages import RUNNERS
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import OutputSettings, Settings, to_dict
from tests.cli import fake_parts

QUICK = Settings(output=OutputSettings(view_size=64, turntable_frames=4, turntable_size=64))


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_parts.install(monkeypatch)
    path = tmp_path / "someone.png"
    path.write_bytes(b"photo")
    return path


def test_writes_everything_that_is_promised(photo: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = portrait_backend.generate(photo, QUICK, on_progress=seen.append, output=tmp_path / "out")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    views = {f"views/{n}.png" for n in ("front", "left_front", "left", "back", "right", "right_front", "top")}
    assert names == {"head.glb", "head.safetensors", "turntable.gif", "cameras.json", "job.json"} | views
    record = json.loads((tmp_path / "out/job.json").read_text())
    assert record == result.record and record["files"] == sorted(names - {"job.json"})
    assert record["photo"] == {"name": "someone.png", "sha256": "ab" * 32}
    assert record["settings"] == to_dict(QUICK) and record["seed"] == 0
    assert [s["stage"] for s in record["stages"]] == ["portrait", "prior", "mesh", "views", "turntable"]
    assert all(s["seconds"] >= 0 and s["peak_memory_mb"] > 50 for s in record["stages"])
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] or record["versions"]["torch"] == torch.__version__
    assert result.warnings == ["two faces: the largest was taken"]
    assert list(dict.fromkeys(p.stage for p in seen)) == ["portrait", "prior", "mesh", "views", "turntable"]
    assert all(p.step <= p.steps for p in seen)


def test_cameras_of_all_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The views' cameras render the very views again; the photo's shows the head where it is in the photo's copy."""
    fake_parts.install(monkeypatch)
    fake_parts.install_later_stages(monkeypatch)
    turn, scale = torch.tensor([[0.8, -0.6], [0.6, 0.8]]), 1.5
    to_photo = torch.cat([turn * scale, torch.tensor([[700.0], [900.0]])], 1)
    placed = replace(fake_parts.portrait(), to_photo=to_photo, photo_size=(3000, 4000))
    monkeypatch.setattr(sys.modules["portrait_backend.portrait.align"], "prepare_portrait", lambda photo, context: placed)
    photo = tmp_path / "someone.png"
    Image.new("RGB", (3000, 4000)).save(photo)
    settings = replace(QUICK, stages=("prior", "restoration", "refinement"))
    portrait_backend.generate(photo, settings, output=tmp_path / "out")
    cameras = read_cameras(tmp_path / "out/cameras.json")
    assert list(cameras) == ["front", "left_front", "left", "back", "right", "right_front", "top", "photo", "ring_01"]
    assert torch.equal(cameras["ring_01"].world_to_camera, Camera.orbit(30, 5, 8).world_to_camera)
    seen = fake_parts.BallHead().render(cameras["left_front"])
    view = np.asarray(Image.open(tmp_path / "out/views/left_front.png"))
    assert np.array_equal(straight_rgba8(seen.rgb, seen.alpha), view)
    with Image.open(tmp_path / "out/photo.jpg") as copy:
        assert (cameras["photo"].width, cameras["photo"].height) == copy.size == (1536, 2048)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.1, 0.3], [-0.3, 0.2, -0.1]])
    crop, depth = placed.camera.project(points)
    pixels, same_depth = cameras["photo"].project(points)
    expected = (crop @ to_photo[:, :2].T + to_photo[:, 2]) * (2048 / 4000)
    assert torch.allclose(pixels, expected, atol=0.05) and torch.allclose(depth, same_depth, atol=1e-5)


def test_left_is_the_subjects_left_and_colours_are_straight(photo: Path, tmp_path: Path) -> None:
    portrait_backend.generate(photo, QUICK, output=tmp_path / "out")

    def view(name: str) -> np.ndarray:
        image = Image.open(tmp_path / f"out/views/{name}.png")
        assert image.size == (64, 64) and image.mode == "RGBA"
        return np.asarray(image)

    red, blue = (np.rint(np.array(c) * 255) for c in (fake_parts.RED, fake_parts.BLUE))
    assert np.allclose(view("left")[32, 32, :3], red, atol=1) and np.allclose(view("right")[32, 32, :3], blue, atol=1)
    front, back = view("front"), view("back")
    assert np.allclose(front[32, 40, :3], red, atol=1) and np.allclose(back[32, 24, :3], red, atol=1)
    assert front[32, 32, 3] == 255 and front[0, 0].tolist() == [0, 0, 0, 0]


def halves() -> HeadMesh:
    """An upright octahedron, red on the subject's left (+x) and blue on the right."""
    tip, vertices, uv = 0.1, [], []
    for x in (tip, -tip):
        vertices += [[x, 0, 0], [0, tip, 0], [0, 0, tip], [0, -tip, 0], [0, 0, -tip]]
        uv += [[0.25 if x > 0 else 0.75, 0.5]] * 5
    corners = np.array(vertices, np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1], [5, 2, 1], [5, 3, 2], [5, 4, 3], [5, 1, 4]])
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:, :32], texture[:, 32:] = (200, 50, 25), (25, 50, 200)
    return HeadMesh(corners, faces, np.array(uv, np.float32), corners / tip, texture)


def test_the_turntable_turns_the_mesh_once(tmp_path: Path) -> None:
    write_turntable(halves(), tmp_path / "turntable.gif", OutputSettings(turntable_frames=4, turntable_size=64), cpu_context())
    with Image.open(tmp_path / "turntable.gif") as film:
        assert film.n_frames == 4 and film.info["loop"] == 0
        centres = []
        for index in range(4):
            film.seek(index)
            centres.append(film.convert("RGB").getpixel((32, 32)))
    assert centres[1][0] > centres[1][2] and centres[3][0] < centres[3][2], "at 90 degrees the camera is on the subject's left"


def test_the_same_seed_gives_the_same_bytes(photo: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.rand(7)  # the global generator must not matter
        portrait_backend.generate(photo, replace(QUICK, seed=seed), output=tmp_path / name)
    for file in ("head.glb", "head.safetensors", "turntable.gif"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a/head.safetensors").read_bytes() != (tmp_path / "c/head.safetensors").read_bytes()


def test_in_memory_only(photo: Path, tmp_path: Path) -> None:
    result = portrait_backend.generate(photo, QUICK)
    assert result.output is None and result.head.density(torch.zeros(1, 3)) > 0 and [p.name for p in tmp_path.iterdir()] == ["someone.png"]


@pytest.mark.parametrize("after", [1, 4, 9, 14])
def test_cancelling_leaves_nothing(photo: Path, tmp_path: Path, after: int) -> None:
    reports: list[Progress] = []
    with pytest.raises(Cancelled):
        portrait_backend.generate(photo, QUICK, reports.append, tmp_path / "out", cancelled=lambda: len(reports) >= after)
    assert len(reports) == after and [p.name for p in tmp_path.iterdir()] == ["someone.png"]


@pytest.mark.parametrize("stages", [("restoration",), ("prior", "refinement"), ("prior", "restoration", "refinement")])
def test_stages_that_do_not_exist_are_named(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: tuple[str, ...]) -> None:
    monkeypatch.setattr("portrait_backend.stages.RUNNERS", {"prior": RUNNERS["prior"]})
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, replace(QUICK, stages=stages), output=tmp_path / "out")  # type: ignore[arg-type]
    assert caught.value.code == "stage-unavailable" and next(s for s in stages if s != "prior") in caught.value.message


def test_out_of_memory_says_what_to_do(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def huge(*arguments: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(sys.modules["portrait_backend.mesh.build"], "build_mesh", huge)
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, QUICK, output=tmp_path / "out")
    assert caught.value.code == "out-of-memory" and "--preset draft" in caught.value.hint and not (tmp_path / "out").exists()


def test_deterministic_mode_ends_with_the_job(photo: Path) -> None:
    before = torch.get_deterministic_debug_mode()
    portrait_backend.generate(photo, QUICK)
    assert torch.get_deterministic_debug_mode() == before


def test_the_number_of_threads_stays_the_same() -> None:
    """Numba would change torch's when its first kernel runs; a resumed job may never run that kernel."""
    code = (
        "import torch; from portrait_backend import devices; from portrait_backend.radiance.triplane import sample_planes\n"
        "with devices.reproducible():\n"
        "    sample_planes(torch.rand(1, 3, 1, 8, 8, 4), torch.rand(1, 64, 3))\n"
        "    print(torch.get_num_threads())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1"]


def test_mp4_without_its_library_is_refused_at_once(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portrait_backend.outputs.importlib.util.find_spec", lambda name: None)
    settings = replace(QUICK, output=replace(QUICK.output, turntable="mp4"))
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, settings, output=tmp_path / "out")
    assert caught.value.code == "mp4-unavailable" and not (tmp_path / "out").exists()


def test_exr_without_its_library_is_refused_at_once(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portrait_backend.mesh.exr.importlib.util.find_spec", lambda name: None)
    settings = replace(QUICK, output=replace(QUICK.output, texture_format="exr"))
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, settings, output=tmp_path / "out")
    assert caught.value.code == "exr-unavailable" and not (tmp_path / "out").exists()


def test_the_pictures_of_the_ring(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(QUICK, output=replace(QUICK.output, ring_views=True))
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, settings, output=tmp_path / "out")
    assert caught.value.code == "ring-unavailable" and not (tmp_path / "out").exists()
    fake_parts.install_later_stages(monkeypatch)
    made = []

    def refine(*given: Any) -> fake_parts.BallRefined:
        made.append(fake_parts.refine(*given))
        return made[0]

    monkeypatch.setattr(stages, "RUNNERS", {**stages.RUNNERS, "refinement": refine})
    portrait_backend.generate(photo, replace(settings, stages=("prior", "refinement")), output=tmp_path / "out")
    picture = np.asarray(Image.open(tmp_path / "out/ring/ring_01.png"))
    assert picture.shape == (8, 8, 4) and np.array_equal(picture[..., :3], (made[0].views[0].image * 255).round().numpy().astype(np.uint8))
    assert "ring/ring_01.png" in json.loads((tmp_path / "out/job.json").read_text())["files"]
    assert "ring_01" in read_cameras(tmp_path / "out/cameras.json")


def test_usd_without_its_library_is_refused_at_once(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portrait_backend.mesh.usd.importlib.util.find_spec", lambda name: None)
    settings = replace(QUICK, output=replace(QUICK.output, format="usd"))
    with pytest.raises(PortraitDiffusionError) as caught:
        portrait_backend.generate(photo, settings, output=tmp_path / "out")
    assert caught.value.code == "usd-unavailable" and not (tmp_path / "out").exists()
