"""The finished stages of a head that isn't complete yet: they lie beside its folder, so that the same command goes on inside the head."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def stages_folder(folder: Path) -> Path:
    """Return where the stages of a head are kept (`portrait_backend.checkpoints`) until its folder is there."""
    return folder.parent / f".{folder.name}.stages"


def forget_stages(folder: Path) -> None:
    """Remove the stages of a head that is complete, or that won't go on."""
    shutil.rmtree(stages_folder(folder), ignore_errors=True)


def remove_half_stages(folders: Iterable[Path]) -> None:
    """Remove what killed processes were just writing among the stages; nobody may be working on these heads now."""
    for folder in folders:
        for path in stages_folder(folder).glob(".*"):
            path.unlink(missing_ok=True)
