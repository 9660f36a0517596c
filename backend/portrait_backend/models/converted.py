"""Where converted checkpoints lie, `<models folder>/converted/<kind>.safetensors`, and what they are worth: sha256, or what is missing."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from portrait_backend.models.catalogue import WebPage, find_model
from portrait_backend.models.store import model_path, models_folder, sha256_of, state_of
from portrait_shared.errors import PortraitDiffusionError

FOLDER = "converted"


def converted_path(kind: str, folder: Path | None = None) -> Path:
    """Return where the converted checkpoint of a kind belongs, whether it is there or not."""
    return models_folder(folder) / FOLDER / f"{kind}.safetensors"


def downloaded_checkpoint(kind: str, folder: Path | None = None) -> Path:
    """Return the downloaded checkpoint of a kind, to be converted; PortraitDiffusionError as of `model_path`."""
    return model_path(kind, models_folder(folder)) / find_model(kind).files[0].path


def require_converted(kind: str, folder: Path | None = None) -> Path:
    """Return the converted checkpoint; PortraitDiffusionError ``weights-missing`` says which command brings it."""
    path = converted_path(kind, folder)
    if path.is_file():
        return path
    model, where = find_model(kind), models_folder(folder)
    if state_of(model, where) == "installed":
        hint = f"portrait-diffusion models convert --as {kind}"
    elif isinstance(model.source, WebPage):
        hint = f"Download {model.files[0].path} by hand from {model.source.page}, then portrait-diffusion models convert FILE --as {kind}"
    else:
        hint = f"portrait-diffusion models download {kind}, then portrait-diffusion models convert --as {kind}"
    raise PortraitDiffusionError("weights-missing", f"the weights of the prior {kind} are not there ({path})", hint)


def file_sha256(path: Path) -> str:
    """Return a file's sha256; an unchanged file is read once."""
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)
