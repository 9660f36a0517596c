"""Stage 3 as a stage of a job: its views reach the texture, and it is resumed, cancelled and run again on finished geometry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import portrait_backend
from portrait_backend.context import Cancelled, Context, Progress
from portrait_backend.evaluation.refinement_photos import mesh_tile
from portrait_backend.pipeline import Result
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_backend.refinement.refine import RefinedHead, RefinedView
from portrait_shared.settings import MeshSettings, OutputSettings, RefinementSettings, Settings

REFINEMENT = RefinementSettings(method="transport", views=5, image_size=64, texture_views=96, iterations=3, between_views=1, settle_steps=3)
SETTINGS = Settings(
    stages=("prior", "refinement"),
    refinement=REFINEMENT,
    mesh=MeshSettings(resolution=48, faces=1500, texture_size=256),
    output=OutputSettings(view_size=64, turntable="none"),
)


class EllipsoidPrior:
    """A prior that always makes the same ellipsoid."""

    def initialise(self, portrait: Portrait, settings: Any, context: Context) -> Head:
        return ellipsoid_head(depth=1, size=48)


def red_portrait(photo: Path, context: Context) -> Portrait:
    """A photo of the ellipsoid that is red all over; the ellipsoid itself is not."""
    camera = Camera.orbit(0, 0, 512)
    with torch.no_grad():
        alpha = ellipsoid_head(depth=1, size=48).render(camera).alpha
    rgb = torch.tensor([0.9, 0.1, 0.1]).expand(512, 512, 3)
    return Portrait(
        image=rgb,
        rgba=torch.cat([rgb, alpha[..., None]], -1),
        valid=torch.ones(512, 512),
        landmarks=torch.zeros(468, 2),
        camera=camera,
        coefficients=torch.zeros(25),
        yaw=0.0,
        pitch=0.0,
        roll=0.0,
        source=photo.name,
        sha256="0" * 64,
    )


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("portrait_backend.portrait.align.prepare_portrait", red_portrait)
    monkeypatch.setattr("portrait_backend.prior.create_prior", lambda provider: EllipsoidPrior())
    path = tmp_path / "someone.png"
    path.write_bytes(b"photo")
    return path


def run(photo: Path, name: str, settings: Settings = SETTINGS, after: int = 10**6, **more: Any) -> tuple[Result, list[Progress]]:
    """Generate with checkpoints; be interrupted after that many reports of the refinement."""
    seen: list[Progress] = []

    def note(progress: Progress) -> None:
        if progress.stage == "refinement":
            seen.append(progress)
            if len(seen) > after:
                raise Cancelled("refinement")

    more.setdefault("checkpoints", photo.parent / f"{name}-checkpoints")
    return portrait_backend.generate(photo, settings, note, photo.parent / name, **more), seen


def test_the_stage_runs_in_a_job_and_changes_head_and_texture(photo: Path) -> None:
    plain, _ = run(photo, "plain", replace(SETTINGS, stages=("prior",)))
    refined, seen = run(photo, "refined")
    assert [stage["stage"] for stage in refined.record["stages"]] == ["portrait", "prior", "refinement", "mesh", "views"]
    assert not np.array_equal(refined.mesh.texture, plain.mesh.texture)
    assert not torch.equal(refined.head.appearance.planes, plain.head.appearance.planes)
    assert seen[-1].step == seen[-1].steps and any(p.preview is not None for p in seen)
    assert not list((photo.parent / "refined-checkpoints").glob("*unfinished*"))


def test_a_job_stopped_in_the_refinement_goes_on_in_its_round_and_gives_the_same_bytes(photo: Path) -> None:
    run(photo, "whole")
    with pytest.raises(Cancelled):
        run(photo, "stopped", after=15)
    assert not (photo.parent / "stopped").exists()
    assert len(list((photo.parent / "stopped-checkpoints").glob("*unfinished*"))) == 1
    _, seen = run(photo, "stopped")
    assert seen[0].step == 2 * 6, "the two finished rounds of five views and one between are not done again"
    for file in ("head.glb", "head.safetensors", "views/left.png"):
        assert (photo.parent / "stopped" / file).read_bytes() == (photo.parent / "whole" / file).read_bytes()
    assert not list((photo.parent / "stopped-checkpoints").glob("*unfinished*"))


def test_finished_geometry_is_refined_and_textured_again(photo: Path) -> None:
    plain, _ = run(photo, "plain", replace(SETTINGS, stages=("prior",)))
    again, seen = run(photo, "again", geometry=photo.parent / "plain-checkpoints")
    assert seen and [stage["stage"] for stage in again.record["stages"]] == ["refinement", "texture", "views"]
    np.testing.assert_array_equal(again.mesh.uv, plain.mesh.uv)
    np.testing.assert_array_equal(again.mesh.faces, plain.mesh.faces)
    assert not np.array_equal(again.mesh.texture, plain.mesh.texture)


def test_refined_views_cover_the_field_and_the_photo_covers_them(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chequered = ((torch.arange(64)[:, None] // 4 + torch.arange(64) // 4) % 2).float()[..., None].expand(-1, -1, 3)

    def refine(head: Head, *_: Any, **__: Any) -> RefinedHead:
        cameras = [Camera.orbit(azimuth, 0, 64) for azimuth in range(0, 360, 40)]
        return RefinedHead(head, tuple(RefinedView(chequered, torch.ones(64, 64), torch.ones(64, 64), c, 1) for c in cameras))

    monkeypatch.setattr("portrait_backend.refinement.refine.refine", refine)
    result, _ = run(photo, "chequered")
    seen = [mesh_image(result, azimuth) for azimuth in (0, 180)]
    contrast = [float((image[..., 1].diff(dim=0).abs()).mean()) for image in seen]
    assert contrast[1] > 0.04, "the squares are on the back"
    assert contrast[0] < 0.1 * contrast[1], "and not in the face, which the photo shows"


def mesh_image(result: Result, azimuth: float) -> torch.Tensor:
    """The middle (32, 32, 3) of the textured mesh as seen from an azimuth."""
    return mesh_tile(result, azimuth)[112:144, 112:144]
