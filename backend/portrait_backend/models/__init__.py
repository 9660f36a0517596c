"""What weights exist and where they lie."""

from __future__ import annotations

from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError

STARTER = Path(__file__).parent / "starter"


def starter_path(name: str) -> Path:
    """Return the path of a shipped starter weight file; PortraitDiffusionError ``weights-missing`` if it is not there."""
    path = STARTER / name
    if not path.is_file():
        raise PortraitDiffusionError(
            "weights-missing", f"the starter weights {name} are missing from the installation ({STARTER})", "Reinstall portrait-diffusion"
        )
    return path
