"""What computes a server's jobs: worker processes on this machine, each with an engine of its own.

The engine decides where the work is done: on the process's device (`server.engine`), or on a node of a cluster
(`portrait_backend.cluster`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from portrait_backend.server import backstage as b
from portrait_shared.protocol import ErrorInfo

PIPELINE = "portrait_backend.server.engine:PipelineEngine"


class Reporter(Protocol):
    """Where an engine reports to."""

    def wants_preview(self) -> bool:
        """Tell whether a preview would be sent if it was reported now."""

    def report(self, stage: str, step: int, steps: int, metrics: dict[str, float], preview: bytes | None) -> None:
        """Pass on how far the job is; preview: JPEG."""

    def cancelled(self) -> bool:
        """Tell whether the job should stop."""


class Cancelled(Exception):
    """Raised by an engine that noticed the cancellation."""


class WorkerLost(Exception):
    """Raised by an engine when what computed the job elsewhere is gone: the job may go on at another place."""


class JobFailed(Exception):
    """Raised by an engine that was told elsewhere how the job ended."""

    def __init__(self, error: ErrorInfo) -> None:
        super().__init__(error.message)
        self.error = error


class Engine(Protocol):
    """What computes: made once per worker process, used for job after job."""

    def describe(self) -> b.DeviceInfo:
        """Return the device as it is now."""

    def warm_up(self) -> None:
        """Load what every job needs."""

    def run(self, job: b.RunJob, reporter: Reporter) -> tuple[str, ...]:
        """Make ``result`` in the job's folder, at once and complete, and return its warnings.

        Raises Cancelled, WorkerLost, JobFailed, PortraitDiffusionError.
        """


EngineFactory = str | Callable[[str], Engine]
"""Makes an engine from the name of a device, in the worker process: "module:name", or an object that can be pickled."""


@dataclass(frozen=True)
class Executor:
    """The worker processes of a server, by the names of their devices, and what they compute with.

    elsewhere: the work is done on other machines. Then a job whose worker is gone waits for another one (as often as a job may be
    interrupted), and jobs wait as long as none can be reached; otherwise they fail, and their owners resume them.
    """

    devices: tuple[str, ...] = ("auto",)
    engine: EngineFactory = PIPELINE
    elsewhere: bool = False


def make_engine(factory: EngineFactory, device: str) -> Engine:
    """Return the engine for a device."""
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        factory = getattr(importlib.import_module(module), name)
    assert callable(factory)
    return factory(device)
