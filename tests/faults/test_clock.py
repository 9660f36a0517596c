"""A clock that jumps by years while a server works: time on the wall decides nothing but what is shown and how long things are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from portrait_shared import protocol as p
from portrait_shared.settings import Settings
from tests.server.fake_engine import photo
from tests.server.harness import Server, wait_for

DRAFT = Settings(preset="draft")
YEAR = 365 * 86400


@pytest.fixture
def jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what sets the wall clock of the servers that are started from now on so many years off; their other clock goes on evenly."""
    offset = tmp_path / "offset"
    monkeypatch.setenv("CLOCK", str(offset))

    def by(years: int) -> None:
        temporary = offset.with_suffix(".new")
        temporary.write_text(f"{years * YEAR:+d}")
        temporary.replace(offset)

    by(0)
    return by


def order(server: Server) -> list[str]:
    """Return the ids of jobs in the order in which they were started."""
    return [line.split()[-2] for line in server.log.splitlines() if line.endswith(" running")]


@pytest.mark.slow
@pytest.mark.parametrize("years", [10, -10])
def test_jobs_run_in_the_order_of_their_submission(tmp_path: Path, jump: Callable[[int], None], years: int) -> None:
    with Server(tmp_path / "data").start() as server:
        client = server.client()
        ids = [client.submit(photo(number=0, steps=30, pause=0.02), DRAFT).id]
        ids += [client.submit(photo(number=number), DRAFT).id for number in (1, 2)]
        wait_for(lambda: client.job(ids[0]).state == "running", "the first job")
        jump(years)
        ids += [client.submit(photo(number=number), DRAFT).id for number in (3, 4)]
        shift = client.job(ids[3]).created - client.job(ids[0]).created
        assert shift == pytest.approx(years * YEAR, rel=0.01), "the server's clock did jump"
        for event in client.follow(ids[0]):
            if isinstance(event, p.JobProgress) and event.eta is not None:
                assert math.isfinite(event.eta) and 0 <= event.eta < 60, "an estimate goes by the other clock"
        assert all(server.wait(client, id).state == "completed" for id in ids)
        assert order(server) == ids and len(server.workers) == 1, "nobody was taken for silent"
        assert [job.id for job in client.jobs()] == ids[::-1], "newest first is by submission too"
        json.dumps([job.finished for job in client.jobs()], allow_nan=False)


@pytest.mark.slow
def test_a_client_stays_connected_and_a_cancelled_job_gets_its_time(tmp_path: Path, jump: Callable[[int], None]) -> None:
    with Server(tmp_path / "data").start() as server:
        client = server.client()
        job = client.submit(photo(steps=200, pause=0.02), DRAFT)
        wait_for(lambda: client.job(job.id).state == "running", "the job")
        for years in (50, -20, 0):
            jump(years)
            assert client.poll(1.5) and client.job(job.id).state == "running"
        client.cancel(job.id)
        assert server.wait(client, job.id).state == "cancelled" and len(server.workers) == 1
