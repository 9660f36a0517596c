"""The output folder of a job: it appears complete or not at all.

Files are written into a hidden sibling folder, which takes the target's name when the job has finished. An
earlier job under that name is replaced; a folder with anything else in it is never touched.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from portrait_backend.files import is_disk_full, sync_folder
from portrait_shared.errors import PortraitDiffusionError

RECORD = "job.json"
APPLICATION = "portrait-diffusion"
PARTIAL = "partial"
DESKTOP_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers leave in any folder they showed."""


@contextmanager
def job_folder(target: Path) -> Iterator[Path]:
    """Yield an empty working folder that becomes `target` when the block ends well and vanishes when it raises.

    The block writes the record last (`write_record`). Raises PortraitDiffusionError output-not-empty,
    output-is-file, output-in-use, output-not-writable, disk-full.
    """
    target = target.expanduser().resolve()
    check_replaceable(target)
    missing = [parent for parent in target.parents if not parent.exists()]
    work = _sibling(target, PARTIAL)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise PortraitDiffusionError(
            "output-not-writable", f"can't write to {target.parent} ({error.strerror})", "Choose another folder with -o"
        ) from error
    try:
        yield work
        _sync(work)
        _move_into_place(work, target)
    except Exception as error:
        if not isinstance(error, PortraitDiffusionError) and is_disk_full(error):
            raise PortraitDiffusionError(
                "disk-full", f"no space left for {target}", "Free some space or choose another folder with -o", retryable=True
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _remove_empty(missing)


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the record with the list of the files beside it and return it; a folder with this record is ours to replace."""
    files = sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())
    full = {"application": APPLICATION, **record, "files": files}
    (folder / RECORD).write_text(json.dumps(full, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return full


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a finished job in `folder`, None if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(record, dict) and record.get("application") == APPLICATION and isinstance(record.get("files"), list)
    return record if ours else None


def check_replaceable(target: Path) -> None:
    """Raise PortraitDiffusionError unless `target` is new, empty, or an earlier job with nothing else in it."""
    if target.exists() and not target.is_dir():
        raise PortraitDiffusionError("output-is-file", f"{target} is a file", "Give -o a folder")
    if not target.is_dir():
        return
    if target == Path.cwd() or os.path.ismount(target):
        raise PortraitDiffusionError(
            "output-in-use", f"{target} is the current folder or a mount point and can't be replaced", "Give -o a folder inside it"
        )
    present = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir() or path.is_symlink()}
    present = {path for path in present if path.rpartition("/")[2] not in DESKTOP_FILES}
    record = read_record(target)
    foreign = sorted(present - {RECORD, *record["files"]} if record else present)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise PortraitDiffusionError(
            "output-not-empty",
            f"{target} holds files that are not from an earlier run: {foreign[0]}{more}",
            "Choose a new folder with -o, or move these files away",
        )


def remove_litter(targets: Iterable[Path]) -> None:
    """Remove the working folders that killed processes left beside `targets`; nobody may be working on these now."""
    names: dict[Path, set[str]] = {}
    for target in targets:
        resolved = target.expanduser().resolve()
        names.setdefault(resolved.parent, set()).add(f".{resolved.name}.{PARTIAL}")
    for parent, wanted in names.items():
        for path in parent.glob(f".*.{PARTIAL}-*"):
            if path.name.rpartition("-")[0] in wanted:
                shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring everything in `folder` onto the disk: after a power cut its new name must not hold empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _move_into_place(work: Path, target: Path) -> None:
    check_replaceable(target)  # again: minutes have passed
    if not target.exists():
        work.rename(target)
        sync_folder(target.parent)
        return
    old = _sibling(target, "replaced")
    target.rename(old)
    try:
        work.rename(target)
    except OSError:
        old.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(target: Path, purpose: str) -> Path:
    return target.parent / f".{target.name}.{purpose}-{secrets.token_hex(4)}"


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty: the job is in it
            folder.rmdir()
