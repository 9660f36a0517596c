"""The messages between a client and the backend, and their frames. docs/protocol.md is the specification.

Names and fields may be added; those that are here keep their meaning within one PROTOCOL_VERSION.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.wire import ProtocolError as ProtocolError
from portrait_shared.wire import pack, unpack_content, unpack_header

PROTOCOL_VERSION = 1
JobState = Literal["queued", "running", "cancelling", "cancelled", "failed", "completed"]
TERMINAL: frozenset[str] = frozenset({"cancelled", "failed", "completed"})
"""States that a job stays in unless it is resumed."""

MAX_PHOTO_BYTES = 100 * 10**6
MAX_CHUNK_BYTES = 2**20
MAX_NAME_LENGTH = 120
MAX_MESSAGE_BYTES = MAX_PHOTO_BYTES + 2**20
"""Limit of one frame (ZMQ_MAXMSGSIZE); a photo is the largest."""
HEARTBEAT_SECONDS = 1.0
"""How often a client says that it is there."""
SILENCE_SECONDS = 10.0
"""A side that has been silent for so long is taken for gone; answering a heartbeat takes a fraction of it."""
JOB_ID = re.compile(r"[0-9a-f]{32}")
FILE_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
"""Names of result files: at most one folder, never a path that leaves the result."""


@dataclass(frozen=True)
class ErrorInfo:
    """A failure as users see it; log: the last lines of the traceback, "" where none helps; suggested: settings that may work."""

    code: str
    message: str
    hint: str
    retryable: bool = False
    log: str = ""
    suggested: dict[str, Any] = field(default_factory=dict)

    def exception(self) -> PortraitDiffusionError:
        """Return it as the exception to raise."""
        return PortraitDiffusionError(self.code, self.message, self.hint, self.retryable)

    @classmethod
    def of(cls, error: PortraitDiffusionError, log: str = "") -> ErrorInfo:
        """Return an exception as data."""
        return cls(error.code, error.message, error.hint, error.retryable, log)


@dataclass(frozen=True)
class FileInfo:
    """A file of a result: its name inside the result (posix), size in bytes, sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class JobInfo:
    """A job as its owner sees it. Times are seconds since 1970 (UTC); eta: seconds left, None where unknown."""

    id: str
    name: str
    state: JobState
    created: float
    started: float | None = None
    finished: float | None = None
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    photo_sha256: str = ""
    photo_name: str = ""
    stage: str = ""
    step: int = 0
    steps: int = 0
    eta: float | None = None
    error: ErrorInfo | None = None
    warnings: tuple[str, ...] = ()
    files: tuple[FileInfo, ...] = ()
    parent: str | None = None
    start: str | None = None

    @property
    def done(self) -> bool:
        """Whether the job has come to an end."""
        return self.state in TERMINAL


@dataclass(frozen=True)
class WeightInfo:
    """A weight file of the backend; state: ok, missing or altered."""

    name: str
    size: int
    sha256: str
    state: str


@dataclass(frozen=True)
class ModelInfo:
    """A model that can be had besides the shipped weights, with the facts that `models list` prints.

    state: absent, incomplete, installed or damaged; converted: whether it is ready where it has to be converted first; commercial_use:
    allowed, not allowed or unclear; command: what the owner of the backend runs to get it, "" where it is ready; manual: whether its
    files have to be downloaded by a person (from `page`).
    """

    name: str
    title: str
    purpose: str
    state: str
    size_text: str
    page: str
    licence: str
    licence_page: str
    commercial_use: str
    note: str = ""
    converted: bool = False
    command: str = ""
    manual: bool = False


@dataclass(frozen=True)
class ServerInfo:
    """What a backend is and has; device is "starting" and device_name "" until its worker has looked."""

    package_version: str
    protocol_version: int
    device: str
    device_name: str = ""
    memory_mb: int | None = None
    memory_free_mb: int | None = None
    stages: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    weights: tuple[WeightInfo, ...] = ()
    pid: int = 0
    started: float = 0.0
    queued: int = 0
    running: int = 0
    max_photo_bytes: int = MAX_PHOTO_BYTES
    local: bool = False
    """Whether this client's key is the local one, which may stop the backend."""


def new_id() -> str:
    """Return a new random identifier (of a job or a request)."""
    return secrets.token_hex(16)


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all messages; request: the number of a request, repeated in its reply, "" in what is pushed."""

    IN_HEADER: ClassVar[tuple[str, ...]] = ("request",)
    request: str = ""


@dataclass(frozen=True)
class Hello(Message):
    """The first message of a client; answered by HelloReply or the error protocol-mismatch."""

    client: str
    package_version: str
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class HelloReply(Message):
    """What the backend is."""

    info: ServerInfo


@dataclass(frozen=True)
class Ping(Message):
    """A heartbeat; answered by Pong."""


@dataclass(frozen=True)
class Pong(Message):
    """The answer to a heartbeat."""


@dataclass(frozen=True)
class JobSubmit(Message):
    """Put a job into the queue. job: an id that the client made; sending it again never makes a second job.

    photo: the file's bytes, None with `parent` (then it is the parent's); start: None for a whole job, "texture" to keep the
    geometry of the finished job `parent`.
    """

    job: str
    settings: dict[str, Any]
    photo: bytes | None = None
    photo_name: str = ""
    name: str = ""
    parent: str | None = None
    start: str | None = None


@dataclass(frozen=True)
class JobGet(Message):
    """Ask for a job; answered by JobReply."""

    job: str


@dataclass(frozen=True)
class JobCancel(Message):
    """Cancel a job; answered by JobReply. A job that has ended stays as it is."""

    job: str


@dataclass(frozen=True)
class JobResume(Message):
    """Put a failed or cancelled job back into the queue: it goes on after its last finished stage; answered by JobReply."""

    job: str


@dataclass(frozen=True)
class JobReply(Message):
    """A job as it is now."""

    job: JobInfo


@dataclass(frozen=True)
class JobDelete(Message):
    """Delete a job that has ended, with its files; answered by Done."""

    job: str


@dataclass(frozen=True)
class JobList(Message):
    """Ask for the client's own jobs, newest first, `limit` of them after leaving out `offset`; answered by JobListReply."""

    limit: int = 100
    offset: int = 0


@dataclass(frozen=True)
class JobListReply(Message):
    """Some of the client's jobs, newest first; total: how many there are."""

    jobs: tuple[JobInfo, ...]
    total: int


@dataclass(frozen=True)
class JobResult(Message):
    """Ask for `length` bytes of a result file from `offset` on; answered by ResultChunk."""

    job: str
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class ResultChunk(Message):
    """A piece of a result file; shorter than asked only at the end of the file."""

    job: str
    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Done(Message):
    """The request was carried out."""


@dataclass(frozen=True)
class ServerStatus(Message):
    """Ask how the backend is now; answered by StatusReply."""


@dataclass(frozen=True)
class StatusReply(Message):
    """How the backend is now."""

    info: ServerInfo


@dataclass(frozen=True)
class ModelsList(Message):
    """Ask for the weights that the backend has; answered by ModelsReply."""


@dataclass(frozen=True)
class ModelsReply(Message):
    """The weights that the backend has, and the models that can be had (none from an older backend)."""

    weights: tuple[WeightInfo, ...]
    models: tuple[ModelInfo, ...] = ()


@dataclass(frozen=True)
class ServerShutdown(Message):
    """Ask the backend to leave (local key only); answered by Done. Running jobs go on at its next start."""


@dataclass(frozen=True)
class ErrorReply(Message):
    """The request could not be carried out."""

    error: ErrorInfo


@dataclass(frozen=True)
class JobProgress(Message):
    """Pushed: how far a running job is. Some may be left out, the latest wins.

    sequence counts up within one job; eta: seconds left, None where unknown; preview: JPEG of the head as it is now, or None.
    """

    job: str
    sequence: int
    stage: str
    step: int
    steps: int
    eta: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    preview: bytes | None = None


@dataclass(frozen=True)
class JobStateChanged(Message):
    """Pushed: the job has come into another state (ask again with JobGet after a lost connection)."""

    job: JobInfo


MESSAGES: dict[str, type[Message]] = {
    "hello": Hello,
    "hello.reply": HelloReply,
    "ping": Ping,
    "pong": Pong,
    "job.submit": JobSubmit,
    "job.get": JobGet,
    "job.cancel": JobCancel,
    "job.resume": JobResume,
    "job.delete": JobDelete,
    "job.reply": JobReply,
    "job.list": JobList,
    "job.list.reply": JobListReply,
    "job.result": JobResult,
    "job.result.chunk": ResultChunk,
    "job.progress": JobProgress,
    "job.state": JobStateChanged,
    "server.status": ServerStatus,
    "server.status.reply": StatusReply,
    "models.list": ModelsList,
    "models.list.reply": ModelsReply,
    "server.shutdown": ServerShutdown,
    "done": Done,
    "error": ErrorReply,
}
_NAMES = {kind: name for name, kind in MESSAGES.items()}


def serialise(message: Message) -> list[bytes]:
    """Return the frames of a message."""
    return pack({"type": _NAMES[type(message)], "request": message.request, "protocol": PROTOCOL_VERSION}, message)


def deserialise(frames: Sequence[bytes]) -> Message:
    """Return the message that the frames hold; raises ProtocolError for anything else."""
    header = unpack_header(frames)
    kind, request = header.get("type"), header.get("request", "")
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise ProtocolError(f"there is no message {repr(kind)[:60]}")
    return unpack_content(frames, MESSAGES[kind], {"request": request})


def request_of(frames: Sequence[bytes]) -> str:
    """Return the request number of frames that may hold no valid message, "" if there is none: for the error reply."""
    try:
        request = unpack_header(frames).get("request", "")
    except ProtocolError:
        return ""
    return request if isinstance(request, str) else ""


def sha256(data: bytes) -> str:
    """Return the sha256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
