"""A small disk of its own for each test that asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.tmpfs import MountRefused, tmpfs

KILOBYTES = 32 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a small file system of its own."""
    try:
        with tmpfs(tmp_path / "disk", KILOBYTES) as folder:
            yield folder
    except MountRefused as error:
        pytest.skip(f"needs a tmpfs: {error}")
