"""A row of the table that `python3 -m benchmarks` prints: our path and a reference on the same work, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """What was compared; processor seconds of ours and the reference, all threads together (None: there is none); what agrees."""

    work: str
    reference: str
    ours: float
    theirs: float | None
    agreement: str
    aim: str
    met: bool

    @property
    def ratio(self) -> float | None:
        """How many times as fast ours is."""
        return None if self.theirs is None else self.theirs / max(self.ours, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {**asdict(self), "ratio": self.ratio}


def interleaved(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median processor seconds of each call; they take turns, so that a busy machine slows all alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for times, call in zip(seconds, calls, strict=True):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    return [median(times) for times in seconds]


def table(rows: Sequence[Row]) -> str:
    """Return rows as a markdown table."""
    lines = ["| work | reference | ours, s | reference, s | ratio | agreement | aim |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        verdict = "met" if row.met else "**missed**"
        theirs, ratio = ("-", "-") if row.theirs is None else (f"{row.theirs:.3g}", f"{row.ratio:.1f}")
        columns = (row.work, row.reference, f"{row.ours:.3g}", theirs, ratio, row.agreement, f"{row.aim}: {verdict}" if row.aim else "")
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)
