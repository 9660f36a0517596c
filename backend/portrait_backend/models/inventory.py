"""Which weights this installation holds; no torch needed.

The starter weights are part of the package. ``models/starter/SHA256SUMS`` (made with ``sha256sum *.safetensors``) says
what they should be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from portrait_backend.models import STARTER

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class WeightFile:
    """One weight file: name, size in bytes and sha256 ("" when it is absent), and whether it is what it should be."""

    name: str
    path: Path
    size: int
    sha256: str
    state: Literal["ok", "missing", "altered"]


def starter_weights(folder: Path = STARTER) -> list[WeightFile]:
    """Return the starter weights by name: every listed one, checked against its listed sha256."""
    return [_check(folder / name, expected) for name, expected in sorted(listed_sums(folder).items())]


def listed_sums(folder: Path = STARTER) -> dict[str, str]:
    """Return {file name: sha256} as listed in the folder; empty if there is no list."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    rows = (line.split(maxsplit=1) for line in path.read_text(encoding="ascii").splitlines() if line.strip())
    return {name.lstrip("*"): digest for digest, name in rows}


def _check(path: Path, expected: str) -> WeightFile:
    if not path.is_file():
        return WeightFile(path.name, path, 0, "", "missing")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WeightFile(path.name, path, path.stat().st_size, digest, "ok" if digest == expected else "altered")
