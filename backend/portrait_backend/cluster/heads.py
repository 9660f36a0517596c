"""The engine of a batch whose heads are made on the nodes of a cluster; what comes home lands in its folder whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portrait_backend.batch.unfinished import stages_folder
from portrait_backend.batch.worker import HeadFailed, Step, Stopped, Task
from portrait_backend.cluster.engine import RayEngine, stages_of
from portrait_backend.cluster.options import RayOptions
from portrait_backend.cluster.parcels import Order, write_files
from portrait_backend.job_folder import RECORD, job_folder
from portrait_backend.server.executor import PIPELINE, Cancelled, JobFailed, WorkerLost
from portrait_backend.server.jobs import MAX_INTERRUPTIONS
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import new_id
from portrait_shared.settings import to_dict


@dataclass(frozen=True)
class _Step:
    stage: str
    step: int
    steps: int


class _Reporter:
    def __init__(self, on_progress: Callable[[Step], None], cancelled: Callable[[], bool]) -> None:
        self._on_progress, self.cancelled = on_progress, cancelled

    def wants_preview(self) -> bool:
        return False

    def report(self, stage: str, step: int, steps: int, metrics: dict[str, float], preview: bytes | None) -> None:
        self._on_progress(_Step(stage, step, steps))


class RayHeads:
    """Makes heads on a cluster, one at a time: a `portrait_backend.batch.worker.Engine` that can be pickled before its first head."""

    def __init__(self, options: RayOptions, device: str = "auto") -> None:
        self._made = options, PIPELINE, device
        self._link: RayEngine | None = None

    def __call__(self, task: Task, on_progress: Callable[[Step], None], cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Return the head's record. A head whose node is gone goes on at another one, after its last finished stage.

        Raises HeadFailed, Stopped, PortraitDiffusionError.
        """
        photo = _content(task.photo)
        stages = stages_folder(task.folder)
        with job_folder(task.folder) as work:
            result = self._result(task, photo, stages, _Reporter(on_progress, cancelled))
            write_files(result, work)
        record: dict[str, Any] = json.loads(result[RECORD])
        return record

    def _result(self, task: Task, photo: bytes, stages: Path, reporter: _Reporter) -> dict[str, bytes]:
        for attempt in range(MAX_INTERRUPTIONS + 1):
            order = Order(new_id(), to_dict(task.settings), task.photo.name, None, photo, stages_of(stages), previews=False)
            try:
                if self._link is None:
                    self._link = RayEngine(*self._made)
                self._link.describe()  # waits for a node, and sees that it has our version
                return self._link.do(order, reporter, stages)[1]
            except Cancelled as error:
                raise Stopped from error
            except JobFailed as failed:
                log = {"log": failed.error.log} if failed.error.log else {}
                raise HeadFailed({**failed.error.exception().as_dict(), **log}) from failed
            except WorkerLost as lost:
                if reporter.cancelled():
                    raise Stopped from lost
                how = f"{lost}, for the {attempt + 1}. time"
        hint = "Run the same command again, it goes on after the last finished stage; if it happens again, try smaller settings"
        raise PortraitDiffusionError("worker-died", f"what made this head is gone ({how})", hint, retryable=True)


def _content(photo: Path) -> bytes:
    """Return the bytes of a photo; what is wrong with them is found out on the node."""
    try:
        return photo.read_bytes()
    except FileNotFoundError as error:
        raise PortraitDiffusionError("image-missing", f"there is no file {photo}", "Check the path and its spelling") from error
    except OSError as error:
        raise PortraitDiffusionError("image-unreadable", f"can't read {photo} ({error.strerror})", "Check its permissions") from error
