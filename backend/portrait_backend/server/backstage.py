"""What the front end and a worker process say to each other: the same wire, another set of messages.

The socket between them is on the loopback and encrypted with keys that are made for each worker process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from portrait_shared.protocol import ErrorInfo, FileInfo
from portrait_shared.wire import ProtocolError, pack, unpack_content, unpack_header

BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class DeviceInfo:
    """A worker's device: cpu or cuda, its name, its memory in MB (10^6 bytes)."""

    device: str
    name: str
    memory_mb: int | None = None
    memory_free_mb: int | None = None


@dataclass(frozen=True)
class Ready:
    """The worker knows its device; waiting: it has loaded everything and waits for a job."""

    device: DeviceInfo
    waiting: bool = True


@dataclass(frozen=True)
class Beat:
    """The sender is alive."""


@dataclass(frozen=True)
class RunJob:
    """To the worker: run a job in its folder; source: the photo's name; start: "texture" to keep the geometry that is there."""

    job: str
    folder: str
    settings: dict[str, Any]
    source: str
    start: str | None = None


@dataclass(frozen=True)
class CancelJob:
    """To the worker: stop the job at its next report."""

    job: str


@dataclass(frozen=True)
class Update:
    """How far the job is; preview: JPEG or None."""

    job: str
    stage: str
    step: int
    steps: int
    metrics: dict[str, float] = field(default_factory=dict)
    preview: bytes | None = None


@dataclass(frozen=True)
class Finished:
    """The result lies complete in the job's folder."""

    job: str
    files: tuple[FileInfo, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """The job noticed that it was cancelled."""

    job: str


@dataclass(frozen=True)
class Failed:
    """The job can't be done; worn: the worker should be replaced (it ran out of memory)."""

    job: str
    error: ErrorInfo
    worn: bool = False


@dataclass(frozen=True)
class Lost:
    """What computed the job elsewhere is gone; how: in words."""

    job: str
    how: str


End = Finished | Stopped | Failed | Lost
BackstageMessage = Ready | Beat | RunJob | CancelJob | Update | End
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Ready, Beat, RunJob, CancelJob, Update, Finished, Stopped, Failed, Lost)}


def to_frames(message: BackstageMessage) -> list[bytes]:
    """Return the frames of a message."""
    return pack({"type": type(message).__name__}, message)


def from_frames(frames: Sequence[bytes]) -> BackstageMessage:
    """Return the message of frames; raises ProtocolError."""
    kind = unpack_header(frames).get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ProtocolError(f"there is no backstage message {kind!r}")
    made: BackstageMessage = unpack_content(frames, _KINDS[kind], {})
    return made
