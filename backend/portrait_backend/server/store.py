"""The job store: one SQLite database, and the only place where a job's state changes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import TERMINAL, JobInfo, JobState
from portrait_shared.wire import from_json, to_json

SCHEMA = 1
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    "queued": frozenset({"running", "cancelled"}),
    "running": frozenset({"cancelling", "completed", "failed", "queued"}),
    "cancelling": frozenset({"cancelled", "completed", "failed"}),
    "cancelled": frozenset({"queued"}),
    "failed": frozenset({"queued"}),
    "completed": frozenset(),
}
"""From -> to. running -> queued: the server was interrupted; cancelled, failed -> queued: the user resumes;
cancelling -> completed, failed: the job came to its end before it noticed."""
ENDED = tuple(sorted(TERMINAL))
CREATE = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    interruptions INTEGER NOT NULL DEFAULT 0,
    info TEXT NOT NULL
) STRICT;
CREATE INDEX jobs_by_owner ON jobs (owner, created);
CREATE INDEX jobs_by_state ON jobs (state, created);
"""


class ForbiddenTransition(Exception):
    """A job can't go from its state to the wanted one."""

    def __init__(self, job: str, state: str, to: str) -> None:
        super().__init__(f"job {job} is {state} and can't become {to}")
        self.state, self.to = state, to


@dataclass(frozen=True)
class Record:
    """A stored job: what its owner sees, the owner's key, and how often a server was interrupted while it ran."""

    info: JobInfo
    owner: str
    interruptions: int


class JobStore:
    """Jobs in a SQLite file. Every method is one transaction that is on the disk when it returns.

    Old and new go by the order of submission (the rowid), never by times: a clock may be set back.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA secure_delete=ON")  # names of people: what is removed is overwritten
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise PortraitDiffusionError(
                "store-damaged",
                f"{path} can't be read ({error})",
                "Move it away, or restore it from a backup; the job folders are not lost",
            ) from error

    def _prepare(self, path: Path) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise PortraitDiffusionError("store-newer", f"{path} was written by a newer version", "Update Portrait Diffusion")
        if version == 0:
            with self._transaction():
                for statement in CREATE.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA}")

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def check(self) -> str:
        """Return SQLite's verdict on the file: "ok"."""
        (verdict,) = self._db.execute("PRAGMA integrity_check").fetchone()
        return str(verdict)

    def add(self, info: JobInfo, owner: str) -> Record:
        """Add a queued job; if the id is there already, return what is stored under it."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO jobs (id, owner, state, created, info) VALUES (?, ?, ?, ?, ?)",
                (info.id, owner, info.state, info.created, to_json(info)),
            )
        return self.find(info.id)

    def find(self, job: str) -> Record:
        """Return a job; KeyError if there is none."""
        rows = self._rows("WHERE id = ?", job)
        if not rows:
            raise KeyError(job)
        return rows[0]

    def transition(self, job: str, to: JobState, **changes: Any) -> Record:
        """Bring a job into the state `to` and change fields of its info; raises ForbiddenTransition (nothing is changed), KeyError.

        The only place where a state changes: one lock, one transaction.
        """
        with self._lock, self._transaction():
            record = self.find(job)
            if to not in TRANSITIONS[record.info.state]:
                raise ForbiddenTransition(job, record.info.state, to)
            interruptions = record.interruptions + (record.info.state == "running" and to == "queued")
            info = replace(record.info, state=to, **changes)
            self._db.execute("UPDATE jobs SET state = ?, interruptions = ?, info = ? WHERE id = ?", (to, interruptions, to_json(info), job))
        return Record(info, record.owner, interruptions)

    def note_stage(self, job: str, stage: str) -> None:
        """Remember the stage that a job is in."""
        with self._lock, self._transaction():
            info = replace(self.find(job).info, stage=stage)
            self._db.execute("UPDATE jobs SET info = ? WHERE id = ?", (to_json(info), job))

    def remove(self, job: str) -> None:
        """Forget a job."""
        with self._transaction():
            self._db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def remove_ended(self, job: str) -> bool:
        """Forget a job if it has ended; tell whether it was so."""
        marks = ", ".join("?" * len(ENDED))
        with self._transaction():
            return self._db.execute(f"DELETE FROM jobs WHERE id = ? AND state IN ({marks})", (job, *ENDED)).rowcount > 0

    def scrub(self) -> None:
        """Bring removals into the database file and empty its journal, which still has what was removed."""
        with self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def ended_before(self, moment: float) -> list[Record]:
        """Return the jobs that ended before a time, oldest first."""
        marks = ", ".join("?" * len(ENDED))
        ended = "coalesce(json_extract(info, '$.finished'), created)"
        return self._rows(f"WHERE state IN ({marks}) AND {ended} < ? ORDER BY rowid", *ENDED, moment)

    def all(self) -> list[Record]:
        """Return all jobs, oldest first."""
        return self._rows("ORDER BY rowid")

    def all_of(self, owner: str) -> list[Record]:
        """Return all jobs of an owner."""
        return self._rows("WHERE owner = ?", owner)

    def of_owner(self, owner: str, limit: int, offset: int) -> tuple[list[Record], int]:
        """Return an owner's jobs, newest first, and how many there are."""
        (total,) = self._db.execute("SELECT count(*) FROM jobs WHERE owner = ?", (owner,)).fetchone()
        return self._rows("WHERE owner = ? ORDER BY rowid DESC LIMIT ? OFFSET ?", owner, limit, offset), int(total)

    def in_state(self, *states: JobState) -> list[Record]:
        """Return the jobs in some states, oldest first."""
        marks = ", ".join("?" * len(states))
        return self._rows(f"WHERE state IN ({marks}) ORDER BY rowid", *states)

    def oldest(self, state: JobState) -> Record | None:
        """Return the job that has been in a state longest, by its age."""
        rows = self._rows("WHERE state = ? ORDER BY rowid LIMIT 1", state)
        return rows[0] if rows else None

    def count(self, state: JobState, owner: str | None = None) -> int:
        """Return how many jobs are in a state."""
        where, values = ("", (state,)) if owner is None else (" AND owner = ?", (state, owner))
        (number,) = self._db.execute(f"SELECT count(*) FROM jobs WHERE state = ?{where}", values).fetchone()
        return int(number)

    def ids(self) -> set[str]:
        """Return the ids of all jobs."""
        return {job for (job,) in self._db.execute("SELECT id FROM jobs")}

    def _rows(self, where: str, *values: Any) -> list[Record]:
        rows = self._db.execute(f"SELECT state, owner, interruptions, info FROM jobs {where}", values).fetchall()
        return [Record(replace(from_json(info, JobInfo), state=state), owner, count) for state, owner, count, info in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
