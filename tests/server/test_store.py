"""The store: every transition that is allowed, every one that is not, and what survives."""

from __future__ import annotations

import re
import sqlite3
import threading
from pathlib import Path
from typing import Any, get_args

import pytest

from portrait_backend.server.store import TRANSITIONS, ForbiddenTransition, JobStore
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import TERMINAL, ErrorInfo, FileInfo, JobInfo, JobState

STATES: tuple[JobState, ...] = get_args(JobState)
WAY: dict[JobState, tuple[JobState, ...]] = {
    "queued": (),
    "running": ("running",),
    "cancelling": ("running", "cancelling"),
    "cancelled": ("cancelled",),
    "failed": ("running", "failed"),
    "completed": ("running", "completed"),
}
"""How a new job gets into each state."""
ALLOWED = {
    ("queued", "running"),
    ("queued", "cancelled"),
    ("running", "cancelling"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "queued"),
    ("cancelling", "cancelled"),
    ("cancelling", "completed"),
    ("cancelling", "failed"),
    ("cancelled", "queued"),
    ("failed", "queued"),
}
"""Written out once more, from docs/protocol.md: a changed table must fail here."""


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = JobStore(tmp_path / "jobs.sqlite")
    yield made
    made.close()


def new(id: str = "a" * 32, created: float = 1.0) -> JobInfo:
    return JobInfo(id, "Ünder", "queued", created, settings={"seed": 3, "mesh": {"faces": 5}})


def brought_to(store: JobStore, state: JobState) -> str:
    job = store.add(new(), "owner").info.id
    for step in WAY[state]:
        store.transition(job, step)
    assert store.find(job).info.state == state
    return job


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED))
def test_allowed(store: JobStore, before: JobState, after: JobState) -> None:
    job = brought_to(store, before)
    assert store.transition(job, after, finished=9.0).info.state == after
    assert store.find(job).info.state == after and store.find(job).info.finished == 9.0


@pytest.mark.parametrize(("before", "after"), sorted({(a, b) for a in STATES for b in STATES} - ALLOWED))
def test_forbidden(store: JobStore, before: JobState, after: JobState) -> None:
    job = brought_to(store, before)
    with pytest.raises(ForbiddenTransition) as caught:
        store.transition(job, after, finished=9.0)
    assert (caught.value.state, caught.value.to) == (before, after)
    assert store.find(job).info.state == before
    assert store.find(job).info.finished is None, "nothing is changed"


def test_the_specification_has_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+|\(nothing\)) \|$", text[text.index("## States") : text.index("## Heartbeats")], re.MULTILINE
    )
    table = {(before, after) for before, cell in rows for after in re.findall(r"`(\w+)`", cell)}
    assert table == ALLOWED and {before for before, _ in rows} == set(STATES)


def test_every_state_is_in_the_table_and_ends_are_ends() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert all(not TRANSITIONS[state] or state in ("cancelled", "failed") for state in TERMINAL)  # type: ignore[index]


def test_of_two_that_change_a_state_at_once_one_is_refused(store: JobStore) -> None:
    for attempt in range(20):
        job = store.add(new(f"{attempt:032x}"), "owner").info.id
        barrier, outcomes = threading.Barrier(2), []

        def change(to: JobState, job: str = job, barrier: threading.Barrier = barrier, outcomes: list[str] = outcomes) -> None:
            barrier.wait()
            try:
                store.transition(job, to)
                outcomes.append("done")
            except ForbiddenTransition:
                outcomes.append("refused")

        threads = [threading.Thread(target=change, args=(to,)) for to in ("cancelled", "cancelled")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["done", "refused"]


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    job = store.add(new(), "owner").info.id
    store.transition(job, "running", started=2.0)
    error = ErrorInfo("worker-died", "gone", "resume", True, "log", {"mesh": {"faces": 3}})
    store.transition(job, "failed", error=error, warnings=("ä", "b"), files=(FileInfo("head.glb", 3, "00"),))
    before = store.find(job)
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite")
    assert again.find(job) == before and before.info.error == error and again.check() == "ok"
    again.close()


def test_what_was_committed_survives_a_process_that_just_stops(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs.sqlite")
    store.add(new(), "owner")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in tmp_path.glob("jobs.sqlite*"):  # as the disk looks at this moment, never closed
        (copy / path.name).write_bytes(path.read_bytes())
    again = JobStore(copy / "jobs.sqlite")
    assert again.ids() == {"a" * 32} and again.check() == "ok"
    again.close()
    store.close()


def test_adding_twice_keeps_the_first(store: JobStore) -> None:
    store.add(new(created=1.0), "owner")
    assert store.add(new(created=2.0), "other").owner == "owner" and store.find("a" * 32).info.created == 1.0


def test_lists_and_counts(store: JobStore) -> None:
    for number in range(5):
        store.add(new(f"{number:032x}", created=float(number)), "even" if number % 2 == 0 else "odd")
    jobs, total = store.of_owner("even", 2, 0)
    assert total == 3 and [record.info.created for record in jobs] == [4.0, 2.0]
    assert [record.info.created for record in store.of_owner("even", 2, 2)[0]] == [0.0]
    store.transition(f"{0:032x}", "running")
    assert [record.info.created for record in store.in_state("queued")] == [1.0, 2.0, 3.0, 4.0]
    assert store.count("queued") == 4 and store.count("queued", "even") == 2 and store.in_state("running")[0].owner == "even"
    store.remove(f"{0:032x}")
    with pytest.raises(KeyError):
        store.find(f"{0:032x}")


def test_interruptions_are_counted(store: JobStore) -> None:
    job = store.add(new(), "owner").info.id
    for count in range(3):
        assert store.transition(job, "running").interruptions == count
        store.transition(job, "queued")
    assert store.find(job).interruptions == 3


def test_a_newer_or_damaged_store_is_not_touched(tmp_path: Path) -> None:
    JobStore(tmp_path / "newer.sqlite").close()
    database = sqlite3.connect(tmp_path / "newer.sqlite")
    database.execute("PRAGMA user_version=99")
    database.close()
    (tmp_path / "damaged.sqlite").write_bytes(b"this is no database, but it may hold something dear" * 100)
    for name, code in (("newer", "store-newer"), ("damaged", "store-damaged")):
        before = (tmp_path / f"{name}.sqlite").read_bytes()
        with pytest.raises(PortraitDiffusionError) as caught:
            JobStore(tmp_path / f"{name}.sqlite")
        assert caught.value.code == code and (tmp_path / f"{name}.sqlite").read_bytes() == before
