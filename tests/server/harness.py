"""A real server in a process of its own, its clients, and a check that nothing of it stays behind."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from portrait_backend.server.keys import KeyFolder, KeyPair
from portrait_shared import protocol as p
from portrait_shared.client import Client
from portrait_shared.connection import Connection, read_connection

SCRIPT = Path(__file__).with_name("run_server.py")
FAKE = "tests.server.fake_engine:FakeEngine"
START_SECONDS = 30.0


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Server:
    """A server process on a data folder; may be started again and again."""

    def __init__(self, data: Path, engine: str = FAKE, stderr: Path | None = None) -> None:
        self.data, self.engine, self.stderr = data, engine, stderr
        self.process: subprocess.Popen[bytes] | None = None
        self.clients: list[Client] = []

    @property
    def connection_file(self) -> Path:
        return self.data / "connection.json"

    @property
    def log(self) -> str:
        path = self.data / "server.log"
        return path.read_text() if path.exists() else ""

    @property
    def workers(self) -> list[int]:
        """The worker processes that were ever started, the newest last."""
        return [int(pid) for pid in re.findall(r"worker \d+ for \S+ started, process (\d+)", self.log)]

    def start(self, *more: str) -> Server:
        self.connection_file.unlink(missing_ok=True)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, str(SCRIPT), self.engine, str(self.data), *more]
        with (self.stderr or Path(os.devnull)).open("ab") as stderr:
            self.process = subprocess.Popen(command, env=env, stderr=stderr)
        wait_for(
            lambda: self.connection_file.exists() or self.process is None or self.process.poll() is not None, "the server", START_SECONDS
        )
        assert self.process.poll() is None, f"the server left: {self.log}"
        return self

    def client(self, connection: Connection | None = None) -> Client:
        client = Client.connect(connection or self.connection_file, timeout=START_SECONDS)
        self.clients.append(client)
        return client

    def connection(self, keys: KeyPair | None = None, server_key: str | None = None) -> Connection:
        """Return how to connect, with other keys where given."""
        own = read_connection(self.connection_file)
        pair = keys or KeyPair(own.client_public_key, own.client_secret_key)
        return Connection(own.endpoint, server_key or own.server_key, pair.public, pair.secret)

    def authorise(self, name: str) -> Connection:
        """Return the connection of a new authorised client."""
        return self.connection(KeyFolder(self.data / "keys").create(name))

    def kill(self) -> None:
        """Kill the front end without a word, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def kill_worker(self) -> int:
        """Kill the newest worker and return its process id."""
        pid = self.workers[-1]
        os.kill(pid, signal.SIGKILL)
        return pid

    def folder(self, job: str) -> Path:
        return self.data / "jobs" / job

    def wait(self, client: Client, job: str, seconds: float = 30.0) -> p.JobInfo:
        """Follow a job to its end."""
        for _ in client.follow(job, seconds):
            pass
        return client.job(job)

    def stop(self) -> None:
        """End everything; fails if a process stays."""
        for client in self.clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(15)
        wait_for(lambda: not any(alive(pid) for pid in self.workers), "the workers to leave", 15)
        assert not self.connection_file.exists() or (self.process is not None and self.process.returncode == -signal.SIGKILL)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def integrity(data: Path) -> str:
    """Return SQLite's verdict on a server's store."""
    with sqlite3.connect(data / "jobs.sqlite") as database:
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    return str(verdict)


def states(events: Iterable[p.JobProgress | p.JobStateChanged]) -> list[str]:
    """Return the states in a list of events."""
    return [event.job.state for event in events if isinstance(event, p.JobStateChanged)]
