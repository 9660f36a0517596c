"""One small head, meshed once for all tests of this folder."""

from __future__ import annotations

import pytest

from portrait_backend.context import cpu_context
from portrait_backend.mesh.build import build_mesh
from portrait_backend.mesh.types import HeadMesh
from portrait_shared.settings import MeshSettings
from tests.mesh.fakes import TINT, HeadField, portrait_of

SMALL = MeshSettings(resolution=96, faces=8000, smoothing=2, texture_size=512)


@pytest.fixture(scope="session")
def head_mesh() -> HeadMesh:
    """A floater and a cavity are in the field, but not in the photo; the field's colours are off by TINT."""
    return build_mesh(HeadField(tint=TINT), portrait_of(HeadField(floater=False, cavity=False)), SMALL, cpu_context())
