"""Which learned metrics can run here, and where their weights come from: source, licence, size, sha256.

Weights lie in one folder (`default_folder`, or --models). Nothing is downloaded unless it is asked for; what is missing is named
with the reason and what to do, and its figures stay empty.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from portrait_backend.files import atomic_path

if TYPE_CHECKING:
    from portrait_backend.evaluation.view_models import ViewModel
    from portrait_backend.portrait.faces import FaceDetector

CHUNK = 1 << 20
TIMEOUT = 30.0


@dataclass(frozen=True)
class ModelFile:
    """A file to download: its name here, address, size in bytes and sha256."""

    name: str
    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelSource:
    """A learned metric: what it measures, what its weights are, whose, under which licence, and the Python packages it needs."""

    name: str
    metrics: tuple[str, ...]
    weights: str
    source: str
    licence: str
    files: tuple[ModelFile, ...]
    packages: tuple[tuple[str, str], ...] = ()
    """(module, what to install) of each package."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


TORCHVISION = "https://download.pytorch.org/models"
LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1"
CLIP = "https://huggingface.co/openai/clip-vit-base-patch32/resolve/3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
DLIB = "https://github.com/ageitgey/face_recognition_models/raw/master/face_recognition_models/models"
LPIPS_LICENCE = "BSD-2-Clause (heads), BSD-3-Clause (torchvision's ImageNet weights)"

SOURCES = (
    ModelSource(
        "LPIPS (AlexNet)",
        ("lpips_alex",),
        "torchvision AlexNet (ImageNet), LPIPS heads 0.1",
        "pytorch.org, github.com/richzhang/PerceptualSimilarity",
        LPIPS_LICENCE,
        (
            ModelFile(
                "alexnet-owt-7be5be79.pth",
                f"{TORCHVISION}/alexnet-owt-7be5be79.pth",
                244_408_911,
                "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
            ),
            ModelFile(
                "lpips-alex.pth",
                f"{LPIPS}/alex.pth",
                6_009,
                "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
            ),
        ),
    ),
    ModelSource(
        "LPIPS (VGG-16)",
        ("lpips_vgg",),
        "torchvision VGG-16 (ImageNet), LPIPS heads 0.1",
        "pytorch.org, github.com/richzhang/PerceptualSimilarity",
        LPIPS_LICENCE,
        (
            ModelFile(
                "vgg16-397923af.pth",
                f"{TORCHVISION}/vgg16-397923af.pth",
                553_433_881,
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            ),
            ModelFile(
                "lpips-vgg.pth",
                f"{LPIPS}/vgg.pth",
                7_289,
                "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
            ),
        ),
    ),
    ModelSource(
        "CLIP (ViT-B/32)",
        ("clip_i", "clip_i_hidden"),
        "openai/clip-vit-base-patch32",
        "huggingface.co/openai/clip-vit-base-patch32",
        "MIT (OpenAI CLIP)",
        (
            ModelFile("clip/config.json", f"{CLIP}/config.json", 4_186, "b575ef3c36f2a057fa19e221650105052d61cc9c1a972ec15019c6261ec98770"),
            ModelFile(
                "clip/pytorch_model.bin",
                f"{CLIP}/pytorch_model.bin",
                605_247_071,
                "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
            ),
        ),
        (("transformers", "transformers"),),
    ),
    ModelSource(
        "Identity (dlib ResNet)",
        ("identity", "identity_distance"),
        "dlib_face_recognition_resnet_model_v1 (2017)",
        "PyPI face-recognition-models 0.3.0, from github.com/davisking/dlib-models",
        "CC0-1.0",
        (
            ModelFile(
                "dlib_face_recognition_resnet_model_v1.dat",
                f"{DLIB}/dlib_face_recognition_resnet_model_v1.dat",
                22_466_066,
                "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
            ),
        ),
        (("dlib", "dlib-bin"),),
    ),
)


@dataclass(frozen=True)
class ModelState:
    """Whether a learned metric can run here; reason: why not, one line, empty if it can."""

    source: ModelSource
    reason: str

    def record(self) -> dict[str, object]:
        """Return the JSON form."""
        s = self.source
        return {
            "name": s.name,
            "metrics": list(s.metrics),
            "available": not self.reason,
            "reason": self.reason,
            "weights": s.weights,
            "source": s.source,
            "licence": s.licence,
            "bytes": s.size,
        }


def default_folder() -> Path:
    """Return the folder in the user's cache in which evaluation models lie."""
    import platformdirs

    return platformdirs.user_cache_path("portrait-diffusion", appauthor=False) / "evaluation"


def locate(file: ModelFile, folder: Path) -> Path | None:
    """Return where a file lies: in `folder`, or inside the Python package that ships it; None if nowhere."""
    places = [folder / file.name]
    package = importlib.util.find_spec("face_recognition_models")  # found, not imported: importing it needs pkg_resources
    if package is not None and package.submodule_search_locations:
        places += [Path(place) / "models" / file.name for place in package.submodule_search_locations]
    return next((place for place in places if place.is_file()), None)


def state_of(source: ModelSource, folder: Path) -> ModelState:
    """Say whether a learned metric can run here: its packages are installed and its files are the named ones, by their sha256."""
    for module, package in source.packages:
        if importlib.util.find_spec(module) is None:
            return ModelState(source, f"the package {package} is not installed")
    for file in source.files:
        path = locate(file, folder)
        if path is None:
            return ModelState(
                source, f"{Path(file.name).name} is missing; --download fetches {source.size / 1e6:.0f} MB ({source.licence})"
            )
        if path.stat().st_size != file.size or _sha256(path) != file.sha256:
            return ModelState(source, f"{path} is another file than the published one; remove it, --download fetches it again")
    return ModelState(source, "")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(source: ModelSource, folder: Path, say: Callable[[str], None]) -> str:
    """Fetch the missing files of a metric; returns why it failed, one line, empty if all are there."""
    missing = [file for file in source.files if locate(file, folder) is None]
    if missing:
        size = sum(file.size for file in missing) / 1e6
        say(f"{source.name}: {size:.0f} MB from {source.source}, licence {source.licence}")
    for file in missing:
        target = folder / file.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fetch(file, target)
        except (OSError, ValueError) as error:  # urllib's errors are OSErrors
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            return f"{target.name} could not be downloaded ({reason})"
    return ""


def fetch(file: ModelFile, target: Path) -> None:
    """Download one file; it appears when it is complete and its sha256 is right (ValueError if not)."""
    with atomic_path(target) as part:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as reply, part.open("wb") as out:
            shutil.copyfileobj(reply, out, CHUNK)
        found = _sha256(part)
        if found != file.sha256:
            raise ValueError(f"its sha256 is {found[:16]}..., expected {file.sha256[:16]}...")


def open_models(
    folder: Path, detector: FaceDetector, fetch_missing: bool, say: Callable[[str], None]
) -> tuple[list[ViewModel], list[ModelState]]:
    """Return the learned metrics that run here, and the state of all of them; with `fetch_missing` download first."""
    models, states = [], []
    for source in SOURCES:
        failure = download(source, folder, say) if fetch_missing and _installed(source) else ""
        state = ModelState(source, failure) if failure else state_of(source, folder)
        if not state.reason:
            try:
                models.append(_open(source, folder, detector))
            except (ValueError, RuntimeError, OSError) as error:
                state = ModelState(source, f"its weights can't be read ({' '.join(str(error).split())[:120]})")
        states.append(state)
    return models, states


def _installed(source: ModelSource) -> bool:
    return all(importlib.util.find_spec(module) is not None for module, _ in source.packages)


def _open(source: ModelSource, folder: Path, detector: FaceDetector) -> ViewModel:
    from portrait_backend.evaluation import view_models

    found = [locate(file, folder) for file in source.files]
    paths = [path for path in found if path is not None]
    if source.metrics == ("lpips_alex",):
        return view_models.LpipsModel("alex", *paths)
    if source.metrics == ("lpips_vgg",):
        return view_models.LpipsModel("vgg", *paths)
    if "clip_i" in source.metrics:
        return view_models.ClipModel(paths[0].parent)
    return view_models.IdentityModel(view_models.DlibEmbedder(paths[0]), detector)
