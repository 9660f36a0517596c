"""Which photos there are, and which of them a finished job was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from portrait_shared.errors import PortraitDiffusionError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif")


def photos_in(folder: Path) -> list[Path]:
    """Return the photos of a folder by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())


def find_photo(record: dict[str, Any], places: list[Path]) -> Path:
    """Return the photo of a job among `places` by its sha256; raises PortraitDiffusionError ``photo-not-found``."""
    wanted = record["photo"]["sha256"]
    for path in sorted(places, key=lambda place: place.name != record["photo"]["name"]):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted:
            return path
    raise PortraitDiffusionError(
        "photo-not-found",
        f"the photo {record['photo']['name']} (sha256 {wanted[:12]}...) is not beside the job",
        "Say with --photos in which folder it is",
    )


def beside(job: Path, record: dict[str, Any]) -> list[Path]:
    """Return where the photo of a job may lie when nobody says: in its folder, beside it, where the command runs."""
    return [folder / record["photo"]["name"] for folder in (job, job.resolve().parent, Path.cwd())]


def subjects_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each photo or job folder: the file's without its suffix, the folder's; a number behind it where one repeats."""
    names: list[str] = []
    for path in paths:
        short = path.resolve().name if path.is_dir() else path.stem
        longer = (f"{short}-{k}" for k in count(2))
        names.append(short if short not in names else next(name for name in longer if name not in names))
    return names
