"""What is pushed to whom: progress waits for clients that don't read, the newest wins; states are always sent."""

from __future__ import annotations

from typing import Any

import pytest
import zmq

from portrait_backend.server.peers import CREDIT, FORGET_SECONDS, Peers
from portrait_shared import protocol as p

A, B = b"\0aaaa", b"\0bbbb"


class Wire:
    """Collects what is sent, or raises what a socket would."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, p.Message]] = []
        self.errors: dict[bytes, int] = {}
        self.now = 0.0

    def send(self, frames: list[bytes]) -> None:
        routing_id, *rest = frames
        if routing_id in self.errors:
            number = self.errors[routing_id]
            raise zmq.Again if number == zmq.EAGAIN else zmq.ZMQError(number)
        self.sent.append((routing_id, p.deserialise(rest)))

    def to(self, routing_id: bytes) -> list[Any]:
        return [message for peer, message in self.sent if peer == routing_id]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def peers(wire: Wire) -> Peers:
    made = Peers(wire.send, lambda: wire.now)
    made.hear(A, "key a")
    made.hear(B, "key b")
    return made


def progress(sequence: int, preview: bytes | None = None, job: str = "1") -> p.JobProgress:
    return p.JobProgress(job, sequence, "prior", 1, 2, preview=preview)


def state(job: str = "1") -> p.JobStateChanged:
    return p.JobStateChanged(p.JobInfo(job, "name", "running", 0.0))


def test_only_the_owner_hears_of_a_job(wire: Wire, peers: Peers) -> None:
    peers.push("key a", state())
    assert len(wire.to(A)) == 1 and wire.to(B) == []


def test_progress_waits_and_the_newest_wins(wire: Wire, peers: Peers) -> None:
    for sequence in range(50):
        peers.push("key a", progress(sequence, b"old" if sequence == CREDIT + 3 else b"new" if sequence == CREDIT + 5 else None))
        peers.push("key a", progress(sequence, job="2"))
    assert len(wire.to(A)) == CREDIT
    peers.push("key a", state())
    assert wire.to(A)[-1] == state(), "a state does not wait"
    peers.hear(A, "key a")
    assert wire.to(A)[-2:] == [progress(49, b"new"), progress(49, job="2")], "the last preview stays with the last report"
    assert len(wire.to(A)) == CREDIT + 3


def test_a_client_that_left_is_forgotten(wire: Wire, peers: Peers) -> None:
    wire.errors[A] = zmq.EHOSTUNREACH
    peers.push("key a", state())
    assert len(peers) == 1


def test_a_full_queue_drops_the_message_not_the_client(wire: Wire, peers: Peers) -> None:
    wire.errors[A] = zmq.EAGAIN
    peers.push("key a", state())
    assert len(peers) == 2 and wire.to(A) == []


def test_silent_clients_are_forgotten(wire: Wire, peers: Peers) -> None:
    wire.now = FORGET_SECONDS - 1
    peers.hear(B, "key b")
    wire.now = FORGET_SECONDS + 1
    peers.forget_silent()
    assert len(peers) == 1
    peers.push("key b", state())
    assert len(wire.to(B)) == 1


def test_a_routing_id_with_another_key_inherits_nothing(wire: Wire, peers: Peers) -> None:
    for sequence in range(CREDIT + 1):
        peers.push("key a", progress(sequence))
    peers.hear(A, "key b")
    assert len(wire.to(A)) == CREDIT, "what waited for the other key is gone"
