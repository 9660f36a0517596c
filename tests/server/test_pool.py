"""Workers that don't do what they should: the front end in this process, with short limits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from portrait_backend.processes import only_device
from portrait_backend.server import pool
from portrait_backend.server.executor import Executor
from portrait_backend.server.folders import DataFolder
from portrait_backend.server.front_end import FrontEnd
from portrait_backend.server.jobs import Quota
from portrait_backend.server.keys import KeyFolder
from portrait_shared import protocol as p
from portrait_shared.client import Client
from portrait_shared.connection import Connection
from portrait_shared.settings import Settings
from tests.server.fake_engine import photo
from tests.server.harness import FAKE, alive, wait_for

DRAFT = Settings(preset="draft")


class Front:
    """A front end that turns in a thread, and a client of it."""

    def __init__(self, folder: Path, engine: str = FAKE, quota: Quota | None = None) -> None:
        data = DataFolder(folder)
        keys = KeyFolder(data.keys)
        self.front = FrontEnd(data, keys, "tcp://127.0.0.1:*", Executor(("cpu",), engine), quota)
        local = keys.local()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._turn)
        self._thread.start()
        self.client = Client.connect(Connection(self.front.endpoint, keys.server().public, local.public, local.secret))

    def _turn(self) -> None:
        while not self._stop.is_set():
            self.front.turn()

    @property
    def worker(self) -> int:
        process = self.front.pool.devices[0].process
        return process.pid or 0 if process is not None else 0

    def end(self, job: str) -> p.JobInfo:
        for _ in self.client.follow(job, 30):
            pass
        return self.client.job(job)

    def close(self) -> None:
        self.client.close()
        self._stop.set()
        self._thread.join()
        self.front.close()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    made = Front(tmp_path)
    yield made
    made.close()


def test_a_job_that_does_not_stop_loses_its_worker(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CANCEL_SECONDS", 1.0)
    job = front.client.submit(photo(steps=10_000, pause=0.02, stubborn=True), DRAFT)
    wait_for(lambda: front.client.job(job.id).stage == "portrait", "the job to run")
    before = front.worker
    front.client.cancel(job.id)
    assert front.end(job.id).state == "cancelled"
    wait_for(lambda: not alive(before), "the worker to be ended")
    assert front.end(front.client.submit(photo(), DRAFT).id).state == "completed" and front.worker != before


def test_a_worker_that_hangs_is_ended(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    job = front.client.submit(photo(steps=10_000, pause=0.02), DRAFT)
    wait_for(lambda: front.client.job(job.id).stage == "portrait", "the job to run")
    monkeypatch.setattr(pool, "SILENCE_SECONDS", 3.0)
    before = front.worker
    os.kill(before, signal.SIGSTOP)
    error = front.end(job.id).error
    assert error is not None and error.code == "worker-died" and "hung" in error.message
    wait_for(lambda: not alive(before), "the worker to be ended")


def test_a_worker_that_can_not_start_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "RESTART_SECONDS", (0.0, 0.1, 0.1, 0.1))
    made = Front(tmp_path, "tests.server.fake_engine:NoSuchEngine")
    try:
        job = made.client.submit(photo(), DRAFT)
        error = made.end(job.id).error
        assert error is not None and error.code == "worker-failed" and error.retryable and "exit code 1" in error.message
        assert made.client.status().device == "unavailable"
    finally:
        made.close()


def test_a_full_queue_is_told(tmp_path: Path) -> None:
    front = Front(tmp_path, quota=Quota(queued=2))
    try:
        slow = photo(steps=10_000, pause=0.02)
        first = front.client.submit(slow, DRAFT)
        wait_for(lambda: front.client.job(first.id).state == "running", "the first to run")
        for _ in range(2):
            front.client.submit(slow, DRAFT)
        with pytest.raises(Exception, match="2 jobs are waiting already") as caught:
            front.client.submit(slow, DRAFT)
        assert getattr(caught.value, "code", "") == "queue-full"
    finally:
        front.close()


def test_a_full_disk_is_told_and_leaves_nothing(front: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("portrait_backend.server.folders.atomic_path", full)
    with pytest.raises(Exception, match="No space") as caught:
        front.client.submit(photo(), DRAFT)
    assert getattr(caught.value, "code", "") == "disk-full"
    assert front.client.jobs() == [] and list((tmp_path / "jobs").iterdir()) == []


def test_a_fault_in_one_request_does_not_end_the_server(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(front.front.jobs, "list", broken)
        with pytest.raises(Exception, match="a bug") as caught:
            front.client.jobs()
        assert getattr(caught.value, "code", "") == "internal-error"
    assert front.client.jobs() == []


@pytest.mark.parametrize(
    ("device", "visible", "shown"),
    [
        ("auto", "", None),
        ("cpu", "0,1", None),
        ("cuda", "0,1", None),
        ("cuda:0", "", "0"),
        ("cuda:3", "", "3"),
        ("cuda:1", "4,7", "7"),
        ("cuda:0", "GPU-1234", "GPU-1234"),
        ("cuda:2", "4,7", ""),
    ],
)
def test_a_worker_sees_only_its_gpu(device: str, visible: str, shown: str | None) -> None:
    assert only_device(device, visible) == ({} if shown is None else {"CUDA_VISIBLE_DEVICES": shown})
