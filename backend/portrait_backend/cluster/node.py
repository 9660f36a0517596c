"""What runs on a node of the cluster: an actor with an engine, one job at a time, warm between jobs.

One thread computes, another one answers: how far it is, what was finished, whether it should stop.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from portrait_backend import __version__
from portrait_backend.cluster.parcels import News, NewStages, Order, read_files, write_files
from portrait_backend.server import backstage as b
from portrait_backend.server.executor import Engine, make_engine
from portrait_backend.server.folders import JobFolder
from portrait_backend.server.worker import Throttle, run_job
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import ErrorInfo

NEWS_SECONDS = 0.25
"""A question for news is answered after so long at the latest."""


class HeadWorker:
    """The actor."""

    def __init__(self, engine: str, device: str) -> None:
        warnings.simplefilter("ignore")
        self._wake = threading.Condition()
        self._updates: dict[str, b.Update] = {}
        self._cancelled = ""
        self._stages: NewStages | None = None
        self._engine: Engine | None = None
        self._problem: list[bytes] | None = None
        try:
            self._engine = make_engine(engine, device)
            self._engine.warm_up()
        except PortraitDiffusionError as error:
            self._problem = b.to_frames(b.Failed("", ErrorInfo.of(error)))

    def describe(self) -> tuple[list[bytes], str, str]:
        """Return the device as a message (or why it can't be used), the version of this package, and the node's name."""
        if self._engine is None or self._problem is not None:
            return self._problem or [], __version__, platform.node()
        return b.to_frames(b.Ready(self._engine.describe())), __version__, platform.node()

    def run(self, order: Order) -> News:
        """Run a job to its end and return that, with all that was not told yet."""
        assert self._engine is not None
        folder = JobFolder(Path(tempfile.mkdtemp(prefix="portrait-diffusion-")))
        try:
            folder.create(order.photo)
            write_files(order.checkpoints, folder.checkpoints)
            if order.geometry is not None:
                folder.geometry.mkdir()
                write_files(order.geometry, folder.geometry)
            with self._wake:
                self._updates, self._stages = {}, NewStages(folder.checkpoints, order.checkpoints)
            job = b.RunJob(order.job, str(folder.path), order.settings, order.source, order.start)
            reporter = Throttle(order.job, self._note, lambda: self._cancelled == order.job, order.previews)
            end = run_job(self._engine, job, reporter)
            rest = self._take()
            result = read_files(folder.result) if isinstance(end, b.Finished) else None
            return News((*rest.messages, b.to_frames(end)), rest.checkpoints, result)
        finally:
            self._stages = None
            shutil.rmtree(folder.path, ignore_errors=True)

    def news(self) -> News:
        """Return what there is since the last time; waits a moment for it."""
        with self._wake:
            if not self._updates:
                self._wake.wait(NEWS_SECONDS)
        return self._take()

    def cancel(self, job: str) -> None:
        """Stop a job at its next report."""
        self._cancelled = job

    def _note(self, update: b.Update) -> None:
        with self._wake:
            before = self._updates.pop(update.stage, None)
            if before is not None and update.preview is None and before.preview is not None:
                update = b.Update(update.job, update.stage, update.step, update.steps, update.metrics, before.preview)
            self._updates[update.stage] = update
            self._wake.notify_all()

    def _take(self) -> News:
        with self._wake:
            updates, self._updates = self._updates, {}
            found: dict[str, Any] = {} if self._stages is None else self._stages.take()
        return News(tuple(b.to_frames(update) for update in updates.values()), found)
