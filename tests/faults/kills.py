"""Kill workers and servers at random while jobs queue up: `python -m tests.faults.kills --jobs 1000 --kills 100`.

Every kill is SIGKILL, half of them of the worker, half of the server. Afterwards every job is there once, completed, its result right
to the byte, and the store is sound: it is checked after every kill of the server too.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from portrait_shared.client import Client
from portrait_shared.settings import Settings
from tests.server.fake_engine import STAGES, expected, photo, runs
from tests.server.harness import Server, alive, integrity, wait_for

DRAFT = Settings(preset="draft")


@dataclass(frozen=True)
class Storm:
    """What came of it; died: jobs that failed with their worker and were resumed; repeated: stages that ran more than once."""

    jobs: int
    kills: int
    died: int
    repeated: int
    seconds: float


def storm(data: Path, jobs: int, kills: int, seed: int = 20) -> Storm:
    """Submit `jobs` jobs, kill `kills` times meanwhile, wait for all; AssertionError if one is lost, doubled or wrong."""
    start, rng = time.monotonic(), random.Random(seed)
    when = {number: ("worker", "server")[index % 2] for index, number in enumerate(sorted(rng.sample(range(jobs), kills)))}
    sent: dict[str, bytes] = {}
    done: list[Future[None]] = []
    with Server(data).start() as server, ThreadPoolExecutor(1) as killer:
        client = server.client()
        for number in range(jobs):
            if number in when:  # in the middle of the submissions that follow
                done.append(killer.submit(_kill, server, when[number], rng.uniform(0, 0.3)))
            content = photo(number=number, steps=3, pause=0.005)
            sent[client.submit(content, DRAFT, name=str(number)).id] = content
            time.sleep(0.02)
        assert [kill.result() for kill in done] == [None] * kills
        died = sum(_complete(server, client, job, content) for job, content in sent.items())
        listed = client.jobs()
        assert len(listed) == len(sent) == jobs and {job.id for job in listed} == set(sent)
        assert sorted(int(job.name) for job in listed) == list(range(jobs))
        repeated = sum(len(runs(server.folder(job))) - len(STAGES) for job in sent)
        client.close()
    assert integrity(data) == "ok"
    return Storm(jobs, kills, died, repeated, time.monotonic() - start)


def _kill(server: Server, what: str, delay: float) -> None:
    time.sleep(delay)
    if what == "worker":
        wait_for(lambda: any(alive(pid) for pid in server.workers[-1:]), "a worker")
        server.kill_worker()
    else:
        server.kill()
        assert integrity(server.data) == "ok"
        server.start()


def _complete(server: Server, client: Client, job: str, content: bytes) -> int:
    """Follow a job to its end, resume it whenever its worker died, check its result; returns how often it died."""
    died, info = 0, server.wait(client, job, 120)
    while info.state == "failed":
        assert info.error is not None and info.error.code == "worker-died", info.error
        died += 1
        client.resume(job)
        info = server.wait(client, job, 120)
    assert info.state == "completed"
    assert (server.folder(job) / "result/head.glb").read_bytes() == expected(content)
    ran = runs(server.folder(job))
    assert [stage for index, stage in enumerate(ran) if stage not in ran[:index]] == list(STAGES)
    return died


def main() -> None:
    """Run the storm and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(storm(Path(folder) / "data", options.jobs, options.kills, options.seed))


if __name__ == "__main__":
    main()
