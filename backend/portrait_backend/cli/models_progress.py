"""How far a download or a check is: bars on a terminal, plain lines elsewhere, JSON lines for programs. All of it on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from portrait_backend.models.catalogue import Model
    from portrait_backend.models.store import Report

JsonProgress = Annotated[
    bool, typer.Option("--json-progress", help="Print progress on stderr as one JSON object a line: step, file, done, total (bytes).")
]
LINE_EVERY = 5.0
"""Seconds between two plain lines."""
JSON_EVERY = 0.25
"""Seconds between two JSON lines: often enough for a bar that moves."""
CHECKING = "checking "
"""What the store puts before the name of a file that it reads again."""


@contextmanager
def progress(quiet: bool, as_json: bool, model: Model) -> Iterator[Report]:
    """Yield a progress callback: JSON lines if `as_json`, else nothing if `quiet`, else bars on a terminal or a line now and then."""
    if as_json:
        yield json_lines(lambda line: print(line, file=sys.stderr, flush=True), model)
    elif quiet:
        yield lambda name, done, total: None
    elif not sys.stderr.isatty():
        yield lines(lambda line: print(line, file=sys.stderr, flush=True))
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=Console(stderr=True)) as bars:
            tasks: dict[str, Any] = {}

            def show(name: str, done: int, total: int) -> None:
                if name not in tasks:
                    tasks[name] = bars.add_task(name, total=total or None)
                bars.update(tasks[name], completed=done, total=total or None)

            yield show


def lines(write: Callable[[str], Any], clock: Callable[[], float] = time.monotonic) -> Report:
    """Return a progress callback that writes a line per file and every few seconds: "unet/x: 120 of 3438 MB"."""
    current, printed = "", 0.0

    def show(name: str, done: int, total: int) -> None:
        nonlocal current, printed
        if name == current and clock() - printed < LINE_EVERY:
            return
        current, printed = name, clock()
        write(f"{name}: {done / 1e6:.0f}{f' of {total / 1e6:.0f}' if total else ''} MB")

    return show


def json_lines(write: Callable[[str], Any], model: Model, clock: Callable[[], float] = time.monotonic) -> Report:
    """Return a progress callback that writes JSON lines: {"step": "fetching" or "checking", "file", "done", "total"}.

    done, total: bytes of the model's files together, as far as their sizes are known; files come in the model's order, so those before
    the present one are done, whether in this run or in an interrupted one. A file's first and last report are always written.
    """
    sizes = {file.path: file.size for file in model.files}
    order = list(sizes)
    current, printed = "", 0.0

    def show(name: str, done: int, total: int) -> None:
        nonlocal current, printed
        path = name.removeprefix(CHECKING)
        sizes[path] = total or sizes.get(path, 0)
        if name == current and done != total and clock() - printed < JSON_EVERY:
            return
        current, printed = name, clock()
        before = sum(sizes[file] for file in order[: order.index(path)]) if path in order else 0
        step = "checking" if name.startswith(CHECKING) else "fetching"
        write(json.dumps({"step": step, "file": path, "done": before + done, "total": max(sum(sizes.values()), before + done)}))

    return show
