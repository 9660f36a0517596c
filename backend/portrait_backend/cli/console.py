"""What the command line prints: one line per error, progress bars or plain lines, JSON."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    from types import FrameType

    from portrait_backend.context import Progress

INTERNAL, USER, CANCELLED, TERMINATED = 1, 2, 130, 143
"""Exit codes; 128 + the signal's number for the last two."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object (the result or the error) on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show warnings, and the traceback of an internal error.")]


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


class ErrorReport:
    """Prints how a command failed and returns the exit code."""

    def __init__(self, as_json: bool, debug: bool) -> None:
        self.as_json, self.debug = as_json, debug

    def user_error(self, error: PortraitDiffusionError) -> int:
        """Report something the user can mend, or that the user stopped it."""
        return self._print(error, CANCELLED if error.code == "cancelled" else USER)

    def cancelled(self) -> int:
        """Report Ctrl-C."""
        return self._print(PortraitDiffusionError("cancelled", "cancelled", "Nothing was written", retryable=True), CANCELLED)

    def internal_error(self, error: Exception) -> int:
        """Report a fault of the program: one line, the traceback goes to a log file."""
        text = "".join(traceback.format_exception(error))
        if self.debug:
            print(text, file=sys.stderr, end="")
        log = _write_log(text)
        first = (str(error).splitlines() or [""])[0]
        where = f"please report it with {log}" if log else "please report it; --debug shows the traceback"
        found = PortraitDiffusionError("internal-error", f"{type(error).__name__}: {first}", where[0].upper() + where[1:])
        return self._print(found, INTERNAL, log=str(log) if log else None)

    def _print(self, error: PortraitDiffusionError, code: int, **extra: object) -> int:
        if self.as_json:
            print_json({**error.as_dict(), **extra})
        else:
            print(" ".join(str(error).split()), file=sys.stderr, flush=True)
        return code


def _write_log(text: str) -> Path | None:
    import platformdirs

    try:
        folder = platformdirs.user_log_path("portrait-diffusion", appauthor=False, ensure_exists=True)
        path = folder / f"error-{time.strftime('%Y%m%d-%H%M%S')}.log"
        path.write_text(text, encoding="utf-8")
    except OSError:
        return None
    return path


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that a terminated job leaves nothing half-written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def quieten(debug: bool) -> None:
    """Keep the libraries' start-up chatter out of the terminal; ours goes through the result's warnings."""
    if not debug:
        warnings.simplefilter("ignore")
        logging.getLogger().setLevel(logging.ERROR)


class ProgressReport(Protocol):
    """Receives progress; a context manager around the work."""

    def __enter__(self) -> ProgressReport: ...

    def __exit__(self, *error: object) -> None: ...

    def __call__(self, progress: Progress) -> None:
        """Show one report."""


def progress_report(as_json: bool) -> ProgressReport:
    """Return progress bars on a terminal, plain lines elsewhere and with --json; both on stderr."""
    if as_json or not sys.stderr.isatty():
        return PlainProgress()
    return ProgressBars()


class PlainProgress:
    """A line when a stage starts and ends, and every few seconds between."""

    INTERVAL = 5.0

    def __init__(self, write: Callable[[str], Any] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._clock = clock
        self._stage, self._started, self._printed = "", 0.0, 0.0

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, progress: Progress) -> None:
        """Print the report if it is worth a line."""
        now = self._clock()
        if progress.stage != self._stage:
            self._stage, self._started, self._printed = progress.stage, now, now
            self._write(f"{progress.stage}: started")
        elif progress.step >= progress.steps or now - self._printed >= self.INTERVAL:
            self._printed = now
            self._write(f"{progress.stage}: {progress.step}/{progress.steps}{self._left(progress, now - self._started)}")

    @staticmethod
    def _left(progress: Progress, seconds: float) -> str:
        if not 0 < progress.step < progress.steps:
            return ""
        return f", {seconds / progress.step * (progress.steps - progress.step):.0f} s left"


class ProgressBars:
    """One bar per stage: stage, bar, step, elapsed, left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
        self._bars = Progress(*columns, TimeRemainingColumn(compact=True), console=Console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Move the bar of the report's stage; the earlier stages are complete."""
        if progress.stage not in self._tasks:
            for task in self._tasks.values():
                self._bars.update(task, completed=self._bars.tasks[task].total)
            self._tasks[progress.stage] = self._bars.add_task(progress.stage)
        self._bars.update(self._tasks[progress.stage], completed=progress.step, total=progress.steps)
