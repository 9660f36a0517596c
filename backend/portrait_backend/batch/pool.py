"""Worker processes that share the photos of a batch: a process that dies costs one head, an interruption leaves nothing half-written."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from portrait_backend.batch.plan import Item, finished
from portrait_backend.batch.unfinished import forget_stages
from portrait_backend.batch.worker import ENGINE, Engine, Outcome, Report, Task, WorkerStart, main
from portrait_backend.job_folder import remove_litter
from portrait_backend.processes import cores
from portrait_shared.errors import PortraitDiffusionError

GRACE_SECONDS = 20.0
"""An interrupted head that has not stopped after so long loses its process; stages report at least once a second."""
END_SECONDS = 5.0
ENDING = ("disk-full", "ray-unreachable", "ray-mismatched")
"""After these errors every other head would fail as well, after all its work: the batch stops."""


class Listener(Protocol):
    """Who looks at a batch."""

    def started(self, item: Item) -> None:
        """A head is being made."""

    def progressed(self, item: Item, report: Report) -> None:
        """It is so far."""

    def ended(self, item: Item, outcome: Outcome) -> None:
        """It has ended, or was there already."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    gpu: int | None = None
    item: Item | None = None


class Pool:
    """Makes the heads of `items` in `jobs` processes, spread evenly over `gpus` (numbers of CUDA devices; none: the settings decide).

    `outcomes` has what ended so far, by index, also after an interruption.
    """

    def __init__(
        self,
        items: Sequence[Item],
        jobs: int,
        listener: Listener,
        redo: bool = False,
        engine: str | Engine = ENGINE,
        gpus: Sequence[int] = (),
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self._waiting, self._listener, self._redo = deque(items), listener, redo
        self._jobs = min(jobs, len(items))
        self._start = WorkerStart(engine, max(1, cores() // self._jobs) if self._jobs > 1 else 0)
        self._gpus = gpus
        self._spawn = multiprocessing.get_context("spawn")
        self._stop = self._spawn.Event()
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []

    def run(self) -> None:
        """Make every head; whatever raises (Ctrl-C) first stops those that are being made and clears up after them."""
        try:
            while self._hand_out():
                self._listen(None)
        finally:
            self._close()

    def _hand_out(self) -> bool:
        """Give every free process a head to make; False when none is being made and none is left."""
        while len(self._busy()) < self._jobs and (item := self._next()) is not None:
            worker = next((worker for worker in self._workers if worker.item is None), None) or self._new_worker()
            worker.item = item
            self._listener.started(item)
            with suppress(OSError):  # it has just died: `_listen` sees it
                worker.pipe.send(Task(item.index, item.photo, item.settings, item.folder))
        if not self._waiting:
            self._let_go()
        return bool(self._busy())

    def _let_go(self) -> None:
        """Let idle processes leave: what they hold, memory or a place in a cluster, another one may be waiting for."""
        for worker in [worker for worker in self._workers if worker.item is None]:
            self._workers.remove(worker)
            self._leaving.append(worker)
            with suppress(OSError):
                worker.pipe.send(None)

    def _next(self) -> Item | None:
        """Return the next head that isn't there yet."""
        while self._waiting:
            item = self._waiting.popleft()
            record = None if self._redo else finished(item)
            if record is None:
                return item
            self._note(item, Outcome(item.index, "skipped", 0.0, record["photo"]["sha256"], tuple(record.get("warnings", ()))))
        return None

    def _new_worker(self) -> _Worker:
        taken = [worker.gpu for worker in self._workers]
        gpu = min(self._gpus, key=taken.count, default=None)
        ours, theirs = self._spawn.Pipe()
        process = self._spawn.Process(target=main, args=(theirs, self._stop, replace(self._start, gpu=gpu)), daemon=True)
        process.start()
        theirs.close()  # so that ours ends when the process does
        self._workers.append(_Worker(process, ours, gpu))
        return self._workers[-1]

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.item is not None]

    def _listen(self, seconds: float | None) -> None:
        """Wait for news of the heads that are being made, at most so long."""
        ready = wait([worker.pipe for worker in self._busy()], seconds)
        for worker in [worker for worker in self._busy() if worker.pipe in ready]:
            self._receive(worker)

    def _receive(self, worker: _Worker) -> None:
        item = worker.item
        assert item is not None
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.item = None
            how = self._end(worker)
            remove_litter([item.folder])
            if self._stop.is_set():
                self._note(item, Outcome(item.index, "cancelled"))
            else:
                self._note(item, Outcome(item.index, "failed", error=_died(how).as_dict()))
            return
        if isinstance(message, Report):
            self._listener.progressed(item, message)
            return
        worker.item = None
        if message.worn:
            self._end(worker)
        self._note(item, message)

    def _note(self, item: Item, outcome: Outcome) -> None:
        self.outcomes[item.index] = outcome
        if outcome.error.get("code") in ENDING:
            self._waiting.clear()
        if outcome.state in ("completed", "skipped") or (outcome.state == "failed" and not outcome.error.get("retryable")):
            forget_stages(item.folder)  # otherwise the same command goes on with them
        self._listener.ended(item, outcome)

    def _end(self, worker: _Worker) -> str:
        """End a process that is dying or worn and say how it went."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(END_SECONDS)
        how = _describe(worker.process.exitcode)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(END_SECONDS)
        return how

    def _close(self) -> None:
        """Stop what is being made, end all processes."""
        self._waiting.clear()
        try:
            self._stop.set()
            end = time.monotonic() + GRACE_SECONDS
            while self._busy() and time.monotonic() < end:
                self._listen(max(0.0, end - time.monotonic()))
            for worker in self._workers:
                with suppress(OSError):
                    worker.pipe.send(None)
            for worker in [*self._leaving, *self._workers]:
                worker.process.join(0 if worker.item else END_SECONDS)
        finally:
            for worker in [*self._leaving, *self._workers]:
                worker.process.kill()
                worker.process.join(END_SECONDS)
                worker.pipe.close()
            left = [worker.item for worker in self._busy() if worker.item is not None]
            remove_litter(item.folder for item in left)
            self.outcomes.update({item.index: Outcome(item.index, "cancelled") for item in left})


def _died(how: str) -> PortraitDiffusionError:
    hint = "Run the same command again; if it happens again, use fewer --jobs, smaller settings or another photo"
    return PortraitDiffusionError("worker-died", f"the process that made this head is gone ({how})", hint, retryable=True)


def _describe(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"ended by signal {-code}{', perhaps by the system because the memory ran out' if code == -9 else ''}"
