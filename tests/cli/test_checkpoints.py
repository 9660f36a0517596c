"""Interrupted jobs go on after their last finished stage and give the same bytes; finished geometry is textured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import portrait_backend
from portrait_backend import checkpoints, stages
from portrait_backend.checkpoints import Checkpoint, Checkpoints, Made
from portrait_backend.context import Cancelled, Progress
from portrait_backend.mesh.types import HeadMesh
from portrait_backend.mesh.views import ProjectedView
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import MeshSettings, OutputSettings, PriorSettings, Settings
from tests.cli import fake_parts

ALL = ("prior", "restoration", "refinement")
SETTINGS = Settings(seed=3, stages=ALL, output=OutputSettings(view_size=64, turntable_frames=4, turntable_size=64))  # type: ignore[arg-type]
COMPARED = ("head.glb", "head.safetensors", "turntable.gif", "views/front.png")


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_parts.install(monkeypatch)
    fake_parts.install_later_stages(monkeypatch)
    path = tmp_path / "someone.png"
    path.write_bytes(b"photo")
    return path


def run(photo: Path, name: str, settings: Settings = SETTINGS, stop: str = "", **more: Any) -> None:
    """Generate into the folder `name`, with its checkpoints beside it; be interrupted at the first report of stage `stop`."""

    def note(progress: Progress) -> None:
        if progress.stage == stop:
            raise Cancelled(stop)

    more.setdefault("checkpoints", photo.parent / f"{name}-checkpoints")
    portrait_backend.generate(photo, settings, note, photo.parent / name, **more)


def content(photo: Path, name: str) -> list[bytes]:
    return [(photo.parent / name / file).read_bytes() for file in COMPARED]


class Runs:
    """Counts which runners of the table ran."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for name, runner in list(stages.RUNNERS.items()):
            patch.setitem(stages.RUNNERS, name, self._counted(name, runner))

    def _counted(self, name: str, runner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.names.append(name)
            return runner(*arguments)

        return run


@pytest.mark.parametrize("stop", ["restoration", "refinement", "mesh", "views", "turntable"])
def test_an_interrupted_job_gives_the_bytes_of_an_uninterrupted_one(photo: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    run(photo, "plain", checkpoints=None)
    run(photo, "whole")
    runs = Runs(monkeypatch)
    with pytest.raises(Cancelled):
        run(photo, "stopped", stop=stop)
    before = len(runs.names)
    assert not (photo.parent / "stopped").exists()
    run(photo, "stopped")
    assert runs.names[before:] == (list(ALL[ALL.index(stop) :]) if stop in ALL else [])
    assert content(photo, "plain") == content(photo, "whole") == content(photo, "stopped")


def test_a_finished_job_is_not_computed_again(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(photo, "out")
    runs = Runs(monkeypatch)
    run(photo, "out")
    assert runs.names == []
    record = json.loads((photo.parent / "out/job.json").read_text())
    assert [s["stage"] for s in record["stages"]] == ["portrait", *ALL, "mesh", "views", "turntable"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        (replace(SETTINGS, seed=4), list(ALL)),
        (replace(SETTINGS, prior=PriorSettings(fit_steps=7)), list(ALL)),
        (replace(SETTINGS, mesh=MeshSettings(faces=7000)), []),
        (replace(SETTINGS, output=replace(SETTINGS.output, view_size=128)), []),
        (replace(SETTINGS, stages=("prior", "refinement")), ["refinement"]),
    ],
)
def test_only_what_depends_on_a_changed_setting_runs_again(
    photo: Path, monkeypatch: pytest.MonkeyPatch, changed: Settings, again: list[str]
) -> None:
    run(photo, "out")
    runs = Runs(monkeypatch)
    run(photo, "out", changed)
    assert runs.names == again


def test_another_photo_runs_everything_again(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(photo, "out")
    runs = Runs(monkeypatch)
    photo.write_bytes(b"another photo")
    run(photo, "out")
    assert runs.names == list(ALL)


def test_other_weights_run_everything_again(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(photo, "out")
    runs = Runs(monkeypatch)
    monkeypatch.setattr("portrait_backend.pipeline.starter_weights", list)
    run(photo, "out")
    assert runs.names == list(ALL)


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_a_damaged_checkpoint_is_computed_again(photo: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    run(photo, "out")
    before = content(photo, "out")
    (photo.parent / "out-checkpoints/restoration.head.safetensors").write_bytes(damage)
    runs = Runs(monkeypatch)
    run(photo, "out")
    assert runs.names == ["restoration"] and content(photo, "out") == before


def test_a_crash_while_a_checkpoint_is_written_leaves_none(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(head: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "write_head", crash)
        run(photo, "out")
    assert sorted(p.name for p in (photo.parent / "out-checkpoints").iterdir()) == ["portrait.json", "portrait.portrait.safetensors"]
    run(photo, "out")


def test_texturing_again_keeps_shape_and_runs_what_comes_after(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(photo, "out")
    runs = Runs(monkeypatch)
    wanted = replace(SETTINGS, seed=99, mesh=replace(SETTINGS.mesh, texture_size=512))
    run(photo, "again", wanted, geometry=photo.parent / "out-checkpoints")
    assert runs.names == ["refinement"]
    old, new = (json.loads((photo.parent / name / "head.glb").read_text()) for name in ("out", "again"))
    assert new["vertices"] == old["vertices"], "the very same mesh, although its surface was recovered on the way"
    assert len(new["texture"]) == 8 and new["texture"] != old["texture"]
    mesh = Checkpoints(photo.parent / "out-checkpoints").sums("mesh")["mesh"]
    assert new["extras"]["geometry"] == mesh and new["extras"]["seed"] == 99
    record = json.loads((photo.parent / "again/job.json").read_text())
    assert [s["stage"] for s in record["stages"]] == ["refinement", "texture", "views", "turntable"]


def test_texturing_again_without_the_geometry_says_so(photo: Path) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        run(photo, "again", geometry=photo.parent / "nowhere")
    assert caught.value.code == "geometry-missing" and not (photo.parent / "again").exists()


@pytest.mark.parametrize("order", [("restoration",), ("restoration", "prior"), ("prior", "refinement", "restoration")])
def test_stages_in_a_wrong_order_are_refused(photo: Path, order: Any) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        run(photo, "out", replace(SETTINGS, stages=order))
    assert caught.value.code == "setting-invalid" and "prior,restoration,refinement" in caught.value.message


def test_the_shape_of_a_texture_job_is_its_parents() -> None:
    parent = replace(SETTINGS, stages=("prior",), prior=PriorSettings(fit_steps=7), mesh=MeshSettings(faces=7000, texture_size=256))
    mine = replace(SETTINGS, prior=PriorSettings(fit_steps=9), mesh=MeshSettings(faces=9000, texture_size=512))
    made = stages.with_geometry_of(mine, parent)
    assert made.stages == ("prior", "refinement") and made.prior.fit_steps == 7
    assert made.mesh == MeshSettings(faces=7000, texture_size=512) and made.seed == mine.seed


def test_checkpoints_are_exact(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    view = ProjectedView(torch.rand(6, 8, 3, generator=generator), torch.rand(6, 8), torch.ones(6, 8), _camera(8, 6), 3, 0.25)
    relative = replace(view, change=torch.rand(6, 8, 3, generator=generator))
    rng = np.random.default_rng(1)
    mesh = HeadMesh(
        rng.random((5, 3), np.float32),
        rng.integers(0, 5, (4, 3)),
        rng.random((5, 2), np.float32),
        rng.random((5, 3), np.float32),
        rng.integers(0, 255, (4, 4, 3), np.uint8),
    )
    portrait = replace(fake_parts.portrait("Ünï.png"), landmarks=torch.rand(468, 2, dtype=torch.float64), yaw=1 / 3)
    store = Checkpoints(tmp_path / "a/b")
    store.save("mesh", Checkpoint(Made(portrait=portrait, views=(view, relative), mesh=mesh), {"x": [1, 2.5, None]}, {"seconds": 1}))
    found = store.find("mesh", {"x": (1, 2.5, None)})
    assert found is not None and found.timing == {"seconds": 1} and found.made.head is None
    assert store.find("mesh", {"x": [1, 2.5, 0]}) is None and store.find("prior", {}) is None
    for made, original in ((found.made.mesh, mesh), (found.made.portrait, portrait), *zip(found.made.views, (view, relative), strict=True)):  # type: ignore[arg-type]
        for item in fields(original):
            _same(getattr(made, item.name), getattr(original, item.name))


def _camera(width: int, height: int) -> Camera:
    return replace(Camera.orbit(33, 10, width), height=height)


def _same(made: Any, original: Any) -> None:
    if isinstance(original, Camera):
        for item in fields(original):
            _same(getattr(made, item.name), getattr(original, item.name))
    elif isinstance(original, torch.Tensor):
        assert made.dtype == original.dtype and torch.equal(made, original)
    elif isinstance(original, np.ndarray):
        assert made.dtype == original.dtype and np.array_equal(made, original)
    else:
        assert made == original and type(made) is type(original)
