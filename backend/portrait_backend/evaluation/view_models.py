"""Learned comparisons of a view with the photo: CLIP-I, LPIPS, identity. Each is a `ViewModel`; which ones can run here, `models.py` says.

A view that a model can't judge (no face found) has no figure, None: it is counted, never replaced by a number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from portrait_backend.evaluation.image_metrics import as_bytes
from portrait_backend.evaluation.lpips import Lpips, Net
from portrait_backend.portrait.faces import FaceDetector, find_face
from portrait_shared.errors import PortraitDiffusionError

SIZE = 224
"""Side in pixels at which CLIP and LPIPS compare."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DLIB_POINTS = (263, 362, 33, 133, 2)
"""Face-mesh indices of dlib's five points: outer and inner corner of the subject's left eye, of the right eye, the nose's base."""
DLIB_CHIP, DLIB_PADDING = 150, 0.25


class ViewModel(Protocol):
    """Compares images (H, W, 3) in [0, 1] over white by their features."""

    def features(self, image: Tensor) -> Any:
        """Return what `compare` needs of an image."""

    def compare(self, reference: Any, view: Any) -> dict[str, float | None]:
        """Return the figures by name; None where there is none."""


def resized(image: Tensor, size: int = SIZE) -> Tensor:
    """Return an image (H, W, 3) as (size, size, 3), averaged when shrinking."""
    return F.interpolate(image.permute(2, 0, 1)[None], size=(size, size), mode="area")[0].permute(1, 2, 0)


class LpipsModel:
    """LPIPS on AlexNet or VGG-16 from the published checkpoints."""

    def __init__(self, net: Net, backbone: Path, heads: Path) -> None:
        loaded = [torch.load(path, map_location="cpu", weights_only=True) for path in (backbone, heads)]
        self.name, self.lpips = f"lpips_{net}", Lpips(net).load(*loaded).eval()

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps."""
        return self.lpips.maps(resized(image))

    def compare(self, reference: list[Tensor], view: list[Tensor]) -> dict[str, float | None]:
        """Return the distance."""
        return {self.name: self.lpips.distance(reference, view)}


class ClipModel:
    """Cosine of CLIP image features: the projected ones, `clip_i`, and the unprojected class token, `clip_i_hidden`."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPVisionModelWithProjection

        self.model = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projected features and the class token after the last layer norm, each (C,)."""
        x = resized(image).permute(2, 0, 1)[None]
        x = (x - x.new_tensor(CLIP_MEAN)[:, None, None]) / x.new_tensor(CLIP_STD)[:, None, None]
        hidden = self.model.vision_model(pixel_values=x).pooler_output
        return self.model.visual_projection(hidden)[0], hidden[0]

    def compare(self, reference: tuple[Tensor, Tensor], view: tuple[Tensor, Tensor]) -> dict[str, float | None]:
        """Return both cosines."""
        names = ("clip_i", "clip_i_hidden")
        return {name: float(F.cosine_similarity(a, b, dim=0)) for name, a, b in zip(names, reference, view, strict=True)}


class FaceEmbedder(Protocol):
    """A face-recognition network."""

    def embed(self, rgb: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the embedding (D,) of the face with these landmarks (468, 2) px in rgb (H, W, 3)."""


class IdentityModel:
    """Likeness of the faces of two images: cosine and distance of their embeddings, None where no face is found in a view."""

    def __init__(self, embedder: FaceEmbedder, detector: FaceDetector) -> None:
        self.embedder, self.detector = embedder, detector

    def features(self, image: Tensor) -> NDArray[np.float64] | None:
        """Return the embedding of the image's face, None if no face is found."""
        rgb = as_bytes(image)
        try:
            face, _, _ = find_face(rgb, self.detector)
        except PortraitDiffusionError:
            return None
        return self.embedder.embed(rgb, face.landmarks)

    def compare(self, reference: NDArray[np.float64] | None, view: NDArray[np.float64] | None) -> dict[str, float | None]:
        """Return `identity` (cosine) and `identity_distance` (Euclidean)."""
        if reference is None or view is None:
            return {"identity": None, "identity_distance": None}
        cosine = float(reference @ view / (np.linalg.norm(reference) * np.linalg.norm(view)))
        return {"identity": cosine, "identity_distance": float(np.linalg.norm(reference - view))}


class DlibEmbedder:
    """dlib's face-recognition ResNet: 128 numbers; faces nearer than 0.6 are taken for the same person by its makers."""

    def __init__(self, weights: Path) -> None:
        import dlib

        self.dlib, self.model = dlib, dlib.face_recognition_model_v1(str(weights))

    def embed(self, rgb: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the embedding (128,) of the face, aligned by eyes and nose as dlib does."""
        dlib = self.dlib
        box = [int(v) for v in (*landmarks.min(0), *landmarks.max(0))]
        points = [dlib.point(*(round(float(v)) for v in landmarks[k])) for k in DLIB_POINTS]
        shape = dlib.full_object_detection(dlib.rectangle(*box), points)
        chip = dlib.get_face_chip(np.ascontiguousarray(rgb), shape, size=DLIB_CHIP, padding=DLIB_PADDING)
        return np.asarray(self.model.compute_face_descriptor(chip))
