"""The front end's side of the worker processes: start, give them jobs, notice when they are gone, start again."""

from __future__ import annotations

import logging
import multiprocessing
import time
from dataclasses import dataclass

import zmq

from portrait_backend.server import backstage as b
from portrait_backend.server.executor import Executor
from portrait_backend.server.gate import Gate
from portrait_backend.server.jobs import Jobs
from portrait_backend.server.keys import KeyPair
from portrait_backend.server.worker import WorkerStart, main
from portrait_shared.protocol import MAX_MESSAGE_BYTES, ErrorInfo, ProtocolError

CANCEL_SECONDS = 30.0
"""A job that has not stopped so long after it was cancelled loses its worker; stages report at least once a second."""
SILENCE_SECONDS = 120.0
"""A worker that sends no heartbeat for so long hangs; a loaded machine can delay one by seconds."""
END_SECONDS = 5.0
"""A killed process that is still there after so long hangs in a driver; the queue must not hang with it."""
RESTART_SECONDS = (0.0, 1.0, 5.0, 30.0)
"""Wait before the next start, by the number of starts in a row that failed."""
log = logging.getLogger(__name__)


@dataclass
class Device:
    """A device and the process that computes on it, if there is one."""

    name: str
    process: multiprocessing.process.BaseProcess | None = None
    socket: zmq.Socket[bytes] | None = None
    domain: str = ""
    info: b.DeviceInfo | None = None
    ready: bool = False
    job: str | None = None
    begun: bool = False
    """Whether it has said a word about that job."""
    heard: float = 0.0
    cancelled: float | None = None
    failures: int = 0
    next_start: float = 0.0
    problem: ErrorInfo | None = None


class Pool:
    """One worker process per device."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], gate: Gate, jobs: Jobs, executor: Executor) -> None:
        self._context, self._gate, self._jobs, self._executor = context, gate, jobs, executor
        self._spawn = multiprocessing.get_context("spawn")
        self._started = 0
        self.devices = [Device(name) for name in executor.devices]

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """Return the sockets to listen on."""
        return [device.socket for device in self.devices if device.socket is not None]

    def handle(self, socket: zmq.Socket[bytes]) -> None:
        """Receive what a worker has sent."""
        device = next(device for device in self.devices if device.socket is socket)
        try:
            message = b.from_frames(socket.recv_multipart())
        except ProtocolError as error:
            self._bury(device, f"it sent something unreadable: {error.message}")
            return
        device.heard = time.monotonic()
        log.debug("%s: %s", device.name, type(message).__name__)
        if isinstance(message, b.Ready):
            device.info, device.ready = message.device, message.waiting
            device.failures, device.problem = 0, None
        elif isinstance(message, b.Update):
            device.begun = True
            self._jobs.progress(message)
        elif isinstance(message, b.Failed) and not message.job:
            device.problem = message.error
            self._bury(device, f"it can't start: {message.error.message}")
        elif isinstance(message, b.End):
            self._take(device, message)

    def _take(self, device: Device, message: b.End) -> None:
        device.job, device.cancelled, device.ready = None, None, False
        if isinstance(message, b.Finished):
            self._jobs.finished(message)
        elif isinstance(message, b.Stopped):
            self._jobs.stopped(message.job)
        elif isinstance(message, b.Lost):
            log.error("what computed for %s is gone: %s", device.name, message.how)
            self._jobs.lost(message.job, message.how)
        else:
            self._jobs.failed(message.job, message.error)
            if message.worn:
                self._end(device)

    def tick(self) -> None:
        """Notice dead and silent workers, start new ones, hand out waiting jobs."""
        now = time.monotonic()
        for device in self.devices:
            if device.process is not None:
                self._look_after(device, now)
            if device.process is None and now >= device.next_start:
                self._start(device)
            if device.ready and device.job is None:
                self._hand_out(device)
        if not self._executor.elsewhere and all(device.problem is not None and device.failures > 1 for device in self.devices):
            self._refuse_waiting()

    def cancel(self, job: str) -> None:
        """Tell the worker of a job to stop it."""
        for device in self.devices:
            if device.job == job and device.socket is not None:
                device.cancelled = time.monotonic()
                self._send(device, b.CancelJob(job))

    def _look_after(self, device: Device, now: float) -> None:
        assert device.process is not None
        if not device.process.is_alive():
            while device.socket is not None and device.socket.poll(0):
                self.handle(device.socket)  # its last words
            if device.process is not None:
                self._bury(device, _describe(device.process.exitcode))
        elif now - device.heard > SILENCE_SECONDS:
            self._bury(device, f"it hung for {SILENCE_SECONDS:.0f} s and was ended")
        elif device.cancelled is not None and now - device.cancelled > CANCEL_SECONDS:
            self._bury(device, f"it did not stop within {CANCEL_SECONDS:.0f} s and was ended")

    def _start(self, device: Device) -> None:
        self._started += 1
        front, keys = KeyPair.new(), KeyPair.new()
        device.domain = f"worker-{self._started}"
        self._gate.add(device.domain, lambda key: key == keys.public)
        socket = self._context.socket(zmq.PAIR)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        socket.curve_server = True
        socket.curve_secretkey = front.secret.encode()
        socket.zap_domain = device.domain.encode()
        socket.bind("tcp://127.0.0.1:*")
        start = WorkerStart(socket.getsockopt_string(zmq.LAST_ENDPOINT), front.public, keys, device.name, self._executor.engine)
        device.process = self._spawn.Process(target=main, args=(start,), name=f"portrait-diffusion {device.name}", daemon=True)
        device.process.start()
        device.socket, device.heard, device.ready, device.job, device.cancelled = socket, time.monotonic(), False, None, None
        log.info("worker %d for %s started, process %s", self._started, device.name, device.process.pid)

    def _hand_out(self, device: Device) -> None:
        record = self._jobs.next_job()
        if record is not None:
            device.job, device.begun = record.info.id, False
            self._send(device, self._jobs.start(record))

    def _send(self, device: Device, message: b.BackstageMessage) -> None:
        assert device.socket is not None
        try:
            device.socket.send_multipart(b.to_frames(message), zmq.NOBLOCK)
        except zmq.Again:
            log.warning("the worker for %s takes no messages", device.name)  # it is dying: `tick` will see it

    def _bury(self, device: Device, how: str) -> None:
        log.error("the worker for %s is gone: %s", device.name, how)
        job, ready, begun = device.job, device.ready, device.begun
        self._end(device)
        if job is not None:  # a worker that was dying when it got the job hasn't touched it: the next one does it
            (self._jobs.died if begun and not self._executor.elsewhere else self._jobs.lost)(job, how)
        elif not ready:
            device.failures += 1
            device.info = None  # what was known of it doesn't hold any more
            if device.problem is None:
                device.problem = ErrorInfo(
                    "worker-failed", f"the worker process can't start ({how})", "See the server's log", retryable=True
                )
        device.next_start = time.monotonic() + RESTART_SECONDS[min(device.failures, len(RESTART_SECONDS) - 1)]

    def _end(self, device: Device) -> None:
        if device.process is not None:
            device.process.kill()
            device.process.join(END_SECONDS)
            if device.process.exitcode is None:
                log.error("the process %s can't be ended; it is left alone", device.process.pid)
        if device.socket is not None:
            device.socket.close()
        self._gate.remove(device.domain)
        device.process, device.socket, device.ready, device.job, device.cancelled = None, None, False, None, None

    def _refuse_waiting(self) -> None:
        problem = self.devices[0].problem
        while problem is not None and (record := self._jobs.next_job()) is not None:
            self._jobs.start(record)
            self._jobs.failed(record.info.id, problem)

    def close(self) -> None:
        """End all workers."""
        for device in self.devices:
            self._end(device)


def _describe(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    reason = ", perhaps by the system because the memory ran out" if code == -9 else ""
    return f"ended by signal {-code}{reason}"
