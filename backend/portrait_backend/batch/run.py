"""The whole batch: plan, lock, make, summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from portrait_backend.batch.plan import Item
from portrait_backend.batch.pool import Listener, Pool
from portrait_backend.batch.summary import Summary
from portrait_backend.batch.unfinished import remove_half_stages
from portrait_backend.batch.worker import ENGINE, Engine
from portrait_backend.job_folder import remove_litter
from portrait_backend.processes import only_one
from portrait_shared.errors import PortraitDiffusionError

LOCK = ".batch.lock"


class Interrupted(Exception):
    """Ctrl-C: what was being made has been cleared away, what was finished lies there."""

    def __init__(self, summary: Summary) -> None:
        super().__init__(summary.sentence())
        self.summary = summary


def run_batch(
    items: Sequence[Item],
    output: Path,
    listener: Listener,
    jobs: int = 1,
    redo: bool = False,
    engine: str | Engine | None = None,
    gpus: Sequence[int] = (),
) -> Summary:
    """Make the heads of `items` below the folder `output` in `jobs` processes, spread over `gpus`, and write the summary there.

    Heads that lie there finished are skipped unless `redo`. Raises PortraitDiffusionError output-is-file, output-not-writable,
    output-in-use; Interrupted after Ctrl-C, with the summary written.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    with _held(output):
        remove_litter(item.folder for item in items)
        remove_half_stages(item.folder for item in items)
        pool = Pool(items, jobs, listener, redo, engine or ENGINE, gpus)
        interruption: KeyboardInterrupt | None = None
        try:
            pool.run()
        except KeyboardInterrupt as error:
            interruption = error
        finally:  # a SIGTERM goes through here too
            summary = Summary(output, items, pool.outcomes, started, time.perf_counter() - clock)
            summary.write()
    if interruption is not None:
        raise Interrupted(summary) from interruption
    return summary


@contextmanager
def _held(output: Path) -> Iterator[None]:
    """Make the output folder and hold it: two batches in one would clear away each other's work."""
    if output.exists() and not output.is_dir():
        raise PortraitDiffusionError("output-is-file", f"{output} is a file", "Give -o a folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / LOCK).touch()
    except OSError as error:
        raise PortraitDiffusionError(
            "output-not-writable", f"can't write to {output} ({error.strerror})", "Choose another folder with -o"
        ) from error
    hint = "Wait for it, or choose another folder with -o"
    refusal = PortraitDiffusionError("output-in-use", f"another batch is writing to {output}", hint, retryable=True)
    with only_one(output / LOCK, refusal):
        yield
