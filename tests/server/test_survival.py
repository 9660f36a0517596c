"""Whatever is killed, at whatever moment: no job is lost, none runs twice, and what was finished is not computed again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from portrait_backend.server.jobs import MAX_INTERRUPTIONS
from portrait_shared import protocol as p
from portrait_shared.client import Client
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings
from tests.faults.kills import storm
from tests.server.fake_engine import STAGES, expected, photo, runs
from tests.server.harness import Server, alive, integrity, states, wait_for

DRAFT = Settings(preset="draft")


def running_in(server: Server, client: Client, job: str, stage: str) -> None:
    wait_for(lambda: client.job(job).stage == stage and client.job(job).state == "running", f"stage {stage}")


def test_a_killed_worker_fails_its_job_readably_and_it_resumes(server: Server) -> None:
    client = server.client()
    data = photo(steps=20, pause=0.02)
    job, waiting = client.submit(data, DRAFT), client.submit(photo(), DRAFT)
    running_in(server, client, job.id, "prior")
    server.kill_worker()
    failed = server.wait(client, job.id)
    assert failed.state == "failed" and failed.error is not None
    assert failed.error.code == "worker-died" and failed.error.retryable and "signal 9" in failed.error.message
    assert server.wait(client, waiting.id).state == "completed", "the queue goes on with a new worker"
    client.resume(job.id)
    assert server.wait(client, job.id).state == "completed"
    assert runs(server.folder(job.id)) == ["portrait", "prior", "prior", "mesh"]
    assert (server.folder(job.id) / "result/head.glb").read_bytes() == expected(data)


def test_a_worker_that_crashes_by_itself_is_the_same(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(crash="mesh"), DRAFT)
    error = server.wait(client, job.id).error
    assert error is not None and error.code == "worker-died"
    client.resume(job.id)
    assert server.wait(client, job.id).state == "completed" and runs(server.folder(job.id)) == [*STAGES, "mesh"]


def test_an_idle_worker_that_is_killed_is_replaced(server: Server) -> None:
    client = server.client()
    server.wait(client, client.submit(photo(), DRAFT).id)
    server.kill_worker()
    assert server.wait(client, client.submit(photo(), DRAFT).id).state == "completed" and len(server.workers) == 2


def test_a_job_that_a_dying_worker_never_began_is_done_by_the_next(server: Server) -> None:
    client = server.client()
    server.wait(client, client.submit(photo(), DRAFT).id)
    os.kill(server.workers[-1], signal.SIGSTOP)  # it takes the job and is silent
    job = client.submit(photo(), DRAFT)
    wait_for(lambda: client.job(job.id).state == "running", "the job to be handed out", 10)
    server.kill_worker()
    assert server.wait(client, job.id).state == "completed" and len(server.workers) == 2
    assert runs(server.folder(job.id)) == list(STAGES)


def test_killed_while_it_was_being_cancelled_is_cancelled(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=500, pause=0.02, stubborn=True), DRAFT)
    running_in(server, client, job.id, "portrait")
    assert client.cancel(job.id).state == "cancelling"
    server.kill_worker()
    assert server.wait(client, job.id).state == "cancelled"


def test_the_worker_leaves_at_once_when_the_server_is_killed(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=1000, pause=0.02), DRAFT)
    running_in(server, client, job.id, "portrait")
    (worker,) = server.workers
    assert alive(worker)
    server.kill()
    wait_for(lambda: not alive(worker), "the worker to leave", 5)


def test_a_killed_server_goes_on_after_the_last_finished_stage(server: Server, tmp_path: Path) -> None:
    client = server.client()
    data = photo(steps=20, pause=0.02)
    done, job, waiting = client.submit(photo(a=1), DRAFT), client.submit(data, DRAFT), client.submit(photo(a=2), DRAFT)
    server.wait(client, done.id)
    running_in(server, client, job.id, "prior")
    server.kill()
    assert integrity(server.data) == "ok"
    server.start()
    client = server.client()
    assert client.job(done.id).state == "completed" and {j.id for j in client.jobs()} == {done.id, job.id, waiting.id}
    for id in (job.id, waiting.id):
        assert server.wait(client, id).state == "completed"
    assert runs(server.folder(job.id)) == ["portrait", "prior", "prior", "mesh"] and runs(server.folder(done.id)) == list(STAGES)
    client.result(job.id, tmp_path / "out")
    assert (tmp_path / "out/head.glb").read_bytes() == expected(data)


def test_follow_reconnects_by_itself(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=25, pause=0.02), DRAFT)
    seen = []
    for event in client.follow(job.id, 60):
        seen.append(event)
        if isinstance(event, p.JobProgress) and event.stage == "prior" and len(server.workers) == 1:
            server.kill()
            server.start()
    assert states(seen)[-1] == "completed" and states(seen).count("completed") == 1
    assert len(server.workers) == 2, "it was interrupted; progress may be lost, the end is not"
    assert client.jobs()[0].id == job.id, "the same client speaks with the new server"


def test_fetching_a_result_goes_on_after_a_restart(server: Server, tmp_path: Path) -> None:
    client = server.client()
    data, size = photo(size=20 * p.MAX_CHUNK_BYTES), 20 * p.MAX_CHUNK_BYTES
    job = client.submit(data, DRAFT)
    server.wait(client, job.id)
    restarted = []

    def restart(done: int, total: int) -> None:
        if done > 5 * p.MAX_CHUNK_BYTES and not restarted:
            restarted.append(True)
            server.kill()
            server.start()

    client.result(job.id, tmp_path / "out", progress=restart)
    assert restarted and (tmp_path / "out/head.glb").read_bytes() == expected(data, size)


def test_a_dead_backend_is_noticed_within_seconds(server: Server) -> None:
    client = server.client()
    server.kill()
    started = time.monotonic()
    with pytest.raises(PortraitDiffusionError) as caught:
        while True:
            client.poll(0.2)
    assert caught.value.code == "backend-lost" and caught.value.retryable and time.monotonic() - started < 5


def test_a_hanging_backend_is_noticed_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portrait_shared.channel.SILENCE_SECONDS", 2.0)
    client = server.client()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(PortraitDiffusionError) as caught:
            while True:
                client.poll(0.2)
        assert caught.value.code == "backend-lost" and 1.5 < time.monotonic() - started < 6
    finally:
        server.process.send_signal(signal.SIGCONT)
    client.reconnect()
    assert client.jobs() == []


def test_a_client_that_did_not_poll_for_long_is_not_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portrait_shared.channel.SILENCE_SECONDS", 1.0)
    client = server.client()
    time.sleep(3)
    assert client.poll(0.3) == [] and client.jobs() == []


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    connection = server.connection()
    server.stop()
    started = time.monotonic()
    with pytest.raises(PortraitDiffusionError) as caught:
        Client.connect(connection, timeout=1.5)
    assert caught.value.code == "backend-unreachable" and time.monotonic() - started < 4
    with pytest.raises(PortraitDiffusionError) as caught:
        Client.connect(server.connection_file)
    assert caught.value.code == "connection-missing", "a server that leaves takes its connection file along"


def test_a_job_that_was_running_at_every_end_is_not_started_for_ever(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=1000, pause=0.02), DRAFT)
    for _ in range(MAX_INTERRUPTIONS + 1):
        wait_for(lambda client=client: client.job(job.id).state == "running", "the job to run")
        server.kill()
        server.start()
        client = server.client()
    failed = client.job(job.id)
    assert failed.state == "failed" and failed.error is not None and failed.error.code == "worker-died" and failed.error.retryable


def test_interrupted_submissions_and_deletions_leave_no_folders(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(), DRAFT)
    server.wait(client, job.id)
    server.kill()
    stray = server.data / "jobs" / ("0" * 32)
    (stray / "checkpoints").mkdir(parents=True)
    server.start()
    assert not stray.exists() and server.folder(job.id).exists()
    assert server.client().submit(photo(), DRAFT, id="0" * 32).state in ("queued", "running")


def test_cancelling_at_the_end_of_the_server_is_cancelled(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=1000, pause=0.02, stubborn=True), DRAFT)
    running_in(server, client, job.id, "portrait")
    client.cancel(job.id)
    server.kill()
    server.start()
    assert server.client().job(job.id).state == "cancelled"


def test_two_servers_on_one_folder_are_refused(server: Server) -> None:
    command = [sys.executable, "-m", "portrait_backend", "serve", "--data", str(server.data)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2 and second.stderr.startswith("error[data-in-use]: ")
    assert server.connection_file.exists() and server.client().jobs() == []


def test_it_leaves_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    server = Server(tmp_path / "data").start("tcp://127.0.0.1:*", "cpu", str(parent.pid))
    server.client().submit(photo(steps=1000, pause=0.02), DRAFT)
    parent.kill()
    parent.wait()
    assert server.process is not None and server.process.wait(10) == 0
    server.stop()
    assert parent.stdin is not None
    parent.stdin.close()


def test_it_leaves_when_its_parent_is_gone_already(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    command = [sys.executable, "-m", "portrait_backend", "serve", "--data", str(tmp_path), "--parent-pid", str(gone.pid)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_it_leaves_when_nobody_needs_it(tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start("tcp://127.0.0.1:*", "cpu", "", "0.02")
    assert server.process is not None and server.process.wait(20) == 0
    server.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(server: Server, number: signal.Signals) -> None:
    client = server.client()
    job = client.submit(photo(steps=1000, pause=0.02), DRAFT)
    running_in(server, client, job.id, "portrait")
    assert server.process is not None
    server.process.send_signal(number)
    server.process.wait(15)
    assert not server.connection_file.exists() and not any(alive(pid) for pid in server.workers)
    server.start()
    assert server.client().job(job.id).state in ("queued", "running")


@pytest.mark.slow
def test_200_submissions_and_20_kills(tmp_path: Path) -> None:
    """None is lost, none is there twice, every result is right, and the store is sound after every kill of the server."""
    result = storm(tmp_path / "data", jobs=200, kills=20)
    print(result)
    assert result.died <= 10 and 1 <= result.repeated <= 20, "a kill costs at most the stage that was running"
