"""The process that makes heads, one after the other: what happens to it happens to the photo it is busy with and to no other.

The parent speaks with it through a pipe. It loads torch only here, after the number of threads is set.
"""

from __future__ import annotations

import importlib
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from portrait_backend.batch.unfinished import stages_folder
from portrait_backend.files import disk_full, is_disk_full
from portrait_backend.processes import leave_with_parent, only_device
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

ENGINE = "portrait_backend.batch.worker:generate"
REPORT_SECONDS = 0.2
LOG_LINES = 30
WORN_BY = ("out-of-memory",)
"""After these errors the process is replaced: what it holds would be missing for the next photo."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
State = Literal["completed", "skipped", "failed", "cancelled"]


@dataclass(frozen=True)
class Task:
    """A head to make."""

    index: int
    photo: Path
    settings: Settings
    folder: Path


@dataclass(frozen=True)
class Report:
    """How far a head is."""

    index: int
    stage: str
    step: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """How a head ended; error: as `PortraitDiffusionError.as_dict`, and "log", the end of the traceback of a fault of ours."""

    index: int
    state: State
    seconds: float = 0.0
    sha256: str = ""
    warnings: tuple[str, ...] = ()
    error: dict[str, Any] = field(default_factory=dict)

    @property
    def worn(self) -> bool:
        """Whether its process should be replaced."""
        return self.error.get("code") in WORN_BY


class Step(Protocol):
    """How far a head is: `portrait_backend.context.Progress`, or what came from elsewhere."""

    @property
    def stage(self) -> str:
        """The stage's name."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def steps(self) -> int:
        """All of them."""


class HeadFailed(Exception):
    """Raised by an engine that was told elsewhere how the head failed; error: as in `Outcome`."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


class Stopped(Exception):
    """Raised by an engine that noticed elsewhere that the batch stops."""


@dataclass(frozen=True)
class WorkerStart:
    """What a worker process is started with.

    engine: what makes a head, "module:name" or an object that can be pickled; threads: 0 for as many as there are cores; gpu: the only
    one it sees, None for all.
    """

    engine: str | Engine = ENGINE
    threads: int = 0
    gpu: int | None = None


class Engine(Protocol):
    """Makes one head: its folder appears complete or not at all. Raises PortraitDiffusionError, Cancelled, HeadFailed, Stopped."""

    def __call__(self, task: Task, on_progress: Callable[[Step], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Return the head's record."""


def generate(task: Task, on_progress: Callable[[Step], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Run the pipeline; it goes on after the last finished stage that an earlier batch left."""
    from portrait_backend import pipeline

    stages = stages_folder(task.folder)
    return pipeline.generate(task.photo, task.settings, on_progress, task.folder, cancelled, checkpoints=stages).record


def main(pipe: Connection, stop: Event, start: WorkerStart) -> None:
    """Make heads until the pipe says None; the target of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    warnings.simplefilter("ignore")  # the libraries' chatter; what users should know is in a head's warnings
    leave_with_parent()
    if start.gpu is not None:
        os.environ.update(only_device(f"cuda:{start.gpu}", os.environ.get("CUDA_VISIBLE_DEVICES", "")))
    if start.threads:
        os.environ.update({name: str(start.threads) for name in THREADS if not os.environ.get(name)})
    engine = _engine(start.engine)
    while (task := _next(pipe)) is not None:
        pipe.send(run(engine, task, pipe.send, stop.is_set))


def _engine(given: str | Engine) -> Engine:
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    engine: Engine = getattr(importlib.import_module(module), name)
    return engine


def _next(pipe: Connection) -> Task | None:
    try:
        task: Task | None = pipe.recv()
    except EOFError:
        return None
    return task


def run(engine: Engine, task: Task, send: Callable[[Report], None], cancelled: Callable[[], bool]) -> Outcome:
    """Make one head and say how it went, whatever happens."""
    clock = time.perf_counter()
    sent = 0.0

    def on_progress(progress: Step) -> None:
        nonlocal sent
        now = time.perf_counter()
        if now - sent >= REPORT_SECONDS:
            sent = now
            send(Report(task.index, progress.stage, progress.step, progress.steps))

    try:
        record = engine(task, on_progress, cancelled)
    except PortraitDiffusionError as error:
        return Outcome(task.index, "failed", time.perf_counter() - clock, error=error.as_dict())
    except HeadFailed as failed:
        return Outcome(task.index, "failed", time.perf_counter() - clock, error=failed.error)
    except Stopped:
        return Outcome(task.index, "cancelled", time.perf_counter() - clock)
    except Exception as error:  # noqa: BLE001 - the outermost frame of a head: a fault of ours costs this head, not the batch
        from portrait_backend.context import Cancelled

        seconds = time.perf_counter() - clock
        if isinstance(error, Cancelled):
            return Outcome(task.index, "cancelled", seconds)
        if is_disk_full(error):
            return Outcome(task.index, "failed", seconds, error=disk_full(error).as_dict())
        return Outcome(task.index, "failed", seconds, error=fault(error))
    photo = record.get("photo", {}).get("sha256", "")
    return Outcome(task.index, "completed", time.perf_counter() - clock, photo, tuple(record.get("warnings", ())))


def fault(error: Exception) -> dict[str, Any]:
    """Return a fault of ours as an error with the end of its traceback."""
    first = (str(error).splitlines() or [""])[0]
    hint = "Please report it with the log in summary.json"
    found = PortraitDiffusionError("internal-error", f"{type(error).__name__}: {first}", hint)
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {**found.as_dict(), "log": "\n".join(lines[-LOG_LINES:])}
