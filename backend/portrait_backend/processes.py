"""Processes of our own: what a child and its parent owe each other."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError


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


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
