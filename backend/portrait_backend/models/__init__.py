"""What weights exist and where they lie."""

from __future__ import annotations

from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError

STARTER = Path(__file__).parent / "starter"
SHIPPED = "starter"
"""What stands for the shipped weights where a file may be named."""


def starter_path(name: str) -> Path:
    """Return the path of a shipped starter weight file; PortraitDiffusionError ``weights-missing`` if it is not there."""
    path = STARTER / name
    if not path.is_file():
        raise PortraitDiffusionError(
            "weights-missing", f"the starter weights {name} are missing from the installation ({STARTER})", "Reinstall portrait-diffusion"
        )
    return path


def weights_path(where: str | Path, name: str) -> Path:
    """Return the shipped file `name` for "starter", or the path given; PortraitDiffusionError ``weights-missing`` if nothing is there."""
    if where == SHIPPED:
        return starter_path(name)
    path = Path(where)
    if not path.exists():
        raise PortraitDiffusionError("weights-missing", f"there are no weights at {path}", "Name a weight file or a diffusers folder")
    return path
