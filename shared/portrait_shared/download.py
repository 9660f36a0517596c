"""Fetch result files in pieces: verified, resumed after a lost connection, never half-written under their own name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import FILE_NAME, MAX_CHUNK_BYTES, FileInfo, JobResult, Message, ResultChunk

WINDOW = 4
"""Pieces asked for ahead: the network is busy while the disk writes, and no side holds more than a few MB."""
ATTEMPTS = 3
Reply = TypeVar("Reply", bound=Message)


class Exchange(Protocol):
    """The part of a client that fetching needs."""

    def exchange(self, messages: Sequence[Message], kind: type[Reply]) -> Iterator[Reply]:
        """Send requests, yield their replies in order."""

    def reconnect(self, timeout: float = 5.0) -> None:
        """Connect anew."""


def download(client: Exchange, job: str, files: Iterable[FileInfo], folder: Path, progress: Callable[[int, int], None] | None) -> Path:
    """Fetch `files` of a job into `folder`; raises PortraitDiffusionError ``result-damaged``, ``file-name-refused``, ``backend-lost``."""
    wanted = list(files)
    for file in wanted:
        if not FILE_NAME.fullmatch(file.name):
            raise PortraitDiffusionError("file-name-refused", f"the result holds a file named {file.name!r}", "Update the backend")
    folder.mkdir(parents=True, exist_ok=True)
    total, done = sum(file.size for file in wanted), 0
    for file in wanted:
        path = folder / file.name
        if not _same(path, file):
            path.parent.mkdir(parents=True, exist_ok=True)
            for position in _fetch(client, job, file, path):
                if progress is not None:
                    progress(done + position, total)
        done += file.size
        if progress is not None:
            progress(done, total)
    return folder


def _same(path: Path, file: FileInfo) -> bool:
    return path.is_file() and path.stat().st_size == file.size and _sha256(path) == file.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(client: Exchange, job: str, file: FileInfo, path: Path) -> Iterator[int]:
    """Write one file; yields how many bytes are there."""
    part = path.with_name(f".{path.name}.{job[:8]}.part")
    try:
        with part.open("wb") as stream:
            digest, position = hashlib.sha256(), 0
            for attempt in range(ATTEMPTS):
                try:
                    for chunk in _chunks(client, job, file, position):
                        stream.write(chunk)
                        digest.update(chunk)
                        position += len(chunk)
                        yield position
                    break
                except PortraitDiffusionError as error:
                    if error.code != "backend-lost" or attempt == ATTEMPTS - 1:
                        raise
                    client.reconnect()
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() != file.sha256:
            raise PortraitDiffusionError("result-damaged", f"{file.name} arrived with another sha256", "Fetch it again", retryable=True)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _chunks(client: Exchange, job: str, file: FileInfo, start: int) -> Iterator[bytes]:
    offsets = list(range(start, file.size, MAX_CHUNK_BYTES))
    for first in range(0, len(offsets), WINDOW):
        window = offsets[first : first + WINDOW]
        asked = [JobResult(job, file.name, offset, min(MAX_CHUNK_BYTES, file.size - offset)) for offset in window]
        for request, chunk in zip(asked, client.exchange(asked, ResultChunk), strict=True):
            if (chunk.file, chunk.offset, len(chunk.data)) != (file.name, request.offset, request.length):
                raise PortraitDiffusionError("result-damaged", f"{file.name} arrived with pieces missing", "Fetch it again", retryable=True)
            yield chunk.data
