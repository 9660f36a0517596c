"""How long a server keeps what clients sent it: photos are personal data, and so is what was made of them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from portrait_backend.server.folders import DataFolder
from portrait_backend.server.store import JobStore, Record

DAY_SECONDS = 86400.0
ROUND_SECONDS = 60.0
JOBS_A_ROUND = 20
"""Jobs that are removed at once while the server serves: a folder takes milliseconds, and clients wait meanwhile."""
log = logging.getLogger(__name__)


def purge(
    store: JobStore, data: DataFolder, before: float, wanted: Callable[[Record], bool] = lambda record: True, limit: int | None = None
) -> list[str]:
    """Remove ended jobs with their photos and results, and return their ids: those that ended before the time `before` and are `wanted`.

    A job that is resumed at this very moment stays. The database overwrites what it forgets; files are unlinked, not overwritten.
    """
    removed: list[str] = []
    for record in store.ended_before(before):
        if limit is not None and len(removed) >= limit:
            break
        if wanted(record) and store.remove_ended(record.info.id):
            data.job(record.info.id).remove()
            log.info("job %s purged", record.info.id, extra={"job": record.info.id, "client": record.owner})
            removed.append(record.info.id)
    if removed:
        store.scrub()
    return removed


class Retention:
    """Removes jobs that ended more than `days` ago, a few at a time; call `tick` again and again."""

    def __init__(self, store: JobStore, data: DataFolder, days: float) -> None:
        self._store, self._data, self._days = store, data, days
        self._next = -math.inf

    def tick(self) -> None:
        """Remove what is too old, if it is time to look."""
        if not math.isfinite(self._days) or time.monotonic() < self._next:
            return
        removed = purge(self._store, self._data, time.time() - self._days * DAY_SECONDS, limit=JOBS_A_ROUND)
        if len(removed) < JOBS_A_ROUND:
            self._next = time.monotonic() + ROUND_SECONDS
