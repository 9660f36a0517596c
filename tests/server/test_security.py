"""Nobody without an authorised key gets anything, nobody reads along, and no message harms the server."""

from __future__ import annotations

import random
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from portrait_backend.cli import main
from portrait_backend.server.keys import KeyFolder, KeyPair
from portrait_backend.server.serve import check_bind, is_loopback
from portrait_shared import protocol as p
from portrait_shared.channel import Channel
from portrait_shared.client import Client
from portrait_shared.connection import Connection
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings
from tests.server.fake_engine import photo
from tests.server.harness import Server, wait_for

DRAFT = Settings(preset="draft")


class Eavesdropper:
    """A TCP proxy that keeps every byte that goes through it."""

    def __init__(self, endpoint: str) -> None:
        host, port = re.fullmatch(r"tcp://([\d.]+):(\d+)", endpoint).groups()  # type: ignore[union-attr]
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = bytearray()
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.heard += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._sockets:
            end.close()


@contextmanager
def raw_socket(connection: Connection | None, endpoint: str, **options: object) -> Iterator[zmq.Socket[bytes]]:
    """Yield a DEALER with the keys of a connection, or with no security at all."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as made:
        made.linger = 0
        if connection is not None:
            made.curve_serverkey, made.curve_publickey, made.curve_secretkey = (
                key.encode() for key in (connection.server_key, connection.client_public_key, connection.client_secret_key)
            )
        for name, value in options.items():
            setattr(made, name, value)
        made.connect(endpoint)
        yield made


def hello() -> list[bytes]:
    return p.serialise(p.Hello("test", "", request="1"))


def answers(made: zmq.Socket[bytes], seconds: float) -> list[list[bytes]]:
    found = []
    end = time.monotonic() + seconds
    while made.poll(max(0, round(1000 * (end - time.monotonic())))):
        found.append(made.recv_multipart())
    return found


def test_an_eavesdropper_sees_no_plain_text(server: Server, tmp_path: Path) -> None:
    ear = Eavesdropper(server.connection().endpoint)
    client = server.client(replace(server.connection(), endpoint=ear.endpoint))
    data = photo(secret="the-face-of-somebody " * 50, preview="what-she-looks-like " * 50, size=100_000, pause=0.3)
    job = client.submit(data, Settings(preset="draft", seed=123456789), name="Her Name")
    assert server.wait(client, job.id).state == "completed"
    client.result(job.id, tmp_path / "out")
    with pytest.raises(PortraitDiffusionError):
        client.job("not-a-job")
    client.close()
    heard = bytes(ear.heard)
    ear.close()
    assert b"CURVE" in heard, "the ear works: the greeting is not secret"
    assert len(heard) > 100_000 + len(data)
    result = (tmp_path / "out/head.glb").read_bytes()
    secrets = [data[:30], b"the-face-of", b"what-she-looks", b"Her Name", b"123456789", b"draft", b"seed", b"job.submit", b"hello", b"PD1"]
    secrets += [b"worker", b"completed", b"head.glb", result[:32], job.id.encode(), server.connection().client_secret_key.encode()]
    for secret in secrets:
        assert secret not in heard, secret


def test_without_a_key_nothing_comes_back(server: Server) -> None:
    endpoint = server.connection().endpoint
    for options in ({}, {"plain_username": b"admin", "plain_password": b"admin"}):
        with raw_socket(None, endpoint, **options) as made:
            made.send_multipart(hello())
            assert answers(made, 1.5) == []
    with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2]))) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 1000)
        plain.settimeout(3)
        heard = b""
        with suppress(OSError):
            while part := plain.recv(4096):
                heard += part
    assert b"PD1" not in heard and len(heard) <= 64, "at most the greeting of ZeroMQ"
    assert server.client().info.pid


def test_with_an_unknown_key_nothing_comes_back(server: Server) -> None:
    with raw_socket(server.connection(KeyPair.new()), server.connection().endpoint) as made:
        made.send_multipart(hello())
        assert answers(made, 1.5) == []
    started = time.monotonic()
    with pytest.raises(PortraitDiffusionError) as caught:
        server.client(server.connection(KeyPair.new()))
    assert caught.value.code == "key-refused" and time.monotonic() - started < 3, "the client learns it at once"
    assert "refused a client from 127.0.0.1" in server.log


def test_a_key_that_is_refused_before_anything_is_sent(server: Server) -> None:
    with Channel(server.connection(KeyPair.new())) as channel:
        wait_for(lambda: "refused a client from 127.0.0.1" in server.log, "the refusal")
        with pytest.raises(PortraitDiffusionError) as caught:
            for _ in range(400):  # on a busy machine the refusal may come before the first message
                channel.send(p.Hello("test", "", request="1"))
                time.sleep(0.01)
    assert caught.value.code == "key-refused"


def test_a_false_server_is_not_spoken_to(server: Server) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        Client.connect(server.connection(server_key=KeyPair.new().public), timeout=1.5)
    assert caught.value.code == "backend-unreachable" and "public key" in caught.value.hint


def test_two_clients_see_only_their_own_jobs(server: Server, tmp_path: Path) -> None:
    anna, bert = server.client(), server.client(server.authorise("bert"))
    hers = anna.submit(photo(steps=30, pause=0.05, preview="a"), DRAFT, name="hers")
    his = bert.submit(photo(preview="b"), DRAFT, name="his")
    assert [job.id for job in anna.jobs()] == [hers.id] and [job.id for job in bert.jobs()] == [his.id]
    for attempt in (
        lambda: bert.job(hers.id),
        lambda: bert.cancel(hers.id),
        lambda: bert.resume(hers.id),
        lambda: bert.delete(hers.id),
        lambda: bert.retexture(hers.id, DRAFT),
        lambda: bert.submit(None, DRAFT, parent=hers.id),
        lambda: bert.result(hers.id, tmp_path / "out"),
        lambda: list(bert.exchange([p.JobResult(hers.id, "head.glb", 0, 10)], p.ResultChunk)),
    ):
        with pytest.raises(PortraitDiffusionError) as caught:
            attempt()
        assert caught.value.code == "job-not-found"
    with pytest.raises(PortraitDiffusionError) as caught:
        bert.submit(photo(), DRAFT, id=hers.id)
    assert caught.value.code == "job-id-taken"
    events: dict[str, set[str]] = {"anna": set(), "bert": set()}
    while not all(client.job(job.id).done for client, job in ((anna, hers), (bert, his))):
        for name, client in (("anna", anna), ("bert", bert)):
            events[name] |= {e.job if isinstance(e, p.JobProgress) else e.job.id for e in client.poll(0.1)}
    assert events == {"anna": {hers.id}, "bert": {his.id}}
    with pytest.raises(PortraitDiffusionError) as caught:
        bert.result(hers.id, tmp_path / "out")
    assert caught.value.code == "job-not-found" and not (tmp_path / "out").exists()
    anna.result(hers.id, tmp_path / "out")


def test_a_revoked_client_is_out_at_once(server: Server) -> None:
    connection = server.authorise("bert")
    client = server.client(connection)
    job = client.submit(photo(steps=200, pause=0.05), DRAFT)
    KeyFolder(server.data / "keys").revoke("bert")
    with pytest.raises(PortraitDiffusionError) as caught:
        client.job(job.id)
    assert caught.value.code == "key-refused"
    with pytest.raises(PortraitDiffusionError) as caught:
        server.client(connection)
    assert caught.value.code == "key-refused"


def test_only_the_local_client_may_stop_the_server(server: Server) -> None:
    bert = server.client(server.authorise("bert"))
    assert not bert.info.local
    with pytest.raises(PortraitDiffusionError) as caught:
        bert.shutdown()
    assert caught.value.code == "not-allowed" and bert.status().pid
    server.client().shutdown()
    assert server.process is not None
    server.process.wait(15)


def test_another_protocol_version_is_told_apart(server: Server) -> None:
    with raw_socket(server.connection(), server.connection().endpoint) as made:
        made.send_multipart(p.serialise(p.Hello("test", "9.9", 99, request="7")))
        (frames,) = answers(made, 1.0)
    reply = p.deserialise(frames)
    assert isinstance(reply, p.ErrorReply) and reply.request == "7" and reply.error.code == "protocol-mismatch"
    assert "99" in reply.error.message and "9.9" in reply.error.message


def test_a_client_that_chooses_its_routing_id_is_refused(server: Server) -> None:
    connection = server.connection()
    with raw_socket(connection, connection.endpoint, routing_id=b"victim") as made:
        made.send_multipart(hello())
        (frames,) = answers(made, 1.0)
    reply = p.deserialise(frames)
    assert isinstance(reply, p.ErrorReply) and "routing id" in reply.error.message


def test_wild_messages_get_an_error_and_harm_nothing(server: Server) -> None:
    rng = random.Random(1)
    connection = server.connection()
    good = p.serialise(p.JobSubmit(p.new_id(), {}, b"photo", request="9"))
    with raw_socket(connection, connection.endpoint) as made:
        sent = 0
        for _ in range(300):
            frames = list(good)
            for _ in range(rng.randint(1, 3)):
                frames[rng.randrange(len(frames))] = rng.randbytes(rng.randint(0, 200))
            made.send_multipart(frames)
            sent += 1
        for message in (p.Pong(), p.JobReply(p.JobInfo("1", "", "queued", 0.0)), p.Done()):
            made.send_multipart(p.serialise(message))
            sent += 1
        replies = [p.deserialise(frames) for frames in answers(made, 2.0)]
    assert len(replies) == sent and all(isinstance(reply, p.ErrorReply) for reply in replies)
    client = server.client()
    assert client.jobs() == [] and server.wait(client, client.submit(photo(), DRAFT).id).state == "completed"
    assert "Traceback" not in server.log


def test_an_oversized_frame_ends_the_connection_not_the_server(server: Server) -> None:
    connection = server.connection()
    with raw_socket(connection, connection.endpoint) as made:
        made.send_multipart([b"PD1", b"{}", b"{}", bytes(p.MAX_MESSAGE_BYTES + 1)])
        assert answers(made, 2.0) == []
    assert server.client().jobs() == []


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("[::]", False),
        ("10.0.0.5", False),
        ("*", False),
        ("eth0", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_what_counts_as_this_machine(tmp_path: Path, host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    keys = KeyFolder(tmp_path)
    bind = f"tcp://{host}:*"
    if loopback:
        check_bind(bind, keys)
    else:
        with pytest.raises(PortraitDiffusionError) as caught:
            check_bind(bind, keys)
        assert caught.value.code == "bind-refused"
        keys.create("somebody")
        check_bind(bind, keys)
        keys.revoke("somebody")
        with pytest.raises(PortraitDiffusionError):
            check_bind(bind, keys)


@pytest.mark.parametrize("bind", ["", "127.0.0.1:5", "ipc:///tmp/x", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "tcp://a b:5"])
def test_what_is_no_address(tmp_path: Path, bind: str) -> None:
    with pytest.raises(PortraitDiffusionError) as caught:
        check_bind(bind, KeyFolder(tmp_path))
    assert caught.value.code == "bind-invalid"


def test_keys_commands_and_a_server_for_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, file = tmp_path / "data", tmp_path / "bert.json"
    port = _free_port()
    refused = subprocess.run(
        [sys.executable, "-m", "portrait_backend", "serve", "--data", str(data), "--bind", f"tcp://0.0.0.0:{port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2 and refused.stderr.startswith("error[bind-refused]: ")
    create = ["keys", "create", "bert", "--endpoint", f"tcp://127.0.0.1:{port}", "-o", str(file), "--data", str(data)]
    assert main(create) == 0 and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert main(create) == 2 and "output-not-empty" in capsys.readouterr().err
    assert main([*create[:6], str(tmp_path / "other.json"), *create[7:]]) == 2 and "key-exists" in capsys.readouterr().err
    bad = ["keys", "create", "carl", "--endpoint", "carl:5", "-o", str(tmp_path / "carl.json"), "--data", str(data)]
    assert main(bad) == 2 and "key-not-written" in capsys.readouterr().err
    assert main(["keys", "list", "--data", str(data)]) == 0 and capsys.readouterr().out.split()[0] == "bert"
    for name in ("../server", "nobody"):
        assert main(["keys", "revoke", name, "--data", str(data)]) == 2 and "key-not-found" in capsys.readouterr().err
    assert main(["keys", "create", "../x", *create[3:6], str(tmp_path / "x.json"), *create[7:]]) == 2
    with Server(data).start(f"tcp://0.0.0.0:{port}") as server:
        bert = Client.connect(file)
        server.clients.append(bert)
        assert not bert.info.local and server.client().info.local
        assert main(["keys", "revoke", "bert", "--data", str(data)]) == 0
        with pytest.raises(PortraitDiffusionError) as caught:
            bert.status()
        assert caught.value.code == "key-refused"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def test_keys_and_data_are_private(server: Server) -> None:
    for path in (server.connection_file, server.data / "keys/server.json", server.data / "keys/local.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    (server.data / "keys/server.json").chmod(0o644)
    with pytest.raises(PortraitDiffusionError) as caught:
        KeyFolder(server.data / "keys").server()
    assert caught.value.code == "connection-exposed"


def test_the_front_end_loads_nothing_heavy() -> None:
    code = (
        "import sys, portrait_backend.server.serve; from portrait_backend.cli import main; "
        "heavy = {'torch', 'numpy', 'PIL', 'mediapipe', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_workers_socket_is_closed_to_others(server: Server) -> None:
    """Another process of this machine that finds the port between front end and worker learns nothing there."""
    wait_for(lambda: server.client().status().device != "starting", "the worker")
    pid = server.process.pid  # type: ignore[union-attr]
    ports = _listening_ports(pid) - {int(server.connection().endpoint.rpartition(":")[2])}
    assert ports, "the worker's port"
    for port in ports:
        for keys in (None, server.connection(), server.connection(KeyPair.new())):
            with raw_socket(keys, f"tcp://127.0.0.1:{port}") as made:
                made.send_multipart(hello())
                assert answers(made, 0.5) == []


def _listening_ports(pid: int) -> set[int]:
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
        except OSError:
            continue
        if found:
            inodes.add(found[1])
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and row[9] in inodes}
