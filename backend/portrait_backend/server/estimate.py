"""How long a job will still take: from its own pace in the stage it is in, and from how long the later stages took last time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

MEMORY = 0.5
"""Share of the newest job in what is remembered of a stage."""


class Estimate:
    """Seconds left of running jobs, learnt from finished ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[str, list[tuple[str, float]]] = {}
        self._typical: dict[str, float] = {}
        self._order: list[str] = []

    def start(self, job: str) -> None:
        """A job starts."""
        self._running[job] = []

    def left(self, job: str, stage: str, step: int, steps: int) -> float | None:
        """Return the seconds left of a job that is at `step` of `steps` in `stage`; None as long as nothing is known."""
        seen = self._running.setdefault(job, [])
        now = self._clock()
        if not seen or seen[-1][0] != stage:
            seen.append((stage, now))
        elapsed = now - seen[-1][1]
        if step > 0:
            here = elapsed / step * max(0, steps - step)
        elif stage in self._typical:
            here = max(0.0, self._typical[stage] - elapsed)
        else:
            return None
        later = self._order[self._order.index(stage) + 1 :] if stage in self._order else []
        return here + sum(self._typical[name] for name in later)

    def finish(self, job: str) -> None:
        """A job is completed: remember how long its stages took."""
        seen = [*self._running.pop(job, []), ("", self._clock())]
        for (stage, start), (_, end) in itertools.pairwise(seen):
            before = self._typical.get(stage, end - start)
            self._typical[stage] = before + MEMORY * (end - start - before)
        if len(seen) > len(self._order):
            self._order = [stage for stage, _ in seen[:-1]]
