"""Processes of our own: what a child and its parent owe each other."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers (malloc.h): how much free memory it keeps, and how much is asked of the system apart; the latter at most 32 MB."""


def leave_with_parent() -> None:
    """End this process the moment its parent is gone, whatever way it went and whatever is being computed."""
    threading.Thread(target=_watch_parent, name="watch", daemon=True).start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def only_one(path: Path, refusal: PortraitDiffusionError) -> Iterator[None]:
    """Hold the lock file `path`; raises `refusal` if another process holds it. The system lets go when the process ends."""
    with path.open("a+") as file:
        try:
            if os.name == "posix":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError as error:
            raise refusal from error
        yield


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Let glibc keep memory that is freed until the end, when what is free goes back to the system; elsewhere nothing is changed.

    By default it gives megabytes back at once and gets them again page by page: 928 000 page faults of a draft, 340 000 like this, 5.4
    and 1.7 s in the system. The process keeps these thresholds.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_TRIM_THRESHOLD, 2**30)
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)
    try:
        yield
    finally:
        libc.malloc_trim(0)


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def only_device(device: str, visible: str) -> dict[str, str]:
    """Return the environment that shows CUDA one GPU only: "cuda:1" is the second of those visible so far ("" for all)."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return {}
    names = visible.split(",") if visible else []
    return {"CUDA_VISIBLE_DEVICES": names[int(number)] if int(number) < len(names) else "" if names else number}
