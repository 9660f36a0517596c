"""How far a batch is: bars on a terminal, a line per head elsewhere; both on stderr."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from portrait_backend.batch.pool import Listener

if TYPE_CHECKING:
    from portrait_backend.batch.plan import Item
    from portrait_backend.batch.worker import Outcome, Report


class BatchReport(Listener, AbstractContextManager["BatchReport"], Protocol):
    """A listener around the work."""


def batch_report(heads: int, as_json: bool) -> BatchReport:
    """Return bars on a terminal, plain lines elsewhere and with --json."""
    return PlainReport(heads) if as_json or not sys.stderr.isatty() else BarReport(heads)


def line(item: Item, outcome: Outcome) -> str:
    """Return how a head ended, in one line."""
    reason = f": {outcome.error['message']}. {outcome.error['hint']}" if outcome.error else ""
    seconds = f", {outcome.seconds:.0f} s" if outcome.state == "completed" else ""
    return " ".join(f"{item.name}: {outcome.state}{seconds}{reason}".split())


class PlainReport:
    """A line when a head starts and one when it ends."""

    def __init__(self, heads: int) -> None:
        self._heads, self._ended = heads, 0

    def __enter__(self) -> PlainReport:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def started(self, item: Item) -> None:
        """Print its name."""
        self._print(f"{item.name}: started")

    def progressed(self, item: Item, report: Report) -> None:
        """Print nothing: many heads at once would make a flood."""

    def ended(self, item: Item, outcome: Outcome) -> None:
        """Print how it ended and how many have."""
        self._ended += 1
        self._print(f"[{self._ended}/{self._heads}] {line(item, outcome)}")

    @staticmethod
    def _print(text: str) -> None:
        print(text.encode("utf-8", "replace").decode(), file=sys.stderr, flush=True)


class BarReport:
    """A bar for the whole batch and one for each head that is being made; a line for each that failed."""

    def __init__(self, heads: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, TextColumn("left"), TimeRemainingColumn(compact=True), console=Console(stderr=True))
        self._all = self._bars.add_task("heads", total=heads)
        self._tasks: dict[int, Any] = {}

    def __enter__(self) -> BarReport:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def started(self, item: Item) -> None:
        """Add its bar."""
        self._tasks[item.index] = self._bars.add_task(item.name, total=None)

    def progressed(self, item: Item, report: Report) -> None:
        """Move its bar."""
        self._bars.update(self._tasks[item.index], description=f"{item.name}: {report.stage}", completed=report.step, total=report.steps)

    def ended(self, item: Item, outcome: Outcome) -> None:
        """Take its bar away."""
        task = self._tasks.pop(item.index, None)
        if task is not None:
            self._bars.remove_task(task)
        self._bars.advance(self._all)
        if outcome.state == "failed":
            self._bars.console.print(line(item, outcome), markup=False, highlight=False)
