"""What travels between the machine that keeps the jobs and the nodes that make the heads: messages in their wire form, files as bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portrait_backend.files import atomic_path

Files = Mapping[str, bytes]
"""Contents by path below a folder, in the order in which they must be written: a record after what it vouches for."""


@dataclass(frozen=True)
class Order:
    """A job for a node.

    checkpoints: its finished stages so far; geometry: of a re-texture job, the stages it keeps; previews: whether anybody looks.
    """

    job: str
    settings: dict[str, Any]
    source: str
    start: str | None
    photo: bytes = field(repr=False)
    checkpoints: Files = field(default_factory=dict, repr=False)
    geometry: Files | None = field(default=None, repr=False)
    previews: bool = True


@dataclass(frozen=True)
class News:
    """What came of a job since the last news: messages as frames, stages that were finished, and, when it is over, the result."""

    messages: tuple[list[bytes], ...] = ()
    checkpoints: Files = field(default_factory=dict, repr=False)
    result: Files | None = field(default=None, repr=False)


def read_files(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder; none if it isn't there."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def write_files(files: Files, folder: Path) -> None:
    """Write files into a folder, each at once and complete; raises ValueError for a name that leads out of it."""
    for name, content in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or path.name.startswith("."):
            raise ValueError(f"a node sent a file with the name {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


class NewStages:
    """The finished stages in a checkpoint folder that were not taken yet; a stage is its record and the files that this names."""

    def __init__(self, folder: Path, known: Iterable[str]) -> None:
        self._folder = folder
        self._taken = {name: self._state(name) for name in known}

    def take(self) -> dict[str, bytes]:
        """Return the files of stages that were finished since, each stage's record last."""
        found: dict[str, bytes] = {}
        for record in sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
            state = self._state(record.name)
            if record.name.startswith(".") or state is None or self._taken.get(record.name) == state:
                continue
            try:
                content = record.read_bytes()
                payloads = [f"{record.stem}.{name}.safetensors" for name in json.loads(content)["payloads"]]
                found |= {name: (self._folder / name).read_bytes() for name in payloads} | {record.name: content}
            except (OSError, ValueError, LookupError, TypeError):  # it is being written again
                continue
            self._taken[record.name] = state
        return found

    def _state(self, name: str) -> tuple[int, int] | None:
        try:
            status = (self._folder / name).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size
