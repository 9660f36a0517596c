"""Learned metrics on small made networks, identity with a face that is there and one that isn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from portrait_backend.evaluation.models import SOURCES, default_folder, locate
from portrait_backend.evaluation.view_models import ClipModel, DlibEmbedder, IdentityModel, LpipsModel
from portrait_backend.portrait.faces import Candidate, Face
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_backend.portrait.read_image import read_photo
from tests.evaluation.test_lpips import backbone, heads

EXAMPLE = Path(__file__).parents[2] / "examples/astronaut.png"


def test_lpips_from_files(tmp_path: Path) -> None:
    torch.save(backbone("alex"), tmp_path / "a.pth")
    torch.save(heads("alex"), tmp_path / "b.pth")
    model = LpipsModel("alex", tmp_path / "a.pth", tmp_path / "b.pth")
    one, two = (model.features(torch.rand(300, 300, 3, generator=torch.Generator().manual_seed(k))) for k in (0, 1))
    assert model.compare(one, one) == {"lpips_alex": 0}
    distance = model.compare(one, two)["lpips_alex"]
    assert distance is not None and distance > 0


def test_clip_reports_projected_and_hidden_features_apart(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="CLIP needs the package transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=8
    )
    torch.manual_seed(0)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    model = ClipModel(tmp_path)
    image = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    same = model.compare(model.features(image), model.features(image))
    assert same == pytest.approx({"clip_i": 1, "clip_i_hidden": 1})
    projected, hidden = model.features(image)
    assert projected.shape == (8,) and hidden.shape == (16,)
    other = model.compare(model.features(image), model.features(1 - image))
    assert other["clip_i"] != other["clip_i_hidden"] and max(other.values()) < 1  # type: ignore[type-var]


class OneFace:
    """Finds a face in every image that has any colour in it."""

    def candidates(self, rgb: np.ndarray) -> list[Candidate]:
        return [Candidate((32.0, 32.0), 80.0, 0.0, 0.9)] if rgb.max() > 0 else []

    def measure(self, rgb: np.ndarray, candidate: Candidate) -> Face | None:
        marks = np.random.default_rng(0).uniform(20, 140, (468, 2))
        marks[33], marks[263] = (40, 60), (110, 60)
        marks[234], marks[454] = (20, 70), (130, 70)
        return Face(marks, 0.001)


class MeanColour:
    """An "embedding" that is the mean colour."""

    def embed(self, rgb: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        return rgb.reshape(-1, 3).mean(0) / 255


def test_identity_is_the_cosine_and_a_missing_face_is_no_number() -> None:
    model = IdentityModel(MeanColour(), OneFace())
    red, green, black = (torch.zeros(64, 64, 3) for _ in range(3))
    red[..., 0], green[..., 1] = 1, 1
    a, b, none = model.features(red), model.features(green), model.features(black)
    assert model.compare(a, a) == pytest.approx({"identity": 1, "identity_distance": 0})
    assert model.compare(a, b) == pytest.approx({"identity": 0, "identity_distance": 2**0.5})
    assert none is None and model.compare(a, none) == {"identity": None, "identity_distance": None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dlib_knows_a_face_again() -> None:
    pytest.importorskip("dlib", reason="face recognition needs pip install '.[identity]'")
    (file,) = next(source.files for source in SOURCES if "identity" in source.metrics)
    weights = locate(file, default_folder())
    if weights is None:
        pytest.skip("the weights of face recognition are not here: pip install '.[identity]'")
    photo: Any = torch.from_numpy(read_photo(EXAMPLE).rgb.copy()).float() / 255
    with MediaPipeFaces() as detector:
        model = IdentityModel(DlibEmbedder(weights), detector)
        once = model.features(photo)
        darker, mirrored = (model.compare(once, model.features(x)) for x in (photo * 0.8, photo.flip(1)))
    assert once is not None and once.shape == (128,)
    for found in (darker, mirrored):
        assert found["identity_distance"] is not None and found["identity_distance"] < 0.35, "dlib's limit for one person is 0.6"
