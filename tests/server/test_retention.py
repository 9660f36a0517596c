"""What a server keeps, for how long and for whom; what it says about it in its log. No process, no socket where none is needed."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portrait_backend.cli import main
from portrait_backend.server import retention
from portrait_backend.server.executor import Executor
from portrait_backend.server.folders import DataFolder
from portrait_backend.server.front_end import FrontEnd
from portrait_backend.server.jobs import Jobs, Quota
from portrait_backend.server.keys import KeyFolder, KeyPair
from portrait_backend.server.logs import logging_to
from portrait_backend.server.retention import DAY_SECONDS, Retention
from portrait_backend.server.serve import ServeOptions
from portrait_backend.server.store import JobStore
from portrait_shared import protocol as p
from portrait_shared.errors import PortraitDiffusionError
from tests.server.harness import FAKE

NAME = "Her Very Own Name"


class House:
    """A data folder with its store, keys and jobs, without a server."""

    def __init__(self, path: Path, quota: Quota | None = None) -> None:
        self.data = DataFolder(path)
        self.keys = KeyFolder(self.data.keys)
        self.store = JobStore(self.data.store)
        self.pushed: list[tuple[str, p.Message]] = []
        self.jobs = Jobs(self.store, self.data, lambda owner, message: self.pushed.append((owner, message)), quota)

    def submit(self, owner: str, photo: bytes = b"photo") -> str:
        return self.jobs.submit(owner, p.JobSubmit(p.new_id(), {}, photo, f"{NAME}.jpg", NAME)).id

    def end(self, job: str, days_ago: float = 0.0, result: bytes = b"glb") -> str:
        """Complete a job, so many days ago."""
        self.store.transition(job, "running")
        folder = self.data.job(job).result
        folder.mkdir()
        (folder / "head.glb").write_bytes(result)
        self.store.transition(job, "completed", finished=time.time() - days_ago * DAY_SECONDS)
        return job

    def there(self) -> set[str]:
        assert {path.name for path in self.data.jobs.iterdir()} == self.store.ids(), "folders and store agree"
        return self.store.ids()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "data")
    yield made
    made.store.close()


def test_only_old_ended_jobs_are_removed(house: House) -> None:
    old, young = house.end(house.submit("anna"), 8), house.end(house.submit("anna"), 6)
    waiting, running = house.submit("anna"), house.submit("anna")
    house.store.transition(running, "running")
    failed = house.submit("bert")
    for state in ("running", "failed"):
        house.store.transition(failed, state, finished=time.time() - 9 * DAY_SECONDS)  # type: ignore[arg-type]
    removed = retention.purge(house.store, house.data, time.time() - 7 * DAY_SECONDS)
    assert set(removed) == {old, failed} and house.there() == {young, waiting, running}


def test_nothing_of_a_removed_job_is_left_in_the_data_folder(house: House) -> None:
    house.end(house.submit("anna", b"the-face-of-somebody"))
    files = [path for path in house.data.path.rglob("*") if path.is_file()]
    assert any(NAME.encode() in path.read_bytes() for path in files) and any(b"the-face" in path.read_bytes() for path in files)
    retention.purge(house.store, house.data, time.time() + 1)
    for path in (path for path in house.data.path.rglob("*") if path.is_file()):
        assert NAME.encode() not in path.read_bytes() and b"the-face" not in path.read_bytes(), path


def test_a_job_that_is_resumed_in_between_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    job = house.submit("anna")
    for state in ("running", "failed"):
        house.store.transition(job, state, finished=1.0)  # type: ignore[arg-type]

    def resume(record: Any) -> bool:
        house.jobs.resume("anna", job)
        return True

    assert retention.purge(house.store, house.data, time.time(), resume) == [] and house.there() == {job}


def test_the_server_removes_a_few_at_a_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "JOBS_A_ROUND", 2)
    jobs = [house.end(house.submit("anna"), 3) for _ in range(5)]
    keeper = Retention(house.store, house.data, 2.0)
    left = []
    for _ in range(4):
        keeper.tick()
        left.append(len(house.there()))
    assert left == [3, 1, 0, 0]
    house.end(house.submit("anna"), 3)
    keeper.tick()
    assert len(house.there()) == 1, "it looks again after a minute, not at every turn"
    Retention(house.store, house.data, float("inf")).tick()
    assert len(house.there()) == 1 and jobs


def test_bytes_of_a_client_are_limited(tmp_path: Path) -> None:
    house = House(tmp_path / "data", Quota(bytes=10_000))
    try:
        first = house.end(house.submit("anna", b"x" * 3000), result=b"y" * 4000)
        second = house.submit("anna", b"x" * 2000)
        with pytest.raises(PortraitDiffusionError) as caught:
            house.submit("anna", b"x" * 1001)
        assert caught.value.code == "quota-exceeded" and caught.value.retryable
        assert house.there() == {first, second}, "nothing is left of what was refused"
        house.submit("bert", b"x" * 9000)
        house.jobs.delete("anna", first)
        house.submit("anna", b"x" * 7000)
        with pytest.raises(PortraitDiffusionError):
            house.submit("anna", b"x" * 1001)
    finally:
        house.store.close()


def test_a_revoked_client_is_told_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataFolder(tmp_path / "data")
    keys = KeyFolder(data.keys)
    bert = keys.create("bert").public
    front = FrontEnd(data, keys, "tcp://127.0.0.1:*", Executor(("cpu",), FAKE))
    pushed: list[str] = []
    monkeypatch.setattr(front._peers, "push", lambda owner, message: pushed.append(owner))
    try:
        for owner in (bert, keys.local().public):
            front._push(owner, p.Pong())
        keys.revoke("bert")
        front._push(bert, p.Pong())
    finally:
        front.close()
    assert pushed == [bert, keys.local().public]


def test_a_key_file_that_is_edited_in_place_counts_at_once(tmp_path: Path) -> None:
    keys, other = KeyFolder(tmp_path), KeyPair.new().public
    first = keys.create("bert").public
    assert keys.may_enter(first) and keys.name_of(first) == "bert" and keys.key_of("bert") == first
    path = tmp_path / "authorised/bert.pub"
    before = path.stat()
    path.write_text(other + "\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # however coarse the file system's clock is
    assert path.stat().st_ino == before.st_ino
    assert keys.may_enter(other) and not keys.may_enter(first) and keys.name_of(first) == ""
    assert keys.key_of(first) == first and keys.key_of("local") == keys.local().public
    with pytest.raises(PortraitDiffusionError) as caught:
        keys.key_of("carl")
    assert caught.value.code == "key-not-found"


def test_jobs_commands(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", str(house.data.path)]
    local, bert, carl = house.keys.local().public, house.keys.create("bert").public, house.keys.create("carl").public
    mine, old, his, waiting = house.submit(local), house.submit(local), house.submit(bert), house.submit(bert)
    carls = house.end(house.submit(carl))
    for job, days in ((mine, 1), (old, 30), (his, 2)):
        house.end(job, days)
    house.keys.revoke("carl")
    assert main(["jobs", "list", *where, "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[his]["client"] == "bert" and rows[mine]["client"] == "local" and rows[carls]["client"] == carl
    assert rows[waiting]["state"] == "queued" and rows[mine]["name"] == NAME
    assert main(["jobs", "purge", *where]) == 2 and "say which jobs" in capsys.readouterr().err
    assert main(["jobs", "purge", "--client", "nobody", *where]) == 2 and "key-not-found" in capsys.readouterr().err
    for arguments, gone in ((["--older-than", "7"], old), (["--revoked"], carls), (["--client", "bert"], his), (["--all"], mine)):
        assert main(["jobs", "purge", *arguments, *where, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"removed": [gone]}
    assert house.there() == {waiting}
    assert main(["jobs", "list", "--data", str(house.data.path / "keys")]) == 2 and "data-not-found" in capsys.readouterr().err
    assert not (house.data.path / "keys/jobs").exists(), "looking makes nothing"


def test_serve_passes_on_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ServeOptions] = []
    monkeypatch.setattr("portrait_backend.server.serve.serve", lambda options, ready: given.append(options))
    more = ["--keep-days", "30", "--max-queued", "5", "--max-gigabytes", "1.5", "--log-format", "json"]
    for arguments in ([], more):
        assert main(["serve", "--data", str(tmp_path), *arguments]) == 0
    plain, told = given
    assert plain.keep_days == math.inf and plain.quota == Quota() and plain.log_format == "text"
    assert told.keep_days == 30 and told.quota == Quota(5, 1.5e9) and told.log_format == "json"


def test_the_log_as_json(tmp_path: Path, house: House) -> None:
    log = logging.getLogger("portrait_backend.server.test")
    with logging_to(tmp_path, "json"):
        job = house.end(house.submit("anna"))
        house.jobs.delete("anna", job)
        try:
            raise ZeroDivisionError("a bug\nof ours")
        except ZeroDivisionError:
            log.exception("100%% of %s", "it")
    lines = [json.loads(line) for line in (tmp_path / "server.log").read_text(encoding="utf-8").splitlines()]
    assert [line["message"] for line in lines] == [f"job {job} queued", f"job {job} deleted", "100% of it"]
    assert lines[0]["job"] == job and lines[0]["state"] == "queued" and lines[0]["client"] == "anna" and lines[0]["time"].endswith("+00:00")
    assert "ZeroDivisionError: a bug" in lines[2]["exception"] and lines[2]["level"] == "ERROR"
    assert NAME not in (tmp_path / "server.log").read_text(), "no name of a person, no photo's name"
