"""What weights exist and where they lie."""

from __future__ import annotations

from pathlib import Path

STARTER = Path(__file__).parent / "starter"


def starter_path(name: str) -> Path:
    """Return the path of a shipped starter weight file; raises FileNotFoundError naming it."""
    path = STARTER / name
    if not path.is_file():
        raise FileNotFoundError(f"starter weights {name} are missing from the installation ({STARTER}); reinstall portrait-diffusion")
    return path
