"""A server under light load for as long as you like, its memory written down: `python -m tests.faults.soak --minutes 60 -o soak.csv`.

Jobs run the real pipeline on an analytic head (or the light engine with --engine); every job comes from a client that connects, follows it,
fetches the result, deletes the job and leaves. Each job is a line of the table, written
at once. Exit code 1: a job failed, or the memory grew.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from portrait_shared.settings import Settings, from_dict
from tests.server.fake_engine import photo
from tests.server.harness import FAKE, Server, integrity

PIPELINE = "tests.server.fake_pipeline:FakePipeline"
SMALL = {
    "preset": "draft",
    "mesh": {"resolution": 64, "faces": 2000, "texture_size": 256},
    "output": {"view_size": 64, "turntable": "none"},
}
WARM_UP = 0.25
"""Share of the samples that is left out: allocators and caches fill first."""
GROWTH_MB_PER_HOUR = {"server": 8.0, "worker": 40.0}
"""Steeper slopes count as a leak."""


@dataclass(frozen=True)
class Sample:
    """Memory at a moment: seconds since the start, jobs done, resident MB and open files of the server, resident MB of the worker."""

    seconds: float
    jobs: int
    server_mb: float
    server_files: int
    worker_mb: float


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def one_job(server: Server, settings: Settings, number: int, folder: Path) -> None:
    """Do what a user does: connect, submit, follow, fetch, delete, leave."""
    from portrait_shared.client import Client

    with Client.connect(server.connection_file, timeout=30) as client:
        job = client.submit(photo(number=number), settings)
        info = server.wait(client, job.id, 300)
        assert info.state == "completed", info.error
        client.result(job.id, folder / str(number))
        client.delete(job.id)


def soak(minutes: float, engine: str, pause: float, data: Path) -> Iterator[Sample]:
    """Run jobs one after the other, `pause` seconds between; yields a sample after each."""
    settings, number = from_dict(SMALL), 0
    with Server(data / "server", engine).start() as server, tempfile.TemporaryDirectory() as results:
        assert server.process is not None
        start = time.monotonic()
        while time.monotonic() - start < 60 * minutes:
            number += 1
            one_job(server, settings, number, Path(results))
            shutil.rmtree(Path(results) / str(number))
            assert len(server.workers) == 1, "no worker was replaced"
            pid = server.process.pid
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            seconds = round(time.monotonic() - start, 1)
            yield Sample(seconds, number, resident_mb(pid), files, resident_mb(server.workers[-1]))
            time.sleep(pause)
    assert integrity(data / "server") == "ok"


def slope_mb_per_hour(samples: list[Sample], name: str) -> float:
    """Return the slope of the straight line through a memory's samples after the warm-up."""
    late = samples[int(WARM_UP * len(samples)) :]
    hours = np.array([sample.seconds for sample in late]) / 3600
    return float(np.polyfit(hours, np.array([getattr(sample, name) for sample in late]), 1)[0])


def main() -> int:
    """Soak, write the samples, print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pause", type=float, default=2, help="seconds between jobs")
    parser.add_argument("--engine", default=PIPELINE, help=f"or {FAKE}")
    parser.add_argument("-o", "--output", type=Path, default=Path("soak.csv"))
    options = parser.parse_args()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as data, options.output.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([field.name for field in fields(Sample)])
        for sample in soak(options.minutes, options.engine, options.pause, Path(data)):
            samples.append(sample)
            writer.writerow(astuple(sample))
            stream.flush()
    first, last = samples[int(WARM_UP * len(samples))], samples[-1]
    slopes = {name: slope_mb_per_hour(samples, f"{name}_mb") for name in ("server", "worker")}
    print(f"{last.jobs} jobs in {last.seconds / 60:.1f} minutes; after the warm-up:")
    for name, slope in slopes.items():
        print(f"  {name} {getattr(first, f'{name}_mb'):.1f} -> {getattr(last, f'{name}_mb'):.1f} MB, {slope:+.1f} MB per hour")
    print(f"  open files of the server {first.server_files} -> {last.server_files}")
    return int(any(slope > GROWTH_MB_PER_HOUR[name] for name, slope in slopes.items()) or last.server_files > first.server_files)


if __name__ == "__main__":
    sys.exit(main())
