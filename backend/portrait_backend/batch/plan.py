"""Which heads a batch makes: every photo with its settings and its folder, all of it checked before anything starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portrait_backend import stages
from portrait_backend.batch import naming
from portrait_backend.batch.manifest import Row, merge
from portrait_backend.job_folder import read_record
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings, from_dict

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".jp2", ".tga", ".avif", ".heic", ".heif",
)  # fmt: skip
"""What is taken of a folder; a file that is named itself may have any suffix."""
SUMMARY_FILES = ("summary.json", "summary.csv")


@dataclass(frozen=True)
class Item:
    """One head to make: index from 1, the photo, its settings, its folder's name below the output folder, and that folder."""

    index: int
    photo: Path
    settings: Settings
    name: str
    folder: Path


def find_photos(given: Iterable[Path]) -> list[Path]:
    """Return the photos: files as given, of folders the pictures right in them by name.

    Raises PortraitDiffusionError ``photos-missing`` for a folder without any. A file that isn't there is found out when its turn comes.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES and p.is_file() and not p.name.startswith("."))
        if not pictures:
            raise PortraitDiffusionError(
                "photos-missing", f"the folder {path} holds no pictures", "Name the photos, or the folder they are in"
            )
        found += pictures
    return found


def make_plan(
    photos: Sequence[Path], rows: Sequence[Row], overrides: Mapping[str, Any], output: Path, template: str = naming.TEMPLATE
) -> list[Item]:
    """Return the heads to make: the manifest's rows in order, then the photos that no row names.

    overrides: the settings of all, in nested JSON form; a row's own ones go over them. Raises PortraitDiffusionError photos-missing,
    setting-invalid, stage-unavailable, name-invalid, name-clash.
    """
    naming.check_template(template)
    named = {row.photo.resolve() for row in rows}
    rows = [*rows, *(Row(photo, None, {}, str(photo)) for photo in find_photos(photos) if photo.resolve() not in named)]
    if not rows:
        raise PortraitDiffusionError("photos-missing", "there are no photos", "Name photos or folders, or a --manifest")
    items = [_item(index, row, overrides, output, template) for index, row in enumerate(rows, 1)]
    naming.check_apart(((item.name, str(item.photo)) for item in items), SUMMARY_FILES)
    return items


def _item(index: int, row: Row, overrides: Mapping[str, Any], output: Path, template: str) -> Item:
    try:
        settings = from_dict(merge(merge({}, overrides), row.settings))
        stages.check(settings)
    except PortraitDiffusionError as error:
        raise PortraitDiffusionError(error.code, f"{row.where}: {error.message}", error.hint) from error
    name = naming.checked(row.name or _made_name(index, row.photo, settings, template), row.where)
    return Item(index, row.photo, settings, name, naming.inside(output, name))


def _made_name(index: int, photo: Path, settings: Settings, template: str) -> str:
    digest = content_sum(photo) if naming.uses(template, "sha") else ""
    values = {
        "stem": photo.stem,
        "index": index,
        "sha": digest[: naming.SHA_DIGITS] or f"unreadable-{index}",
        "parent": photo.resolve().parent.name,
        "preset": settings.preset,
        "seed": settings.seed,
    }
    return naming.fill(template, values)


def content_sum(photo: Path) -> str:
    """Return the sha256 of a file; "" where it can't be read: making the head says why."""
    try:
        with photo.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def finished(item: Item) -> dict[str, Any] | None:
    """Return the record of the head that lies finished in the item's folder: same photo by content, same settings, all files there.

    Where it was computed doesn't count, nor what a later version can set that this one had at its default. None: it has to be made.
    """
    record = read_record(item.folder)
    if record is None or not isinstance(record.get("photo"), dict) or not isinstance(record.get("settings"), dict):
        return None
    try:
        before = replace(from_dict(record["settings"]), device=item.settings.device)
    except PortraitDiffusionError:
        return None
    if before != item.settings or not all((item.folder / str(file)).is_file() for file in record["files"]):
        return None
    return record if record["photo"].get("sha256") == (content_sum(item.photo) or None) else None
