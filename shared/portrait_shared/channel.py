"""One encrypted connection to a backend: messages in, messages out, heartbeats, and a verdict when the other side is gone.

A channel belongs to one thread. It owns its ZeroMQ context, so nothing else in the process can touch its sockets.
"""

from __future__ import annotations

import time
from types import TracebackType

import zmq
from zmq.utils.monitor import recv_monitor_message

from portrait_shared.connection import Connection
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.protocol import (
    HEARTBEAT_SECONDS,
    MAX_MESSAGE_BYTES,
    SILENCE_SECONDS,
    Message,
    Ping,
    Pong,
    ProtocolError,
    deserialise,
    new_id,
    request_of,
    serialise,
)

DISCONNECTED_SECONDS = 1.5
"""A connection that broke and did not come back for so long is lost; a backend that restarts on its old port is back sooner."""
SEND_SECONDS = 5.0
WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class Channel:
    """An encrypted DEALER socket with heartbeats."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.connected = False
        self._broken: float | None = None
        self._refused = False
        self._pinged: float | None = None
        self._heartbeat = time.monotonic() + HEARTBEAT_SECONDS
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 1000),
        ):
            self._socket.setsockopt(option, value)
        self._socket.curve_serverkey = connection.server_key.encode()
        self._socket.curve_publickey = connection.client_public_key.encode()
        self._socket.curve_secretkey = connection.client_secret_key.encode()
        self._monitor = self._socket.get_monitor_socket(WATCHED)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            self._socket.connect(connection.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise unreachable(connection, str(error)) from error

    def send(self, message: Message) -> None:
        """Send a message; raises PortraitDiffusionError ``backend-lost`` if none can be sent for a few seconds, ``key-refused``."""
        frames, end = serialise(message), time.monotonic() + SEND_SECONDS
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLOUT)
        poller.register(self._monitor, zmq.POLLIN)
        while True:
            try:
                self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
            except zmq.Again:
                pass
            else:
                return
            if self._monitor in dict(poller.poll(max(0, round(1000 * (end - time.monotonic()))))):
                self._watch()  # where the key was refused before anything was sent, nothing can be sent any more
            self._judge()
            if time.monotonic() >= end:
                raise lost("it takes no messages")

    def receive(self, timeout: float) -> Message | None:
        """Return the next message, None if none comes within `timeout` seconds.

        Answers to heartbeats and what this version doesn't understand are left out. Raises PortraitDiffusionError
        ``backend-lost``, ``key-refused``; ProtocolError for a reply that can't be read.
        """
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            self._beat(now)
            wake = min(deadline, self._heartbeat)
            ready = dict(self._poller.poll(max(0, round(1000 * (wake - now)))))
            if self._monitor in ready:
                self._watch()
            if self._socket in ready:
                frames = self._socket.recv_multipart()
                message = self._read(frames)
                if message is not None:
                    return message
                continue
            self._judge()
            if time.monotonic() >= deadline:
                return None

    def _read(self, frames: list[bytes]) -> Message | None:
        self._pinged = None  # whatever it was, the other side is there
        try:
            message = deserialise(frames)
        except ProtocolError:
            if request_of(frames):
                raise
            return None
        return None if isinstance(message, Pong) else message

    def _beat(self, now: float) -> None:
        if now < self._heartbeat:
            return
        self._heartbeat = now + HEARTBEAT_SECONDS
        try:
            self._socket.send_multipart(serialise(Ping(request=new_id())), zmq.NOBLOCK)
        except zmq.Again:
            return
        if self._pinged is None:
            self._pinged = now

    def _watch(self) -> None:
        event = recv_monitor_message(self._monitor)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected, self._broken, self._refused = True, None, False
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refused = True
        elif event == zmq.EVENT_DISCONNECTED and self.connected:
            self.connected, self._broken = False, time.monotonic()

    def _judge(self) -> None:
        now = time.monotonic()
        if self._refused:
            raise PortraitDiffusionError(
                "key-refused",
                f"the backend at {self.connection.endpoint} does not know this key",
                "Ask its owner to run portrait-diffusion keys create and use the file it writes",
            )
        if self._broken is not None and now - self._broken > DISCONNECTED_SECONDS:
            raise lost("the connection broke")
        if self._pinged is not None and now - self._pinged > SILENCE_SECONDS:
            raise lost(f"it has been silent for {now - self._pinged:.0f} s")

    def close(self) -> None:
        """Close the sockets; what was not sent yet is dropped."""
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._context.destroy(linger=0)

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def lost(what: str) -> PortraitDiffusionError:
    """Return the error for a backend that was there and is no longer."""
    return PortraitDiffusionError(
        "backend-lost", f"the backend is gone ({what})", "Start it again; its jobs go on where they were", retryable=True
    )


def unreachable(connection: Connection, what: str) -> PortraitDiffusionError:
    """Return the error for a backend that does not answer at all."""
    return PortraitDiffusionError(
        "backend-unreachable",
        f"no backend answers at {connection.endpoint} ({what})",
        "Start it with portrait-diffusion serve; if it runs, check the address, the firewall and its public key in the connection file",
        retryable=True,
    )
