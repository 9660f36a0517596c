"""Clients that vanish and clients that don't read cost the server nothing, and nobody else anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clients import slow_reader, vanish


@pytest.mark.slow
def test_clients_that_vanish(tmp_path: Path) -> None:
    result = vanish(tmp_path / "data", clients=30, killed=5)
    assert result.jobs == 30 and result.memory_mb[1] - result.memory_mb[0] < 20


@pytest.mark.slow
def test_a_client_that_does_not_read_costs_nobody_anything(tmp_path: Path) -> None:
    result = slow_reader(tmp_path / "data", seconds=8)
    assert result.growth_mb < 20 and result.slowest < 1
