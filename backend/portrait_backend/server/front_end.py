"""The front end: the socket that clients speak with, in one thread that never computes and never waits for anything else."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import zmq

from portrait_backend import __version__, stages
from portrait_backend.models.inventory import starter_weights
from portrait_backend.server.catalogue import model_infos
from portrait_backend.server.executor import Executor
from portrait_backend.server.folders import DataFolder
from portrait_backend.server.gate import Gate
from portrait_backend.server.jobs import Jobs, Quota
from portrait_backend.server.keys import KeyFolder
from portrait_backend.server.metrics import NoMetrics
from portrait_backend.server.peers import Peers
from portrait_backend.server.pool import Pool
from portrait_backend.server.retention import Retention
from portrait_backend.server.store import JobStore
from portrait_shared import protocol as p
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import PRESETS

TICK_SECONDS = 0.1
MESSAGES_A_TURN = 100
"""Messages of clients that are handled before the workers and the clock get their turn."""
DOMAIN = "clients"
ACTIVE: tuple[p.JobState, ...] = ("queued", "running", "cancelling")
log = logging.getLogger(__name__)


class FrontEnd:
    """A bound socket with everything behind it."""

    def __init__(
        self,
        data: DataFolder,
        keys: KeyFolder,
        bind: str,
        executor: Executor,
        quota: Quota | None = None,
        keep_days: float = math.inf,
        metrics: NoMetrics | None = None,
    ) -> None:
        self._keys, self._local = keys, keys.local().public
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._metrics = metrics or NoMetrics()
        self.leaving = False
        self.started, self.busy = time.time(), time.monotonic()
        self.store = JobStore(data.store)
        try:
            self._gate = Gate(self._context)
            self._gate.add(DOMAIN, self._may_enter)
            self._socket = self._bind(bind)
            self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            self._peers = Peers(self._send)
            self.jobs = Jobs(self.store, data, self._push, quota, self._metrics)
            self._retention = Retention(self.store, data, keep_days)
            self.pool = Pool(self._context, self._gate, self.jobs, executor)
            self._weights = tuple(p.WeightInfo(w.name, w.size, w.sha256, w.state) for w in starter_weights())
        except BaseException:
            self.store.close()
            self._context.destroy(linger=0)
            raise

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        for option, value in ((zmq.LINGER, 0), (zmq.ROUTER_MANDATORY, 1), (zmq.MAXMSGSIZE, p.MAX_MESSAGE_BYTES)):
            socket.setsockopt(option, value)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.curve_server = True
        socket.curve_secretkey = self._keys.server().secret.encode()
        socket.zap_domain = DOMAIN.encode()
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise PortraitDiffusionError(
                "bind-failed",
                f"can't listen on {endpoint} ({error.strerror})",
                "Use --bind with a free port and an address of this machine",
            ) from error
        return socket

    def _send(self, frames: list[bytes]) -> None:
        self._socket.send_multipart(frames, zmq.NOBLOCK)

    def _push(self, owner: str, message: p.Message) -> None:
        if self._may_enter(owner):  # a revoked client is still connected
            self._peers.push(owner, message)

    def _may_enter(self, key: str) -> bool:
        return key == self._local or self._keys.may_enter(key)

    def turn(self) -> None:
        """Wait a moment for messages and handle what there is; call it again and again."""
        poller = zmq.Poller()
        workers = self.pool.sockets()
        for socket in (self._socket, self._gate.socket, *workers):
            poller.register(socket, zmq.POLLIN)
        ready = dict(poller.poll(round(1000 * TICK_SECONDS)))
        while self._gate.socket.poll(0):
            self._gate.answer()
        for socket in workers:
            while not socket.closed and socket.poll(0):
                self.pool.handle(socket)
        if self._socket in ready:
            for _ in range(MESSAGES_A_TURN):
                if not self._socket.poll(0):
                    break
                self._receive()
        self.pool.tick()
        self._peers.forget_silent()
        self._retention.tick()
        self._metrics.tick(self.store, self.pool, self._peers)
        if len(self._peers) or any(self.store.count(state) for state in ACTIVE):
            self.busy = time.monotonic()

    def _receive(self) -> None:
        routing_id, *rest = self._socket.recv_multipart(copy=False)
        frames = [frame.bytes for frame in rest]
        peer = routing_id.bytes
        owner = _user_of(routing_id if not rest else rest[-1])
        refusal = _refusal(owner is not None and self._may_enter(owner), peer)
        if owner is None or refusal is not None:
            self._peers.answer(peer, p.ErrorReply(refusal or _UNKNOWN, request=p.request_of(frames)))
            return
        self._peers.hear(peer, owner)
        self._peers.answer(peer, self._reply(owner, frames))

    def _reply(self, owner: str, frames: list[bytes]) -> p.Message:
        request = ""
        try:
            message = p.deserialise(frames)
            request = message.request
            answer = self._answers.get(type(message))
            if answer is None:
                raise p.ProtocolError(f"{type(message).__name__} is no request")
            return replace(answer(self, owner, message), request=request)
        except PortraitDiffusionError as error:
            return p.ErrorReply(p.ErrorInfo.of(error), request=request or p.request_of(frames))
        except Exception as error:  # one client's request must not end the server
            log.exception("a request failed")
            info = p.ErrorInfo("internal-error", f"{type(error).__name__}: {error}", "Please report it with the server's log")
            return p.ErrorReply(info, request=request)

    def _hello(self, owner: str, message: p.Hello) -> p.Message:
        if message.protocol_version != p.PROTOCOL_VERSION:
            raise PortraitDiffusionError(
                "protocol-mismatch",
                f"the backend (version {__version__}) speaks protocol {p.PROTOCOL_VERSION}, "
                f"this client (version {message.package_version or 'unknown'}) {message.protocol_version}",
                "Install the same version of Portrait Diffusion on both sides",
            )
        log.info("client %s says hello", self._keys.name_of(owner), extra={"client": owner})
        return p.HelloReply(self.info(owner))

    def _submit(self, owner: str, message: p.JobSubmit) -> p.Message:
        return p.JobReply(self.jobs.submit(owner, message))

    def _cancel(self, owner: str, message: p.JobCancel) -> p.Message:
        info = self.jobs.cancel(owner, message.job)
        if info.state == "cancelling":
            self.pool.cancel(message.job)
        return p.JobReply(info)

    def _list(self, owner: str, message: p.JobList) -> p.Message:
        return p.JobListReply(*self.jobs.list(owner, message.limit, message.offset))

    def _delete(self, owner: str, message: p.JobDelete) -> p.Message:
        self.jobs.delete(owner, message.job)
        return p.Done()

    def _result(self, owner: str, message: p.JobResult) -> p.Message:
        return p.ResultChunk(message.job, message.file, message.offset, self.jobs.chunk(owner, message))

    def _shutdown(self, owner: str, message: p.ServerShutdown) -> p.Message:
        if owner != self._local:
            raise PortraitDiffusionError("not-allowed", "only the local client may stop the backend", "Stop it on its own machine")
        self.leaving = True
        return p.Done()

    _answers: ClassVar[dict[type[p.Message], Callable[[FrontEnd, str, Any], p.Message]]] = {
        p.Hello: _hello,
        p.Ping: lambda self, owner, message: p.Pong(),
        p.JobSubmit: _submit,
        p.JobGet: lambda self, owner, message: p.JobReply(self.jobs.get(owner, message.job)),
        p.JobCancel: _cancel,
        p.JobResume: lambda self, owner, message: p.JobReply(self.jobs.resume(owner, message.job)),
        p.JobDelete: _delete,
        p.JobList: _list,
        p.JobResult: _result,
        p.ServerStatus: lambda self, owner, message: p.StatusReply(self.info(owner)),
        p.ModelsList: lambda self, owner, message: p.ModelsReply(self._weights, model_infos()),
        p.ServerShutdown: _shutdown,
    }

    def info(self, owner: str) -> p.ServerInfo:
        """Return what the server is, for the client with a key."""
        device = self.pool.devices[0]
        known = device.info
        return p.ServerInfo(
            package_version=__version__,
            protocol_version=p.PROTOCOL_VERSION,
            device=known.device if known else "unavailable" if device.problem else "starting",
            device_name=known.name if known else device.problem.message if device.problem else "",
            memory_mb=known.memory_mb if known else None,
            memory_free_mb=known.memory_free_mb if known else None,
            stages=tuple(stages.RUNNERS),
            presets=tuple(PRESETS),
            weights=self._weights,
            pid=os.getpid(),
            started=self.started,
            queued=self.store.count("queued"),
            running=self.store.count("running") + self.store.count("cancelling"),
            local=owner == self._local,
        )

    def close(self) -> None:
        """End the workers and close everything; running jobs go on at the next start."""
        self.pool.close()
        self._gate.close()
        self.store.close()
        self._context.destroy(linger=0)


def _user_of(frame: zmq.Frame) -> str | None:
    """Return the public key that the peer of a frame proved to have."""
    try:
        return str(frame.get("User-Id")) or None
    except zmq.ZMQError:
        return None


_UNKNOWN = p.ErrorInfo("key-refused", "this key is not authorised (any more)", "Ask the owner of the backend for a new one")


def _refusal(known: bool, routing_id: bytes) -> p.ErrorInfo | None:
    """Return why a message is not even read, None if it is."""
    if not known:
        return _UNKNOWN
    if len(routing_id) != 5 or routing_id[0] != 0:  # libzmq did not make it: who chooses one could get what is meant for another
        return p.ErrorInfo("protocol-error", "a client must not choose its routing id", "Leave ZMQ_ROUTING_ID alone")
    return None
