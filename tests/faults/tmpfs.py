"""A small file system of its own, to be filled or made read-only."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class MountRefused(Exception):
    """The process may not mount anything (it is not root, or it is in a container that doesn't allow it)."""


@contextmanager
def tmpfs(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a tmpfs of a size on `folder` (made if missing) and unmount it at the end; raises MountRefused."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MountRefused(str(getattr(error, "stderr", b"") or error)) from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=20)


def read_only(folder: Path, yes: bool = True) -> None:
    """Make a mounted file system read-only, or writable again."""
    subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(folder)], check=True, capture_output=True, timeout=20)


def fill(folder: Path, leave: int = 0) -> Path:
    """Write a file until the file system is full, then give `leave` bytes free; returns the file."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"\0" * 4096)
        except OSError:
            pass
        stream.truncate(max(0, stream.tell() // 4096 * 4096 - leave))
    return ballast
