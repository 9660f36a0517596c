"""What the tests of downloads and of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.tiny_model import FILES


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    for name, body in FILES.items():
        path = tmp_path / "mirror/tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return tmp_path / "mirror"
