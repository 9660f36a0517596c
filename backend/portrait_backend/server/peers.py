"""The clients that are connected now, and what is pushed to them: progress may be dropped, the oldest first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import zmq

from portrait_shared.protocol import SILENCE_SECONDS, JobProgress, Message, serialise

CREDIT = 8
"""Progress messages that are sent to a client before it is heard again; what comes then waits, the newest of each job."""
FORGET_SECONDS = 3 * SILENCE_SECONDS


@dataclass
class Peer:
    """A connected client: its routing id, its key, when it was heard, how many messages it has not yet had time to read."""

    routing_id: bytes
    owner: str
    heard: float
    sent: int = 0
    waiting: dict[str, JobProgress] = field(default_factory=dict)


class Peers:
    """Who is there; `send` gets frames that start with a routing id."""

    def __init__(self, send: Callable[[list[bytes]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._peers: dict[bytes, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def hear(self, routing_id: bytes, owner: str) -> None:
        """Note that a client has been heard; it is ready for more."""
        peer = self._peers.get(routing_id)
        if peer is None or peer.owner != owner:
            self._peers[routing_id] = Peer(routing_id, owner, self._clock())
            return
        peer.heard, peer.sent = self._clock(), 0
        waiting, peer.waiting = peer.waiting, {}
        for message in waiting.values():
            self._push(peer, message)

    def push(self, owner: str, message: Message) -> None:
        """Send a message to every client with the key `owner`."""
        for peer in [peer for peer in self._peers.values() if peer.owner == owner]:
            self._push(peer, message)

    def answer(self, routing_id: bytes, message: Message) -> None:
        """Send a reply."""
        self._deliver(routing_id, message)

    def forget_silent(self) -> None:
        """Forget clients that have not been heard for long."""
        now = self._clock()
        self._peers = {key: peer for key, peer in self._peers.items() if now - peer.heard < FORGET_SECONDS}

    def _push(self, peer: Peer, message: Message) -> None:
        if isinstance(message, JobProgress):
            if peer.sent >= CREDIT:
                older = peer.waiting.get(message.job)
                preview = message.preview or (older.preview if older else None)
                peer.waiting[message.job] = replace(message, preview=preview)
                return
            peer.sent += 1
        self._deliver(peer.routing_id, message)

    def _deliver(self, routing_id: bytes, message: Message) -> None:
        try:
            self._send([routing_id, *serialise(message)])
        except zmq.Again:
            pass  # its queue is full: a state can be asked for again, a request is repeated
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._peers.pop(routing_id, None)
