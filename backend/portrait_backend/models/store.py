"""The user's folder of downloaded models: what is there, whether it is complete and unaltered, atomic installation.

<folder>/<name>/            a complete model; model.json lists its files, so that a folder without it is not one
<folder>/.<name>.part/      a download that has not ended; the next one goes on with it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from portrait_backend import __version__
from portrait_backend.files import atomic_path, sync_folder
from portrait_backend.models.catalogue import Hub, Model, ModelFile, find_model
from portrait_shared.errors import PortraitDiffusionError

ENVIRONMENT = "PORTRAIT_DIFFUSION_MODELS"
RECORD = "model.json"
BLOCK = 1 << 20
State = Literal["absent", "incomplete", "installed", "damaged"]
Report = Callable[[str, int, int], None]
"""Progress: (file, bytes done, bytes in all or 0 where unknown)."""


@dataclass(frozen=True)
class InstalledFile:
    """A file as installed: path, size in bytes, sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class FileCheck:
    """What `verify` found of one file; against: whose sha256 it was compared with, the publisher's or that of the installation."""

    path: str
    state: Literal["ok", "missing", "altered"]
    sha256: str
    against: Literal["published", "installed"]


def models_folder(given: Path | None = None) -> Path:
    """Return the folder of models: the one given, else the environment's PORTRAIT_DIFFUSION_MODELS, else the user's."""
    import platformdirs

    if given is None and (named := os.environ.get(ENVIRONMENT)):
        given = Path(named)
    return given or platformdirs.user_data_path("portrait-diffusion", appauthor=False) / "models"


def part_folder(model: Model, folder: Path) -> Path:
    """Return where an unfinished download of the model lies."""
    return folder / f".{model.name}.part"


def state_of(model: Model, folder: Path) -> State:
    """Tell what is there, by names and sizes only; `verify` reads the contents."""
    installed = _record(model, folder)
    if installed is None:
        return "incomplete" if part_folder(model, folder).is_dir() else "absent"
    root = folder / model.name
    sizes_fit = all((root / f.path).is_file() and (root / f.path).stat().st_size == f.size for f in installed)
    return "installed" if sizes_fit else "damaged"


def model_path(name: str, folder: Path) -> Path:
    """Return the folder of an installed model; PortraitDiffusionError ``model-unknown``, ``model-missing`` or ``model-damaged``."""
    model = find_model(name)
    state = state_of(model, folder)
    if state == "damaged":
        raise PortraitDiffusionError("model-damaged", f"files of {name} are missing or cut in {folder / name}", _again(name))
    if state != "installed":
        what = f"the download of {name} is incomplete" if state == "incomplete" else f"{name} is not installed"
        raise PortraitDiffusionError("model-missing", what, f"portrait-diffusion models download {name}")
    return folder / name


def verify(model: Model, folder: Path, report: Report | None = None) -> list[FileCheck]:
    """Read every file and compare its sha256; PortraitDiffusionError ``model-missing`` if the model is not installed."""
    installed = _record(model, folder)
    if installed is None:
        model_path(model.name, folder)
    published = {file.path: file.sha256 for file in model.files if file.sha256}
    checks = []
    for file in installed or []:
        path = folder / model.name / file.path
        digest = sha256_of(path, _named(report, file.path)) if path.is_file() else ""
        state: Literal["ok", "missing", "altered"] = "missing" if not digest else "altered"
        if digest and digest == published.get(file.path, file.sha256):
            state = "ok"
        checks.append(FileCheck(file.path, state, digest, "published" if file.path in published else "installed"))
    return checks


def install(model: Model, part: Path, folder: Path, expected: Mapping[str, ModelFile], commit: str, report: Report | None = None) -> Path:
    """Check the files in `part` and make it the model's folder: complete or not at all.

    expected: size and sha256 per path where somebody states them. PortraitDiffusionError ``model-damaged`` names the first file that
    is something else; that file is removed, so that the next download fetches it again.
    """
    installed = []
    for file in model.files:
        path = part / file.path
        stated = expected.get(file.path, file)
        digest = sha256_of(path, _named(report, file.path))
        size = path.stat().st_size
        if (stated.exact and stated.size != size) or (stated.sha256 and stated.sha256 != digest):
            path.unlink()
            wanted = f"sha256 {stated.sha256[:16]}..." if stated.sha256 else f"{stated.size} bytes"
            what = f"{file.path} of {model.name} is not what it should be ({size} bytes, sha256 {digest[:16]}... instead of {wanted})"
            raise PortraitDiffusionError("model-damaged", what, "Download it again; if it stays so, the source has changed", retryable=True)
        _sync(path)
        installed.append(InstalledFile(file.path, size, digest))
    _write_record(part / RECORD, model, installed, commit)
    target, old = folder / model.name, folder / f".{model.name}.old"
    _discard(old)
    if target.exists():
        target.rename(old)
    part.rename(target)
    sync_folder(folder)
    _discard(old)
    return target


def remove(model: Model, folder: Path) -> int:
    """Remove the model and any unfinished download of it; returns how many bytes that freed. ``model-missing`` if there is neither."""
    found = [p for p in (folder / model.name, part_folder(model, folder)) if p.is_dir()]
    if not found:
        raise PortraitDiffusionError("model-missing", f"{model.name} is not installed", "portrait-diffusion models list")
    freed = sum(p.lstat().st_size for root in found for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    for root in found:
        trash = folder / f".{model.name}.old"
        _discard(trash)
        root.rename(trash)  # first out of sight at once, then away: an interrupted removal leaves no half model
        _discard(trash)
    return freed


def sha256_of(path: Path, report: Callable[[int, int], None] | None = None) -> str:
    """Return a file's sha256, reporting (bytes read, bytes in all)."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            done += len(block)
            if report is not None:
                report(done, total)
    return digest.hexdigest()


def _named(report: Report | None, name: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(f"checking {name}", done, total)


def _write_record(path: Path, model: Model, files: list[InstalledFile], commit: str) -> None:
    source = {"repository": model.source.repository, "revision": model.source.revision} if isinstance(model.source, Hub) else {}
    record = {
        "name": model.name,
        "source": {"page": model.source.page, **source, "commit": commit},
        "licence": model.licence,
        "commercial_use": model.commercial,
        "installed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "program": __version__,
        "files": [asdict(file) for file in files],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")


def read_record(model: Model, folder: Path) -> dict[str, Any] | None:
    """Return what model.json says, None if the model is not installed or the record is not readable."""
    try:
        record = json.loads((folder / model.name / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _record(model: Model, folder: Path) -> list[InstalledFile] | None:
    record = read_record(model, folder)
    try:
        files = [InstalledFile(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in record["files"]] if record else None
    except (KeyError, TypeError, ValueError):
        return None
    if files is None or any(PurePosixPath(f.path).is_absolute() or ".." in PurePosixPath(f.path).parts for f in files):
        return None
    return files


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _discard(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


def _again(name: str) -> str:
    return f"portrait-diffusion models download {name} fetches it again"
