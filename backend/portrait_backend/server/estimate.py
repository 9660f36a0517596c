"""How long a job will still take: the weights of its stages, learnt from finished jobs, at the pace it has shown so far."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

TYPICAL = {
    "portrait": 2.4,
    "prior": 6.1,
    "restoration": 40.0,
    "refinement": 40.0,
    "mesh": 9.9,
    "texture": 3.0,
    "views": 6.5,
    "turntable": 8.1,
}
"""Seconds of preset standard on two CPU cores (a guess for restoration and refinement); the ratios serve until a job is finished here."""
LEARN = 0.5
"""Share of the newest job in what is remembered of a stage."""
EARLY_SECONDS = 2.0
"""Before that a job's pace says nothing."""


class Estimate:
    """Seconds left of running jobs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plans: dict[str, tuple[str, ...]] = {}
        self._seen: dict[str, list[tuple[str, float]]] = {}
        self._typical: dict[tuple[str, str], float] = {}

    def start(self, job: str, kind: str, plan: Sequence[str]) -> None:
        """A job starts that will go through the stages of `plan`; jobs of one `kind` take about equally long."""
        self._plans[job] = (kind, *plan)
        self._seen[job] = [("", self._clock())]

    def left(self, job: str, stage: str, step: int, steps: int) -> float | None:
        """Return the seconds left of a job that is at `step` of `steps` in `stage`; None as long as its pace says nothing."""
        kind, *plan = self._plans.get(job, ("",))
        if stage not in plan:
            return None
        seen, now = self._seen[job], self._clock()
        if seen[-1][0] != stage:
            seen.append((stage, now))
        weights = [self._typical.get((kind, name), TYPICAL.get(name, 5.0)) for name in plan]
        at = plan.index(stage)
        done = sum(weights[:at]) + weights[at] * step / max(steps, 1)
        elapsed = now - seen[0][1]
        if done <= 0 or elapsed < EARLY_SECONDS:
            return sum(weights) - done if (kind, stage) in self._typical else None
        return elapsed / done * (sum(weights) - done)

    def finish(self, job: str, completed: bool) -> None:
        """A job has ended; if it was completed in one go, remember how long its stages took."""
        kind, *plan = self._plans.pop(job, ("",))
        seen = [*self._seen.pop(job, [])[1:], ("", self._clock())]
        if not completed or [stage for stage, _ in seen[:-1]] != plan:
            return
        for (stage, start), (_, end) in itertools.pairwise(seen):
            before = self._typical.get((kind, stage), end - start)
            self._typical[kind, stage] = before + LEARN * (end - start - before)
