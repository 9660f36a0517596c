"""A data set rendered from a prior's heads is read by what reads any other; heads without a face are left out; runs can be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from portrait_backend.cli import main
from portrait_backend.portrait.faces import Candidate, Face
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.prior import placement
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import METRES_PER_UNIT, Camera
from portrait_backend.radiance.head import Head
from portrait_backend.training.head_dataset import load_heads
from portrait_backend.training.prior_dataset import SEARCH, head_source, render_prior_dataset
from portrait_shared.errors import PortraitDiffusionError


class Seer:
    """Finds the mean face in front of every head."""

    def __init__(self) -> None:
        self.pixels = Camera.orbit(0, 0, placement.PICTURE).project(load_landmark_model().mean.float())[0].double().numpy()

    def candidates(self, rgb: np.ndarray) -> list[Candidate]:
        return [Candidate((placement.PICTURE / 2, placement.PICTURE / 2), 100.0, 0.0, 0.9)] if rgb.std() > 1 else []

    def measure(self, rgb: np.ndarray, candidate: Candidate) -> Face:
        return Face(self.pixels, 0.001)


def heads(k: int) -> Head:
    head = replace(ellipsoid_head(depth=2, size=32), meta={"provider": "test", "seed": k})
    return replace(head, bounds=(0.0, 0.0, 0.0)) if k == 1 else head  # the second one is empty


def test_the_layout_is_the_one_that_training_reads(tmp_path: Path) -> None:
    assert SEARCH >= placement.PICTURE
    made = render_prior_dataset(heads, tmp_path, 0, 3, 7, 32, Seer())
    assert made == (2, 1) and sorted(p.name for p in tmp_path.iterdir()) == ["id000000", "id000002"]
    meta = json.loads((tmp_path / "id000002/cameras.json").read_text())
    assert meta["identity"] == {"provider": "test", "seed": 2} and len(meta["views"]) == 9
    data = load_heads(tmp_path)
    assert data.rgba.shape == (2, 9, 32, 32, 4) and data.landmarks.shape == (2, 9, 468, 2) and len(data.input_id) >= 4
    view = next(v for v in meta["views"] if abs(v["azimuth"]) < 21)
    camera = Camera.orbit(view["azimuth"], view["pitch"], 32)
    wanted = ellipsoid_head(depth=2, size=32).render(camera)
    folder, number = tmp_path / "id000002", view["view"]
    depth = np.asarray(Image.open(folder / f"depth_{number:03d}.png")) * meta["depth_scale_m"] / METRES_PER_UNIT
    solid = wanted.alpha.numpy() > 0.5
    assert np.abs(depth - np.where(solid, wanted.depth.numpy(), 0)).max() < 0.001
    assert np.array_equal(np.asarray(Image.open(folder / f"part_{number:03d}.png")) > 0, solid)
    marks = np.load(folder / "landmarks.npz")
    inside = marks["landmarks"][number, 68:, :2]
    assert inside.min() > 0 and inside.max() < 32 and marks["landmarks"][number, 68:, 3].mean() > 0.5, "most of a near-frontal face is seen"
    back = next(v["view"] for v in meta["views"] if abs(v["azimuth"]) > 120)
    assert marks["landmarks"][back, 68:, 3].mean() < 0.1, "from behind, hardly any"
    np.testing.assert_allclose(
        marks["landmarks"][number, 68:, 2],
        camera.project(torch.tensor(marks["points"][68:] / METRES_PER_UNIT).float())[1] * METRES_PER_UNIT,
        atol=1e-4,
    )
    assert render_prior_dataset(heads, tmp_path, 0, 3, 7, 32, Seer()) == (0, 1), "what is finished stays"


def test_a_source_without_weights_or_photos_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORTRAIT_DIFFUSION_MODELS", str(tmp_path))
    for provider in ("panohead", "portrait4d"):
        with pytest.raises(PortraitDiffusionError) as caught:
            head_source(provider, 0, None, torch.device("cpu"))  # type: ignore[arg-type]
        assert caught.value.code == "weights-missing"
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted/portrait4d.safetensors").write_bytes(b"")
    with pytest.raises(PortraitDiffusionError) as caught:
        head_source("portrait4d", 0, tmp_path / "nowhere", torch.device("cpu"))
    assert caught.value.code == "photos-empty"
    assert main(["train", "dataset", "--out", str(tmp_path / "d")]) == 2 and "either --pack" in capsys.readouterr().err
    assert main(["train", "dataset", "--out", str(tmp_path / "d"), "--prior", "panohead", "--count", "1"]) == 2
    assert "weights-missing" in capsys.readouterr().err and not (tmp_path / "d").exists()
