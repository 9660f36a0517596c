"""The worker process: one device, one job at a time, warm between jobs.

The main thread computes. A second thread owns the socket to the front end, so heartbeats and cancelling work during
the longest step; a third one ends the process the moment the front end is gone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from portrait_backend.files import disk_full, is_disk_full
from portrait_backend.processes import leave_with_parent, only_device
from portrait_backend.server import backstage as b
from portrait_backend.server.executor import PIPELINE, Cancelled, Engine, EngineFactory, JobFailed, Reporter, WorkerLost, make_engine
from portrait_backend.server.folders import JobFolder
from portrait_backend.server.keys import KeyPair
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import MAX_MESSAGE_BYTES, ErrorInfo, FileInfo

INNER = "inproc://worker"
PROGRESS_SECONDS = 0.1
"""Reports that follow each other faster are left out, unless a stage starts or ends."""
PREVIEW_SECONDS = 0.5
LOG_LINES = 30
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerStart:
    """What a worker process is started with."""

    endpoint: str
    front_key: str
    keys: KeyPair = field(repr=False)
    device: str = "auto"
    engine: EngineFactory = PIPELINE


def main(start: WorkerStart) -> None:
    """Run a worker until the front end says goodbye or is gone; the target of the process."""
    warnings.simplefilter("ignore")  # the libraries' chatter; what users should know is in a result's warnings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the front end decides
    os.environ.update(only_device(start.device, os.environ.get("CUDA_VISIBLE_DEVICES", "")))  # torch is not loaded yet
    leave_with_parent()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inner = context.socket(zmq.PAIR)
    inner.bind(INNER)
    state = _State()
    threading.Thread(target=_carry, args=(context, start, state), name="messages", daemon=True).start()
    try:
        engine = make_engine(start.engine, start.device)
        inner.send_multipart(b.to_frames(b.Ready(engine.describe(), waiting=False)))
        engine.warm_up()
        inner.send_multipart(b.to_frames(b.Ready(engine.describe())))
        _work(engine, inner, state)
    except PortraitDiffusionError as error:
        inner.send_multipart(b.to_frames(b.Failed("", ErrorInfo.of(error))))
        threading.Event().wait()  # the front end reads it and ends this process


def _work(engine: Engine, inner: zmq.Socket[bytes], state: _State) -> None:
    """Run job after job; raises PortraitDiffusionError when there is nothing to compute with any more."""

    def report(update: b.Update) -> None:
        inner.send_multipart(b.to_frames(update))

    while True:
        message = b.from_frames(inner.recv_multipart())
        if isinstance(message, b.RunJob):
            reporter = Throttle(message.job, report, partial(state.stops, message.job))
            inner.send_multipart(b.to_frames(run_job(engine, message, reporter)))
            inner.send_multipart(b.to_frames(b.Ready(engine.describe())))


class _State:
    """What both threads of a worker know: the job that should stop."""

    def __init__(self) -> None:
        self.cancel = ""

    def stops(self, job: str) -> bool:
        """Tell whether a job should stop."""
        return self.cancel == job


def _carry(context: zmq.Context[zmq.Socket[bytes]], start: WorkerStart, state: _State) -> None:
    """Carry messages between the front end and the computing thread, and send heartbeats."""
    inner = context.socket(zmq.PAIR)
    inner.connect(INNER)
    outer = context.socket(zmq.PAIR)
    outer.setsockopt(zmq.LINGER, 0)
    outer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    outer.curve_serverkey = start.front_key.encode()
    outer.curve_publickey, outer.curve_secretkey = start.keys.public.encode(), start.keys.secret.encode()
    outer.connect(start.endpoint)
    poller = zmq.Poller()
    poller.register(inner, zmq.POLLIN)
    poller.register(outer, zmq.POLLIN)
    beat = time.monotonic()
    while True:
        ready = dict(poller.poll(max(0, round(1000 * (beat - time.monotonic())))))
        if inner in ready:
            outer.send_multipart(inner.recv_multipart())
        if outer in ready:
            frames = outer.recv_multipart()
            message = b.from_frames(frames)
            if isinstance(message, b.CancelJob):
                state.cancel = message.job
            elif isinstance(message, b.RunJob):
                state.cancel = ""  # a resumed job may have been cancelled before
                inner.send_multipart(frames)
        if time.monotonic() >= beat:
            beat = time.monotonic() + b.BEAT_SECONDS
            outer.send_multipart(b.to_frames(b.Beat()))


class Throttle:
    """The reporter of a job: passes its reports on to `send`, not more often than anybody can look at them."""

    def __init__(self, job: str, send: Callable[[b.Update], None], cancelled: Callable[[], bool], previews: bool = True) -> None:
        self._job, self._send, self._cancelled, self._previews = job, send, cancelled, previews
        self._stage, self._step, self._sent, self._previewed = "", 0, 0.0, 0.0

    def wants_preview(self) -> bool:
        """Tell whether a preview would be sent if it was reported now."""
        return self._previews and time.monotonic() - self._previewed >= PREVIEW_SECONDS

    def report(self, stage: str, step: int, steps: int, metrics: dict[str, float], preview: bytes | None) -> None:
        """Pass on how far the job is, or leave it out; preview: JPEG."""
        now = time.monotonic()
        if stage != self._stage:
            self._step = 0
        elif step < steps and now - self._sent < PROGRESS_SECONDS and preview is None:
            return
        self._step = step = max(step, self._step)  # a step inside a step must not set the bar back
        self._stage, self._sent = stage, now
        if preview is not None:
            self._previewed = now
        self._send(b.Update(self._job, stage, step, steps, metrics, preview))

    def cancelled(self) -> bool:
        """Tell whether the job should stop."""
        return self._cancelled()


def run_job(engine: Engine, job: b.RunJob, reporter: Reporter) -> b.End:
    """Run a job and say how it ended, whatever happens."""
    try:
        JobFolder(Path(job.folder)).remove_litter()
        notes = engine.run(job, reporter)
        return b.Finished(job.job, result_files(JobFolder(Path(job.folder)).result), notes)
    except Cancelled:
        return b.Stopped(job.job)
    except WorkerLost as lost:
        return b.Lost(job.job, str(lost))
    except JobFailed as failed:
        return b.Failed(job.job, failed.error)
    except PortraitDiffusionError as error:
        return b.Failed(job.job, _error_info(error, job.settings), worn=error.code == "out-of-memory")
    except Exception as error:  # noqa: BLE001 - the outermost frame of a job: a fault of ours fails the job, not the worker
        if is_disk_full(error):
            return b.Failed(job.job, ErrorInfo.of(disk_full(error)))
        text = "".join(traceback.format_exception(error))
        log.error("job %s failed\n%s", job.job, text)
        first = (str(error).splitlines() or [""])[0]
        hint = "Please report it with the server's log"
        last = "\n".join(text.splitlines()[-LOG_LINES:])
        return b.Failed(job.job, ErrorInfo("internal-error", f"{type(error).__name__}: {first}", hint, log=last))


def _error_info(error: PortraitDiffusionError, settings: dict[str, Any]) -> ErrorInfo:
    suggested = lighter(settings) if error.code == "out-of-memory" else {}
    hint = "Close other programs, or take the suggested smaller settings" if suggested else error.hint
    return ErrorInfo(error.code, error.message, hint, error.retryable, suggested=suggested)


def lighter(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings (in their JSON form) with what costs most memory halved, never below what is allowed."""
    from portrait_shared.settings import from_dict, to_dict, walk

    values = to_dict(from_dict(settings))
    for info in walk():
        group, _, name = info.path.rpartition(".")
        if info.path in MEMORY_HUNGRY and info.minimum is not None:
            step = int(info.step or 1)
            values[group][name] = max(int(info.minimum), values[group][name] // 2 // step * step)
    return values


MEMORY_HUNGRY = ("mesh.resolution", "mesh.faces", "mesh.texture_size", "output.view_size")


def result_files(folder: Path) -> tuple[FileInfo, ...]:
    """Return the files of a finished result with their sizes and sha256."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found.append(FileInfo(path.relative_to(folder).as_posix(), path.stat().st_size, digest))
    return tuple(found)
