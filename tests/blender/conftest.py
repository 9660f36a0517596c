"""The extension as a user gets it: built once for this platform."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import build_addon


@pytest.fixture(scope="session")
def extension_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built zip for this platform; PORTRAIT_DIFFUSION_WHEELS: a folder of pyzmq wheels, for a machine without a network."""
    wheels = os.environ.get("PORTRAIT_DIFFUSION_WHEELS")
    platforms = build_addon.chosen_platforms(["current"])
    (path,) = build_addon.build(platforms, tmp_path_factory.mktemp("dist"), Path(wheels) if wheels else None)
    return path
