"""Photo -> Portrait: coordinates against a made-up sitter whose pose is known, and the astronaut as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from portrait_backend.context import Cancelled, Context, Progress, cpu_context
from portrait_backend.portrait.align import align, prepare_portrait
from portrait_backend.portrait.crop import inverse, transform
from portrait_backend.portrait.head_pose import load_landmark_model
from portrait_backend.portrait.read_image import Photo
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_shared.errors import PortraitDiffusionError


class NoPerson:
    """A PersonSegmenter that sees nobody."""

    def probability(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.zeros(rgb.shape[:2], np.float32)


def blank_photo(width: int, height: int) -> Photo:
    return Photo(np.full((height, width, 3), 128, np.uint8), None, "blank.png", "0")


def posed_landmarks(yaw: float, pitch: float, roll: float, scale: float, centre: tuple[float, float]) -> NDArray[np.float64]:
    """Project the mean face: crop half-side `scale` px, turned by `roll` degrees, around `centre`."""
    uv, _ = Camera.orbit(yaw, pitch, 2).project(load_landmark_model().mean.float())
    a = np.radians(roll)
    turn = scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return (uv.numpy().astype(np.float64) - 1) @ turn.T + centre


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0.0, 0.0, 0.0), (-30.0, 10.0, 20.0), (40.0, -15.0, -40.0)])
def test_crop_and_camera_follow_the_face(scripted: type, yaw: float, pitch: float, roll: float) -> None:
    points = posed_landmarks(yaw, pitch, roll, 300, (450, 380))
    result = align(blank_photo(900, 700), scripted(900, points))
    assert (result.pose.yaw, result.pose.pitch, result.pose.roll) == pytest.approx((yaw, pitch, roll), abs=0.5)
    in_crop = transform(inverse(result.to_photo), points)
    expected, _ = Camera.orbit(yaw, pitch, 512).project(load_landmark_model().mean.float())
    assert np.abs(in_crop - expected.numpy()).max() < 1.5


def test_a_profile_is_refused(scripted: type) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        align(blank_photo(900, 700), scripted(900, posed_landmarks(58, 0, 0, 300, (450, 350))))
    assert caught.value.code == "face-turned-away" and "58 degrees" in caught.value.message


def test_photo_that_misses_half_the_head_gets_a_warning(scripted: type, tmp_path: Path) -> None:
    Image.new("RGB", (400, 400)).save(tmp_path / "tight.png")
    tight = prepare_portrait(
        tmp_path / "tight.png", detector=scripted(400, posed_landmarks(0, 0, 0, 300, (200, 200))), segmenter=NoPerson()
    )
    assert float(tight.valid.mean()) == pytest.approx((400 / 600) ** 2, abs=0.01)
    assert any("outside the photo" in warning for warning in tight.warnings)
    assert (tight.matte[tight.valid < 0.5] == 0).all()


def test_portrait_of_the_astronaut(portrait: Portrait) -> None:
    for name, shape in {"image": (512, 512, 3), "rgba": (512, 512, 4), "valid": (512, 512), "landmarks": (468, 2)}.items():
        value = getattr(portrait, name)
        assert tuple(value.shape) == shape and value.dtype == torch.float32 and torch.isfinite(value).all(), name
        assert name == "landmarks" or (value.min() >= 0 and value.max() <= 1)
    assert abs(portrait.yaw) < 8 and abs(portrait.pitch) < 10 and abs(portrait.roll) < 8
    assert portrait.camera.width == 512 and portrait.source == "astronaut.png" and len(portrait.sha256) == 64
    model = load_landmark_model()
    fitted, _ = portrait.camera.project(model.shape(portrait.coefficients.double()).float())
    assert (fitted - portrait.landmarks).norm(dim=1).mean() < 6


def test_matte_of_the_astronaut(portrait: Portrait) -> None:
    matte = portrait.matte
    x, y = portrait.landmarks.T.round().long()
    assert (matte[y, x] > 0.99).float().mean() > 0.99  # one lies on the outline
    assert matte[:20].max() == 0 and matte[:300, -30:].max() == 0 and matte[:300, :30].max() == 0  # background
    assert matte[60, 250] > 0.95 and matte[470, 250] > 0.95  # hair, neck
    assert 0.45 < matte.mean() < 0.65
    soft = ((matte > 0.02) & (matte < 0.98)).float().mean()
    assert 0.002 < soft < 0.06


def test_same_photo_and_seed_same_portrait(portrait: Portrait, astronaut_file: Path) -> None:
    again = prepare_portrait(astronaut_file, cpu_context(0))
    assert torch.equal(again.rgba, portrait.rgba) and torch.equal(again.landmarks, portrait.landmarks)


def test_own_alpha_is_the_matte(portrait: Portrait, tmp_path: Path) -> None:
    cut = portrait.rgba.clone()
    hidden = cut[..., 3] < 0.5
    cut[..., 3] = (~hidden).float()
    cut[hidden, :3] = torch.tensor([0.0, 1.0, 0.0])
    Image.fromarray((cut * 255).round().byte().numpy()).save(tmp_path / "cut.png")
    result = prepare_portrait(tmp_path / "cut.png")
    assert not any("alpha" in warning for warning in result.warnings)
    expected = (~hidden).float().mean()
    assert result.matte.mean() == pytest.approx(float(expected), abs=0.02)
    colours = result.rgba[..., :3][result.matte > 0.1]
    assert ((colours[:, 1] - colours[:, [0, 2]].amax(1)) > 0.3).float().mean() < 1e-3  # no green from under clear pixels


def test_alpha_that_only_frames_the_photo_does_not_replace_the_matte(
    astronaut: NDArray[np.uint8], portrait: Portrait, tmp_path: Path
) -> None:
    alpha = np.full((512, 512, 1), 255, np.uint8)
    alpha[:, 480:] = 0
    Image.fromarray(np.concatenate([astronaut, alpha], 2)).save(tmp_path / "framed.png")
    result = prepare_portrait(tmp_path / "framed.png")
    assert any("no cut-out" in warning for warning in result.warnings)
    assert (result.matte - portrait.matte).abs().mean() < 0.02


def test_progress_and_cancel(astronaut_file: Path) -> None:
    steps: list[Progress] = []
    base = cpu_context()
    prepare_portrait(astronaut_file, Context(base.device, base.dtype, base.generator, steps.append, stage="portrait"))
    assert [(p.step, p.steps) for p in steps] == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(Cancelled):
        prepare_portrait(astronaut_file, Context(base.device, base.dtype, base.generator, cancelled=lambda: True))


def test_mirrored_coefficients_are_the_mirrored_face() -> None:
    model = load_landmark_model()
    coefficients = torch.randn(25, generator=torch.Generator().manual_seed(0))
    differs = model.shape(coefficients.double()) - model.mean
    wanted = differs[model.twins] * torch.tensor([-1.0, 1.0, 1.0])
    mirrored = model.mirrored(coefficients)
    off = [float((x - wanted).norm(dim=-1).mean()) for x in (model.shape(mirrored.double()) - model.mean, differs)]
    assert off[0] < 1e-3 < 1.1e-3 < off[1]
    torch.testing.assert_close(model.mirrored(mirrored), coefficients, atol=0.3, rtol=0)
