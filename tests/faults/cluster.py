"""A Ray cluster that loses a worker, then its head node, while jobs run: `python -m tests.faults.cluster`.

The head node is killed whole (SIGKILL of all its processes) in the middle of a job and started again at its address. Afterwards every
job is there once, completed, its result right to the byte, and the store is sound.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from portrait_backend.cluster.link import environment
from portrait_backend.cluster.options import RayOptions
from portrait_shared import protocol as p
from portrait_shared.client import Client
from portrait_shared.settings import Settings
from tests.cluster.node_engine import LIGHT
from tests.server.fake_engine import expected, photo
from tests.server.harness import Server, alive, integrity, states, wait_for

DRAFT = Settings(preset="draft")
SECONDS = 400.0


class HeadNode:
    """`ray start --head` on the loopback, at one address each time."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.options = RayOptions(f"127.0.0.1:{self.port}", cpus=1, token=secrets.token_hex(32))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = {**os.environ, **environment(self.options), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        facts = [f"--port={self.port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false", "--block"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *facts]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_for(answers, "the head node", SECONDS)

    def kill(self) -> None:
        assert self.process is not None
        pids = [self.process.pid, *_below(self.process.pid)]
        for pid in pids:
            with_kill(pid)
        self.process.wait(30)
        wait_for(lambda: not any(alive(pid) for pid in pids), "the head node's end")


def with_kill(pid: int) -> None:
    """Kill a process that may be gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _below(pid: int) -> list[int]:
    """Return all processes that a process started, and theirs."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, last = [], [pid]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found


def at(client: Client, job: str, stage: str) -> int:
    """Wait for a report of a stage; returns the process on the node."""
    for event in client.follow(job, SECONDS):
        if isinstance(event, p.JobProgress) and event.stage == stage:
            return int(event.metrics["pid"])
    raise AssertionError(f"the job ended before {stage}")


def end(server: Server, client: Client, job: str, content: bytes) -> list[str]:
    """Follow a job to its end, check it, return its states."""
    found = states(client.follow(job, SECONDS))
    assert found[-1] == "completed" and found.count("completed") == 1, (found, client.job(job))
    assert (server.folder(job) / "result/head.glb").read_bytes() == expected(content)
    assert integrity(server.data) == "ok"
    return found


def main() -> None:
    """Try both and print what came of it."""
    node = HeadNode()
    node.start()
    os.environ["CLUSTER"] = json.dumps({"address": node.options.address, "token": node.options.token, "cpus": 1})
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Server(Path(folder) / "data", LIGHT).start("tcp://127.0.0.1:*", "1") as server:
                client = server.client()
                content = photo(steps=40, pause=0.1)
                job = client.submit(content, DRAFT)
                os.kill(at(client, job.id, "prior"), signal.SIGKILL)
                killed = time.monotonic()
                found = end(server, client, job.id, content)
                print(f"worker killed: {found}, {client.job(job.id).warnings}, {time.monotonic() - killed:.0f} s to the end", flush=True)

                job, waiting = client.submit(content, DRAFT), client.submit(photo(), DRAFT)
                at(client, job.id, "prior")
                node.kill()
                killed = time.monotonic()
                wait_for(lambda: client.job(job.id).state == "queued", "the job to wait", SECONDS)
                print(f"head node killed: the job waits after {time.monotonic() - killed:.0f} s", flush=True)
                wait_for(lambda: client.status().device == "unavailable", "the server to say so", SECONDS)
                said = client.status().device_name
                print(f"the server says: {said}; the second job is {client.job(waiting.id).state}", flush=True)
                node.start()
                started = time.monotonic()
                found = end(server, client, job.id, content)
                end(server, client, waiting.id, photo())
                took = time.monotonic() - started
                print(f"head node started again: {found}, {client.job(job.id).warnings}, {took:.0f} s to the end of both", flush=True)
        finally:
            node.kill()


if __name__ == "__main__":
    main()
