"""The ear model: ears that differ in place, size and tilt come out as one ear with its folds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from portrait_backend.training import ear_model
from portrait_backend.training.ear_model import STEP, TEXELS, _Ear, build_ear_model
from portrait_shared.errors import PortraitDiffusionError


def drawn_ear(angle: float, size: float, lift: float) -> _Ear:
    """A shell with a rim and a fold, turned (degrees), enlarged, standing off by `lift`."""
    height, share = np.zeros((2, TEXELS, TEXELS), np.float32)
    cv2.ellipse(share, (52, 52), (22, 34), 15, 0, 360, 1.0, -1)
    cv2.ellipse(height, (52, 52), (22, 34), 15, 0, 360, 0.02, -1)
    cv2.ellipse(height, (52, 52), (16, 27), 15, 0, 360, 0.012, -1)
    cv2.ellipse(height, (50, 60), (8, 11), 15, 0, 360, 0.002, -1)
    turn = cv2.getRotationMatrix2D((52, 52), angle, size)
    height, share = (cv2.warpAffine(cv2.GaussianBlur(x, (0, 0), 1), turn, (TEXELS, TEXELS)) for x in (height, share))
    return _Ear(0.15 + lift + height, share, np.array([-0.03, 0.01]))


def folds(height: np.ndarray) -> np.ndarray:
    return height - cv2.GaussianBlur(height, (0, 0), 8)


def test_ears_are_brought_onto_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ears = [drawn_ear(0, 1, 0), drawn_ear(10, 1.08, 0.02), drawn_ear(-10, 0.92, -0.02), drawn_ear(6, 1, 0.01), drawn_ear(-6, 1, 0)]
    monkeypatch.setattr(ear_model, "_ears", lambda data, limit: ears)
    assert build_ear_model(tmp_path, tmp_path / "ears.safetensors") == 5
    made = load_file(tmp_path / "ears.safetensors")
    height, inside = made["height"].astype(np.float32), ears[0].share > 0.9
    mean = np.mean([ear.height for ear in ears], axis=0)
    alike = [np.corrcoef(folds(x)[inside], folds(ears[0].height)[inside])[0, 1] for x in (height, mean)]
    assert alike[0] > 0.95 and alike[0] > alike[1], "the folds of a mean of unaligned ears are washed out"
    middle = made["corner"].astype(float) - STEP * (TEXELS - 1) / 2
    np.testing.assert_allclose(middle, [-0.03, 0.01], atol=1e-3)
    share = made["share"].astype(np.float32)
    assert share[52, 70] > 0.9 and share[52, 36] < 0.5 < share[60, 60], "the fade is where the cheek is"
    assert share[~cv2.dilate(ears[0].share, np.ones((9, 9))).astype(bool)].max() < 0.02


def test_a_set_without_ears_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ear_model, "_ears", lambda data, limit: [])
    with pytest.raises(PortraitDiffusionError, match="hardly an ear"):
        build_ear_model(tmp_path, tmp_path / "ears.safetensors")
    assert not (tmp_path / "ears.safetensors").exists()
