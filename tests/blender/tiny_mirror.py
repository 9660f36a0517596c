"""A mirror folder for `brushnet` with tiny files under its names: the catalogue knows no checksum of them, so they may be installed."""

from __future__ import annotations

from pathlib import Path

MODEL = "brushnet"
HEAVY = "diffusion_pytorch_model.safetensors"
FILES = {"config.json": b"{}", HEAVY: bytes(range(256)) * 12_000}


def write(folder: Path, names: tuple[str, ...] = tuple(FILES)) -> Path:
    """Write the mirror (or only some of its files) and return the folder that one would choose."""
    for name in names:
        path = folder / MODEL / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES[name])
    return folder
