"""A server and a batch whose disk fills up or becomes read-only: no job is lost, the store stays sound, it goes on once there is space."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from portrait_backend.cli import main
from portrait_shared import protocol as p
from portrait_shared.client import Client
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings
from tests.faults.tmpfs import fill, read_only
from tests.server.fake_engine import expected, photo
from tests.server.harness import Server, integrity

DRAFT = Settings(preset="draft")
RESULT, PHOTO = 30_000, 20_000
PAGE = 4096


def attempt(server: Server, content: bytes, id: str) -> str:
    """Submit a job and wait for its end; returns what came of it."""
    try:
        with Client.connect(server.connection_file, timeout=10) as client:
            client.submit(content, DRAFT, id=id)
            info = server.wait(client, id)
    except PortraitDiffusionError as error:
        assert error.code in ("disk-full", "store-failed", "backend-lost", "backend-unreachable", "connection-missing"), error
        return error.code
    if info.state == "completed":
        return "completed"
    assert info.error is not None and info.error.code == "disk-full" and info.error.retryable, info.error
    return "failed"


@pytest.mark.slow
def test_a_server_with_any_space_left(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for patience in ("RECONNECT_SECONDS", "RESUBMIT_SECONDS"):
        monkeypatch.setattr(f"portrait_shared.client.{patience}", 1.0)
    data = disk / "data"
    outcomes: list[str] = []
    sent: dict[str, bytes] = {}
    with Server(data, stderr=tmp_path / "stderr").start() as server:
        for number, leave in enumerate(range(0, 48 * PAGE, 2 * PAGE)):
            content = photo(number=number, size=RESULT, padding="x" * PHOTO)
            id = p.new_id()
            ballast = fill(disk, leave)
            outcomes.append(attempt(server, content, id))
            ballast.unlink()
            assert server.process is not None
            if server.process.poll() is not None:
                outcomes[-1] += ", the server left"
                assert "can't be written" in (tmp_path / "stderr").read_text()
                server.start()
            with Client.connect(server.connection_file, timeout=10) as client:
                client.submit(content, DRAFT, id=id)  # the same again makes no second job
                if client.job(id).state in ("failed", "cancelled"):
                    client.resume(id)
                assert server.wait(client, id).state == "completed"
            sent[id] = content
            assert (server.folder(id) / "result/head.glb").read_bytes() == expected(content, RESULT)
            for old in list(sent)[:-3]:  # or the small disk would fill up by itself
                with Client.connect(server.connection_file, timeout=10) as client:
                    client.delete(old)
                del sent[old]
        with Client.connect(server.connection_file, timeout=10) as client:
            assert {job.id for job in client.jobs()} == set(sent)
    assert integrity(data) == "ok"
    assert outcomes[-1] == "completed" and outcomes.count("completed") < len(outcomes)
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})


def test_a_server_that_starts_on_a_full_disk_says_so(disk: Path) -> None:
    with Server(disk / "data").start() as server:
        client = server.client()
        job = client.submit(photo(), DRAFT)
        server.wait(client, job.id)
    ballast = fill(disk)
    command = [sys.executable, "-m", "portrait_backend", "serve", "--data", str(disk / "data"), "--device", "cpu"]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 2 and "error[" in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
    ballast.unlink()
    assert integrity(disk / "data") == "ok"
    with Server(disk / "data").start() as server:
        assert server.client().job(job.id).state == "completed"


def test_a_read_only_disk_is_said_in_one_line(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "me.png"
    picture.write_bytes(b"photo")
    with Server(disk / "data").start() as server:
        server.wait(server.client(), server.client().submit(photo(), DRAFT).id)
    (disk / "out").mkdir()
    read_only(disk)
    try:
        for arguments, code in (
            (["generate", str(picture), "-o", str(disk / "new")], "output-not-writable"),
            (["batch", str(picture), "-o", str(disk / "new")], "output-not-writable"),
            (["batch", str(picture), "-o", str(disk / "out")], "output-not-writable"),
            (["serve", "--data", str(disk / "new")], "data-not-writable"),
            (["serve", "--data", str(disk / "data")], "data-not-writable"),
            (
                ["keys", "create", "anna", "--data", str(disk / "data"), "--endpoint", "tcp://host:7000", "-o", str(tmp_path / "k")],
                "key-not-written",
            ),
            (["jobs", "purge", "--all", "--data", str(disk / "data")], "data-not-writable"),
        ):
            assert main(arguments) == 2, arguments
            err = capsys.readouterr().err
            assert err.startswith(f"error[{code}]: ") and err.count("\n") == 1, (arguments, err)
    finally:
        read_only(disk, False)


def test_a_batch_on_a_full_disk(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from portrait_backend.batch import run as batch_run
    from tests.batch.fake_engine import LIGHT

    monkeypatch.setattr(batch_run, "ENGINE", LIGHT)
    given = []
    for name in "abc":
        path = tmp_path / f"{name}.jpg"
        path.write_text(f"fine {name}" * 1000)
        given.append(str(path))
    seen = set()
    for leave in range(0, 16 * PAGE, PAGE):
        ballast = fill(disk, leave)
        code = main(["batch", *given, "-o", str(disk / "out")])
        err = capsys.readouterr().err
        assert code in (0, 1, 2) and "Traceback" not in err and "internal-error" not in err, err
        seen.add(code)
        ballast.unlink()
        assert main(["batch", *given, "-o", str(disk / "out")]) == 0
        rows = json.loads((disk / "out/summary.json").read_text())["photos"]
        assert {row["state"] for row in rows} <= {"completed", "skipped"}
        subprocess.run(["rm", "-r", str(disk / "out")], check=True)
        capsys.readouterr()
    assert 0 in seen and len(seen) > 1
