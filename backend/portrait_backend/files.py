"""Write files so that a reader never sees a half-written one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from portrait_shared.errors import PortraitDiffusionError


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`, on an exception remove it.

    The temporary name keeps the suffix, so that writers which choose the format by it work.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, or what it was raised from, says that a file system or a quota is full.

    Libraries that write by themselves (safetensors) have errors of their own, with the system's number in the text.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(f"(os error {number})" in str(seen) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full(error: BaseException) -> PortraitDiffusionError:
    """Return the error for users of one that `is_disk_full`."""
    first = (str(error).splitlines() or [""])[0]
    return PortraitDiffusionError("disk-full", f"no space left ({first})", "Free some space and run the same again", retryable=True)


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable; only POSIX systems can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
