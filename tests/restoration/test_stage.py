"""Stage 2 as a stage of a job: its table entry, its checkpoint, interruptions, and what is said when its weights are missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import portrait_backend
from portrait_backend.context import Cancelled, Progress
from portrait_backend.diffusion.sources import Sources
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.head import Head
from portrait_backend.restoration.fit import trained_phi
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings
from tests.restoration import small_stage
from tests.restoration.small_stage import SETTINGS


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_stage.write_weights(tmp_path / "weights")
    small_stage.install(monkeypatch, tmp_path / "weights")
    path = tmp_path / "someone.png"
    path.write_bytes(b"photo")
    return path


def run(photo: Path, name: str, settings: Settings = SETTINGS, stop: tuple[str, int] = ("", 0), log: Any = None, **more: Any) -> Path:
    """Generate into the folder `name`, checkpoints beside it; be interrupted when stage stop[0] reports step stop[1]."""

    def note(progress: Progress) -> None:
        if log is not None:
            log.append(progress)
        if (progress.stage, progress.step) == stop:
            raise Cancelled(progress.stage)

    more.setdefault("checkpoints", photo.parent / f"{name}-checkpoints")
    portrait_backend.generate(photo, settings, note, photo.parent / name, **more)
    return photo.parent / name


def content(folder: Path) -> list[bytes]:
    return [(folder / file).read_bytes() for file in ("head.glb", "head.safetensors", "views/back.png")]


def test_it_changes_the_head_and_says_what_it_does(photo: Path) -> None:
    log: list[Progress] = []
    restored, plain = run(photo, "restored", log=log), run(photo, "plain", replace(SETTINGS, stages=("prior",)))
    heads = [Head.load(folder / "head.safetensors") for folder in (restored, plain)]
    assert heads[0].meta["restored"] and "restored" not in heads[1].meta
    assert not torch.equal(heads[0].geometry.planes, heads[1].geometry.planes)
    record = json.loads((restored / "job.json").read_text())
    assert [s["stage"] for s in record["stages"]] == ["portrait", "prior", "restoration", "mesh", "views"]
    assert record["settings"]["restoration"]["steps"] == 3
    reports = [p for p in log if p.stage == "restoration"]
    assert any(p.preview is not None for p in reports) and any("reference" in p.metrics for p in reports)


@pytest.mark.parametrize("stop", [("restoration", 0), ("restoration", 2), ("mesh", 1)])
def test_an_interrupted_job_gives_the_bytes_of_an_uninterrupted_one(photo: Path, stop: tuple[str, int]) -> None:
    whole = content(run(photo, "whole", checkpoints=None))
    with pytest.raises(Cancelled):
        run(photo, "stopped", stop=stop)
    kept = {path.name for path in (photo.parent / "stopped-checkpoints").glob("*.json")}
    assert kept == {"portrait.json", "prior.json"} | ({"restoration.json"} if stop[0] == "mesh" else set())
    log: list[Progress] = []
    assert content(run(photo, "stopped", log=log)) == whole
    assert len([p for p in log if p.stage == "restoration"]) == (1 if stop[0] == "mesh" else 4), "what was finished is not computed again"


def test_another_number_of_steps_keeps_the_prior(photo: Path) -> None:
    run(photo, "out")
    log: list[Progress] = []
    run(photo, "out", replace(SETTINGS, restoration=replace(SETTINGS.restoration, steps=4)), log=log)
    assert max(p.step for p in log if p.stage == "restoration") == 4
    assert [p.step for p in log if p.stage == "prior"] == [1], "its checkpoint is used"


@pytest.mark.parametrize("name", ["codec.safetensors", "denoiser.safetensors"])
def test_missing_weights_are_named(photo: Path, name: str) -> None:
    (photo.parent / "weights" / name).unlink()
    with pytest.raises(PortraitDiffusionError) as caught:
        run(photo, "out")
    assert caught.value.code == "weights-missing" and name in caught.value.message and not (photo.parent / "out").exists()


def test_phi_of_the_starter_must_be_there(photo: Path) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        trained_phi(ellipsoid_with_own_colours(), Sources())
    assert caught.value.code == "weights-missing" and "detail_unet.safetensors" in caught.value.message
    assert trained_phi(ellipsoid_head(channels=8, hidden=16, size=32), Sources()).config.channels == 8, "other planes start from nothing"


def ellipsoid_with_own_colours() -> Head:
    """Return a head whose planes have the starter prior's shape."""
    head = ellipsoid_head(channels=32, depth=2, size=32)
    return head.with_planes(appearance=head.geometry.with_planes(head.geometry.planes.clone()))
