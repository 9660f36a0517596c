"""Start a server, keep it running, and leave when it should."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from portrait_backend.processes import only_one
from portrait_backend.server.executor import Executor
from portrait_backend.server.folders import DataFolder
from portrait_backend.server.front_end import FrontEnd
from portrait_backend.server.jobs import Quota
from portrait_backend.server.keys import KeyFolder
from portrait_backend.server.logs import LogFormat, logging_to
from portrait_backend.server.metrics import Metrics, MetricsOptions, NoMetrics
from portrait_backend.server.parent import ParentWatch
from portrait_shared.connection import Connection, write_connection
from portrait_shared.errors import PortraitDiffusionError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """How to serve. parent: leave with this process; idle_minutes: leave after so long without clients and jobs; quota: of each client.

    keep_days: ended jobs are removed so long after their end. metrics: None for no page.
    """

    data: Path
    connection_file: Path | None = None
    bind: str = "tcp://127.0.0.1:*"
    executor: Executor = field(default_factory=Executor)
    parent: int | None = None
    idle_minutes: float = math.inf
    quota: Quota | None = None
    keep_days: float = math.inf
    log_format: LogFormat = "text"
    metrics: MetricsOptions | None = None


def serve(options: ServeOptions, on_ready: Callable[[str, Path], None] | None = None) -> None:
    """Serve until told to leave; `on_ready(endpoint, connection file)` is called once clients can connect.

    Raises PortraitDiffusionError bind-refused, bind-failed, metrics-missing, data-in-use, data-not-writable, store-damaged, store-newer,
    keys-unreadable, store-failed.
    """
    try:
        data = DataFolder(options.data)
    except OSError as error:
        raise PortraitDiffusionError(
            "data-not-writable", f"can't write to {options.data} ({error.strerror})", "Choose another folder with --data"
        ) from error
    with only_one(options.data / "lock", _in_use(options.data)), logging_to(options.data, options.log_format):
        keys = KeyFolder(data.keys)
        check_bind(options.bind, keys)
        parent = ParentWatch(options.parent) if options.parent is not None else None
        metrics = NoMetrics() if options.metrics is None else Metrics(options.metrics)
        try:
            front = FrontEnd(data, keys, options.bind, options.executor, options.quota, options.keep_days, metrics)
        except BaseException:
            metrics.close()
            raise
        path = options.connection_file or options.data / "connection.json"
        try:
            front.jobs.recover()
            local = keys.local()
            connection = Connection(_reachable(front.endpoint), keys.server().public, local.public, local.secret, os.getpid())
            write_connection(path, connection)
            if isinstance(metrics, Metrics):
                log.info("metrics on %s", metrics.url)
            log.info("listening on %s, process %d, data in %s", front.endpoint, os.getpid(), options.data)
            if on_ready is not None:
                on_ready(front.endpoint, path)
            _run(front, parent, options.idle_minutes)
        except sqlite3.Error as error:
            log.exception("the store failed")
            raise PortraitDiffusionError(
                "store-failed",
                f"{data.store} can't be written ({error})",
                "Free some space there and start again; no job is lost",
                retryable=True,
            ) from error
        finally:
            path.unlink(missing_ok=True)
            front.close()
            metrics.close()
            log.info("stopped")


def _run(front: FrontEnd, parent: ParentWatch | None, idle_minutes: float) -> None:
    while not front.leaving:
        front.turn()
        if parent is not None and not parent.alive():
            log.info("the parent process is gone: leaving with it")
            return
        if time.monotonic() - front.busy > 60 * idle_minutes:
            log.info("nothing to do for %g minutes: leaving", idle_minutes)
            return


def check_bind(bind: str, keys: KeyFolder) -> None:
    """Refuse an address that others can reach as long as no client is authorised."""
    match = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^:/\s]+):(\*|\d{1,5})", bind)
    if not match:
        raise PortraitDiffusionError(
            "bind-invalid", f"--bind {bind} is no address", "Use tcp://ADDRESS:PORT, or tcp://127.0.0.1:* for any port"
        )
    if not is_loopback(match[1]) and not keys.authorised():
        raise PortraitDiffusionError(
            "bind-refused",
            f"{bind} can be reached from other machines and no client is authorised",
            "Make a key with portrait-diffusion keys create NAME first",
        )


def is_loopback(host: str) -> bool:
    """Tell whether a host of --bind is this machine only; names other than localhost are not trusted to be."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(endpoint: str) -> str:
    """Return the endpoint for a client on this machine: a server that listens everywhere also listens on the loopback."""
    return endpoint.replace("tcp://0.0.0.0:", "tcp://127.0.0.1:").replace("tcp://[::]:", "tcp://127.0.0.1:")


def _in_use(folder: Path) -> PortraitDiffusionError:
    """Two servers on one store would run every job twice."""
    hint = "Stop it, or choose another folder with --data"
    return PortraitDiffusionError("data-in-use", f"another server is using {folder}", hint, retryable=True)
