"""A real Ray cluster of this machine alone: jobs and batches are done on it, whatever dies meanwhile."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason='needs ray: pip install ".[cluster]"')

from portrait_backend.cli import main
from portrait_backend.cluster import heads, link
from portrait_backend.cluster.options import RayOptions
from portrait_shared import protocol as p
from portrait_shared.client import Client
from portrait_shared.settings import Settings
from tests.cluster.node_engine import LIGHT
from tests.server.fake_engine import expected, photo
from tests.server.harness import Server, alive, integrity, states

DRAFT = Settings(preset="draft")
SECONDS = 240
"""For anything that starts processes of a cluster on a busy machine; a free one needs a twentieth of it."""
LIMIT_SECONDS = 2 * SECONDS


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayOptions]:
    with link.local_cluster(cpus=2) as options:
        yield options


@pytest.fixture(scope="module")
def server(cluster: RayOptions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER", json.dumps({"address": cluster.address, "token": cluster.token, "cpus": 1}))
        with Server(tmp_path_factory.mktemp("ray") / "data", LIGHT).start("tcp://127.0.0.1:*", "1") as running:
            yield running


def follow(client: Client, job: str) -> list[p.JobProgress | p.JobStateChanged]:
    return list(client.follow(job, SECONDS))


def at(client: Client, job: str, stage: str) -> p.JobProgress:
    """Wait for a report of a stage."""
    for event in client.follow(job, SECONDS):
        if isinstance(event, p.JobProgress) and event.stage == stage:
            return event
    raise AssertionError(f"the job ended before {stage}")


def test_a_job_is_done_on_the_cluster_as_it_is_here(server: Server, tmp_path: Path) -> None:
    client = server.client()
    data = photo(steps=4, pause=0.3, preview="picture")
    job = client.submit(data, DRAFT)
    seen = follow(client, job.id)
    info = client.job(job.id)
    assert info.state == "completed" and info.warnings == ("ran portrait prior mesh",)
    assert states(seen)[-1] == "completed" and states(seen).count("completed") == 1
    reports = [event for event in seen if isinstance(event, p.JobProgress)]
    assert {event.stage for event in reports} == {"portrait", "prior", "mesh"} and any(event.preview == b"picture" for event in reports)
    assert {event.steps for event in reports} == {4} and reports[-1].metrics["pid"] not in (os.getpid(), server.workers[-1])
    client.result(job.id, tmp_path / "out")
    assert (tmp_path / "out/head.glb").read_bytes() == expected(data)
    assert "Ray node" in client.status().device_name


def test_a_job_is_cancelled_on_the_cluster(server: Server) -> None:
    client = server.client()
    job = client.submit(photo(steps=100_000, pause=0.02), DRAFT)
    at(client, job.id, "portrait")
    client.cancel(job.id)
    assert states(follow(client, job.id))[-1] == "cancelled"


def test_a_killed_node_process_costs_a_stage_and_the_job_ends_once(server: Server) -> None:
    client = server.client()
    data = photo(steps=25, pause=0.1)
    job = client.submit(data, DRAFT)
    worker = int(at(client, job.id, "prior").metrics["pid"])
    os.kill(worker, signal.SIGKILL)
    seen = follow(client, job.id)
    assert states(seen)[-3:] == ["queued", "running", "completed"] and states(seen).count("completed") == 1
    assert client.job(job.id).warnings == ("ran prior mesh",), "the stage that was finished had come home"
    assert (server.folder(job.id) / "result/head.glb").read_bytes() == expected(data)
    with sqlite3.connect(server.data / "jobs.sqlite") as database:
        assert database.execute("SELECT state, interruptions FROM jobs WHERE id = ?", (job.id,)).fetchall() == [("completed", 1)]
    database.close()
    assert integrity(server.data) == "ok" and not alive(worker)


def test_a_fault_on_a_node_is_told_with_its_log(server: Server) -> None:
    client = server.client()
    failed, bug = client.submit(photo(fail="no-face"), DRAFT), client.submit(photo(bug=True), DRAFT)
    follow(client, bug.id)
    codes = [(info.error.code, info.error.log) for info in map(client.job, (failed.id, bug.id)) if info.error is not None]
    assert codes[0] == ("no-face", "") and codes[1][0] == "internal-error" and "ZeroDivisionError: a bug" in codes[1][1]


def run(tmp_path: Path, cluster: RayOptions, *arguments: str) -> int:
    return main(["batch", "--executor", "ray", "--ray-cpus", "0.5", "-o", str(tmp_path / "out"), *arguments])


def test_a_batch_on_the_cluster(
    server: Server, cluster: RayOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heads, "PIPELINE", LIGHT)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token or "")
    plans = {"a": photo(number=1), "b": photo(fail="no-face"), "c": photo(number=2)}
    for name, content in plans.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
    given = [str(tmp_path / f"{name}.jpg") for name in (*plans, "gone")]
    assert run(tmp_path, cluster, *given, "--ray-address", cluster.address) == 1
    rows: list[dict[str, Any]] = json.loads((tmp_path / "out/summary.json").read_text())["photos"]
    assert [(row["name"], row["state"], row.get("error", {}).get("code")) for row in rows] == [
        ("a", "completed", None),
        ("b", "failed", "no-face"),
        ("c", "completed", None),
        ("gone", "failed", "image-missing"),
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".batch.lock", "a", "c", "summary.csv", "summary.json"]
    assert (tmp_path / "out/a/head.glb").read_bytes() == expected(plans["a"])
    capsys.readouterr()
    assert run(tmp_path, cluster, *given, "--ray-address", cluster.address, "--ray-cpus", "64") == 2
    assert capsys.readouterr().err.startswith("error[ray-no-room]: one head takes 64 CPUs and 0 GPUs, the largest node has 2 CPUs")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_a_cluster_of_this_machine_is_reached_from_nowhere_else(cluster: RayOptions, server: Server) -> None:
    listening = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=False).stdout.splitlines()
    ours = [line.split()[3] for line in listening if "raylet" in line or "gcs_server" in line or "ray::" in line]
    if not ours:
        pytest.skip("ss doesn't tell whose sockets these are")
    assert all("127.0.0.1" in address or "[::1]" in address for address in ours), ours


@pytest.mark.parametrize(
    ("address", "code"),
    [("ray://127.0.0.1:10001", "ray-address-invalid"), ("auto", "ray-address-invalid"), ("127.0.0.1:1", "ray-unreachable")],
)
@pytest.mark.parametrize("command", ["serve", "batch"])
def test_an_address_that_is_none_is_told(command: str, address: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(b"{}")
    more = ["--data", str(tmp_path / "data")] if command == "serve" else [str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out")]
    assert main([command, *more, "--executor", "ray", "--ray-address", address]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error[{code}]: ") and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_ray_the_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("portrait_backend.cluster.options.importlib.util.find_spec", lambda name: None)
    assert main(["serve", "--data", str(tmp_path / "data"), "--executor", "ray"]) == 2
    assert 'error[ray-missing]: --executor ray needs the package ray. pip install "portrait-diffusion[cluster]"' in capsys.readouterr().err


def test_options_of_a_cluster_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--data", str(tmp_path / "data"), "--ray-jobs", "2"]) == 2
    assert "--ray-jobs is for --executor ray" in capsys.readouterr().err


def test_an_older_ray_in_the_cluster_is_told(cluster: RayOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldRay:
        __spec__ = importlib.util.find_spec("ray")

        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**options: object) -> None:
            raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.11.7.")

    monkeypatch.setitem(sys.modules, "ray", OldRay)
    for name in link.environment(cluster):
        monkeypatch.setenv(name, "")
    with pytest.raises(Exception, match=r"Ray: 2\.40\.0") as caught:
        link.join(cluster)
    assert getattr(caught.value, "code", "") == "ray-mismatched"
