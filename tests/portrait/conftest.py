"""Real and made-up photos for the portrait tests: scikit-image's astronaut (NASA, public domain) and a scripted detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from portrait_backend.portrait.align import prepare_portrait
from portrait_backend.portrait.faces import Candidate, Face, candidate_of
from portrait_backend.portrait.types import Portrait


@pytest.fixture(scope="session")
def astronaut() -> NDArray[np.uint8]:
    """The astronaut (512, 512, 3)."""
    return np.ascontiguousarray(skimage.data.astronaut())


@pytest.fixture(scope="session")
def astronaut_file(astronaut: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The astronaut as a PNG file."""
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(astronaut).save(path)
    return path


@pytest.fixture(scope="session")
def portrait(astronaut_file: Path) -> Portrait:
    """The astronaut's portrait, prepared once."""
    return prepare_portrait(astronaut_file)


class ScriptedDetector:
    """A FaceDetector that knows the landmarks (468, 2) px of every face of one upright photo of a given width."""

    def __init__(self, width: int, *landmarks: NDArray[np.float64]) -> None:
        self.width = width
        self.faces = [Face(points, 0.001) for points in landmarks]
        self.calls = 0

    def candidates(self, rgb: NDArray[np.uint8]) -> list[Candidate]:
        """Report all faces in the first call, the whole photo (perhaps reduced), and none in tiles and turned photos."""
        self.calls += 1
        scale = rgb.shape[1] / self.width
        return [candidate_of(Face(face.landmarks * scale, 0)) for face in self.faces] if self.calls == 1 else []

    def measure(self, rgb: NDArray[np.uint8], candidate: Candidate) -> Face | None:
        """Return the face at the candidate, in the photo itself only."""
        near = [face for face in self.faces if np.hypot(*(np.subtract(candidate.centre, candidate_of(face).centre))) < 0.3 * face.width]
        return near[0] if near and rgb.shape[1] == self.width else None


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedDetector]:
    """The scripted detector's class."""
    return ScriptedDetector
