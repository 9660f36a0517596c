"""What a process of ours does with its memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from portrait_backend.processes import keeping_memory

MEGABYTES = 3


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_memory_that_is_freed_in_a_job_is_used_again_and_goes_back_after_it() -> None:
    import resource

    def faults(rounds: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            parts = [np.empty(MEGABYTES * 2**20, np.uint8) for _ in range(8)]
            for part in parts:
                part[:: 2**12] = 1
            del parts
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    pages = 8 * MEGABYTES * 2**20 // resource.getpagesize()
    with keeping_memory():
        faults(1)
        assert faults(5) < 0.5 * pages, "five rounds touch the pages of the first"
        during = resident()
    assert resident() < during - 0.5 * 8 * MEGABYTES


def test_elsewhere_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: object) -> None:
        raise AssertionError("there is no glibc")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    with keeping_memory():
        pass
