"""What a monitoring system sees of a server: a page for Prometheus, in a thread of its own. No names, no photos, no keys.

The front end sets the numbers about once a second; a request for the page touches nothing else.
"""

from __future__ import annotations

import importlib.util
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from portrait_backend import __version__
from portrait_backend.server.tally import Tally
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import PROTOCOL_VERSION, JobState

if TYPE_CHECKING:
    from portrait_backend.server.peers import Peers
    from portrait_backend.server.pool import Pool
    from portrait_backend.server.store import JobStore

PREFIX = "portrait_diffusion"
TICK_SECONDS = 1.0
BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Seconds of a stage: from an export to stage 3 at full scale."""


@dataclass(frozen=True)
class MetricsOptions:
    """Where the page is; port 0: any."""

    port: int
    address: str = "127.0.0.1"


class NoMetrics(Tally):
    """Counts nothing."""

    def tick(self, store: JobStore, pool: Pool, peers: Peers) -> None:
        """Bring the numbers up to date, if it is time to."""

    def close(self) -> None:
        """Stop answering."""


class Metrics(NoMetrics):
    """Counts, and answers on ``http://ADDRESS:PORT/metrics``.

    Raises PortraitDiffusionError metrics-missing, bind-failed.
    """

    def __init__(self, options: MetricsOptions) -> None:
        if importlib.util.find_spec("prometheus_client") is None:
            raise PortraitDiffusionError(
                "metrics-missing", "--metrics-port needs the package prometheus-client", 'pip install "portrait-diffusion[metrics]"'
            )
        import prometheus_client as prometheus

        self._registry = prometheus.CollectorRegistry()
        made: dict[str, Any] = {"namespace": PREFIX, "registry": self._registry}
        prometheus.Info("build", "Versions of this server", **made).info({"version": __version__, "protocol": str(PROTOCOL_VERSION)})
        self._queue = prometheus.Gauge("queue_length", "Jobs that wait", **made)
        self._jobs = prometheus.Gauge("jobs", "Jobs that are kept, by state", ["state"], **made)
        self._ended = prometheus.Counter("jobs_ended", "Jobs that ended since the start, by how", ["state"], **made)
        self._seconds = prometheus.Histogram("stage_seconds", "Time of stages that ran to their end", ["stage"], buckets=BUCKETS, **made)
        self._memory = prometheus.Gauge("device_memory_bytes", "Memory of a device when its last job ended", ["device", "kind"], **made)
        self._up = prometheus.Gauge("device_up", "Whether a device can compute", ["device"], **made)
        self._clients = prometheus.Gauge("clients", "Clients that are connected", **made)
        self._at: dict[str, tuple[str, float]] = {}
        self._next = 0.0
        try:
            self._server, self._thread = prometheus.start_http_server(options.port, options.address, self._registry)
        except OSError as error:
            raise PortraitDiffusionError(
                "bind-failed",
                f"can't listen on {options.address}:{options.port} for metrics ({error.strerror})",
                "Use --metrics-port with a free port and --metrics-address with an address of this machine",
            ) from error
        self.url = f"http://{options.address}:{self._server.server_port}/metrics"

    def stage(self, job: str, stage: str) -> None:
        """A job has come to a stage: the one before has come to its end."""
        self._observe(job)
        self._at[job] = (stage, time.monotonic())

    def ended(self, job: str, state: JobState) -> None:
        """A job has ended, or waits for another worker (state queued)."""
        if state == "completed":
            self._observe(job)
        self._at.pop(job, None)
        if state != "queued":
            self._ended.labels(state).inc()

    def _observe(self, job: str) -> None:
        if job in self._at:
            stage, started = self._at[job]
            self._seconds.labels(stage).observe(time.monotonic() - started)

    def tick(self, store: JobStore, pool: Pool, peers: Peers) -> None:
        """Bring the numbers up to date, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TICK_SECONDS
        counts = Counter({state: store.count(state) for state in get_args(JobState)})
        for state, count in counts.items():
            self._jobs.labels(state).set(count)
        self._queue.set(counts["queued"])
        self._clients.set(len(peers))
        for device in pool.devices:
            self._up.labels(device.name).set(device.info is not None and device.process is not None)
            if device.info is not None:
                for kind, megabytes in (("total", device.info.memory_mb), ("free", device.info.memory_free_mb)):
                    if megabytes is not None:
                        self._memory.labels(device.name, kind).set(1e6 * megabytes)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
