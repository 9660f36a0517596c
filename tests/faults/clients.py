"""Clients that misbehave, at a real server: `python -m tests.faults.clients --clients 100`.

Vanish: each connects, submits a job, asks for one thing or another and is gone without a word (its socket closed, its process killed). Slow
reader: a client that submits a job with large previews and doesn't read, while another one works.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from portrait_shared import protocol as p
from portrait_shared.channel import Channel
from portrait_shared.client import Client
from portrait_shared.settings import Settings, to_dict
from tests.faults.soak import resident_mb
from tests.server.fake_engine import expected, photo
from tests.server.harness import Server, wait_for

DRAFT = Settings(preset="draft")
PREVIEW_BYTES = 200_000
CLIENT = """
import sys
from portrait_shared.client import Client
from pathlib import Path
client = Client.connect(Path(sys.argv[1]))
client.submit(sys.argv[2].encode(), {"preset": "draft"}, id=sys.argv[3])
print("sent", flush=True)
for _ in client.follow(sys.argv[3]):
    pass
"""
"""A client in a process of its own, to be killed."""


@dataclass(frozen=True)
class Vanished:
    """What came of clients that vanished: their jobs, the server's memory in MB and open files before and after, seconds."""

    jobs: int
    memory_mb: tuple[float, float]
    files: tuple[int, int]
    seconds: float


def vanish(data: Path, clients: int, killed: int, seed: int = 1) -> Vanished:
    """Let `clients` clients come and go, `killed` of them by SIGKILL; AssertionError if a job is lost or the server suffers."""
    start, rng = time.monotonic(), random.Random(seed)
    with Server(data).start() as server:
        watcher = server.client()
        server.wait(watcher, watcher.submit(photo(), DRAFT).id)
        assert server.process is not None
        pid = server.process.pid
        before, sent = (resident_mb(pid), _files(pid)), {}
        for number in range(clients):
            content = photo(number=number, steps=3, pause=0.002, preview="p" * 1000)
            id = p.new_id()
            sent[id] = content
            if number < killed:
                _killed(server, content, id)
            else:
                _dropped(server, content, id, rng)
        for id, content in sent.items():
            assert server.wait(watcher, id, 60).state == "completed"
            assert (server.folder(id) / "result/head.glb").read_bytes() == expected(content)
        assert {job.id for job in watcher.jobs()} >= set(sent) and len(watcher.jobs()) == clients + 1
        wait_for(lambda: _files(pid) <= before[1] + 2, "the sockets of those that left to be closed", 60)
        after = resident_mb(pid), _files(pid)
        assert len(server.workers) == 1
    return Vanished(len(sent), (before[0], after[0]), (before[1], after[1]), time.monotonic() - start)


def _files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _killed(server: Server, content: bytes, id: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CLIENT, str(server.connection_file), content.decode(), id]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"sent\n"
        process.send_signal(signal.SIGKILL)


def _dropped(server: Server, content: bytes, id: str, rng: random.Random) -> None:
    """Say hello (or not), submit, ask for something without waiting for the answer, and close."""
    channel = Channel(server.connection())
    if rng.random() < 0.5:
        channel.send(p.Hello("vanishing", "", request=p.new_id()))
    channel.send(p.JobSubmit(id, to_dict(DRAFT), content, request=p.new_id()))
    end = time.monotonic() + 20
    while not isinstance(answer := channel.receive(1), p.JobReply):
        assert time.monotonic() < end and not isinstance(answer, p.ErrorReply), answer
    more: tuple[p.Message, ...] = (p.JobList(request="1"), p.ServerStatus(request="2"), p.JobGet(id, request="3"), p.Ping(request="4"))
    for _ in range(rng.randrange(10)):
        channel.send(rng.choice(more))
    channel.close()


@dataclass(frozen=True)
class Slow:
    """What came of a client that doesn't read: the server's growth in MB, the other client's slowest answer in seconds."""

    reports: int
    growth_mb: float
    slowest: float


def slow_reader(data: Path, seconds: float) -> Slow:
    """Let a client submit a job with large previews and read nothing for so long, while another one asks for the status all the time."""
    with Server(data).start() as server:
        anna = server.authorise("anna")
        other = server.client()
        assert server.process is not None
        pid = server.process.pid
        with Client.connect(anna) as lazy:
            before = resident_mb(pid)
            content = photo(steps=round(seconds / 0.02 / 3), pause=0.02, preview="p" * PREVIEW_BYTES)
            job = lazy.submit(content, DRAFT)
            answers, end = [], time.monotonic() + seconds
            while time.monotonic() < end:
                asked = time.monotonic()
                other.status()
                answers.append(time.monotonic() - asked)
                time.sleep(0.02)
            growth = resident_mb(pid) - before
            assert server.wait(lazy, job.id).state == "completed", "it catches up when it reads again"
    return Slow(len(answers), growth, max(answers))


def main() -> None:
    """Run both and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--killed", type=int, default=20, help="so many of them are processes that are killed")
    parser.add_argument("--slow-seconds", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(vanish(Path(folder) / "a", options.clients, options.killed))
        print(slow_reader(Path(folder) / "b", options.slow_seconds))


if __name__ == "__main__":
    main()
