"""Who may enter: the ZAP handler (ZeroMQ RFC 27) that libzmq asks at every CURVE handshake of this context."""

from __future__ import annotations

import logging
from collections.abc import Callable

import zmq
from zmq.utils import z85

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
log = logging.getLogger(__name__)


class Gate:
    """Answers ZAP requests; one check per domain decides by the client's public key (Z85).

    It must exist before any socket of its context binds: without a handler libzmq lets every key in.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ENDPOINT)
        self._checks: dict[bytes, Callable[[str], bool]] = {}

    def add(self, domain: str, check: Callable[[str], bool]) -> None:
        """Let `check` decide about clients of sockets in a ZAP domain."""
        self._checks[domain.encode()] = check

    def remove(self, domain: str) -> None:
        """Let nobody else in through a domain."""
        self._checks.pop(domain.encode(), None)

    def answer(self) -> None:
        """Answer one waiting request."""
        frames = self.socket.recv_multipart()
        version, number, domain, address, _, mechanism, *credentials = [*frames, *[b""] * 6][: max(len(frames), 6)]
        user = self._user(version, domain, mechanism, credentials)
        if user is None:
            log.warning("refused a client from %s", address.decode("ascii", "replace"))
            self.socket.send_multipart([VERSION, number, b"400", b"no access", b"", b""])
        else:
            self.socket.send_multipart([VERSION, number, b"200", b"OK", user.encode(), b""])

    def _user(self, version: bytes, domain: bytes, mechanism: bytes, credentials: list[bytes]) -> str | None:
        if version != VERSION or mechanism != b"CURVE" or len(credentials) != 1 or len(credentials[0]) != 32:
            return None
        key = z85.encode(credentials[0]).decode("ascii")
        check = self._checks.get(domain)
        return key if check is not None and check(key) else None

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
