"""Join a Ray cluster, or start one of this machine alone.

A process that has joined belongs to the cluster until it ends, and may end with it. So only worker processes join; the server and the batch
themselves never load Ray.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from portrait_backend.cluster.options import RayOptions, check_ray, host_and_port, mismatched, unreachable
from portrait_backend.processes import cores, leave_with_parent
from portrait_shared.errors import PortraitDiffusionError

ANSWER_SECONDS = 5.0
"""A head node that doesn't accept a connection within that is not there."""
LOCAL_STORE_BYTES = 512 * 2**20
"""Ray's store of a cluster of this machine alone: a photo or a head at most, for each that is being made."""
END_SECONDS = 15.0
CPUS = 4
"""Of one head, on nodes that have so many."""
LOOPBACK = "127.0.0.1"
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
"""Ray takes the loopback for a node's address only where it knows of no other machines; otherwise it binds to all addresses. And it
makes its workers nicer than anything else, which on a busy machine is for ever."""
JOIN_SECONDS = 90.0
"""A cluster that was not joined by then has something in the way of its other ports; Ray itself tries for ever."""
GAVE_UP = 75
"""Exit code of a process that could not join in time."""


@dataclass(frozen=True)
class Facts:
    """What a cluster has: nodes, and cpus and gpus of all; node_cpus: of its largest node."""

    nodes: int
    cpus: float
    gpus: float
    node_cpus: float


def environment(options: RayOptions) -> dict[str, str]:
    """Return the environment variables of a process that joins; Ray reads them when it is imported."""
    found = {"RAY_USAGE_STATS_ENABLED": "0"}
    if host_and_port(options.address)[0] == LOOPBACK:
        found |= ON_LOOPBACK
    return found | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": options.token} if options.token else {})


def join(options: RayOptions) -> Any:
    """Join a cluster and return the module ray; raises PortraitDiffusionError ray-missing, -address-invalid, -unreachable, -mismatched."""
    check_ray()
    host, port = host_and_port(options.address)
    try:
        socket.create_connection((host, port), ANSWER_SECONDS).close()
    except OSError as error:
        raise unreachable(options.address, error.strerror or str(error)) from error
    os.environ.update(environment(options))
    import ray

    if ray.is_initialized():
        return ray
    limit = threading.Timer(JOIN_SECONDS, os._exit, (GAVE_UP,))
    limit.daemon = True
    limit.start()
    try:
        ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except Exception as error:  # Ray's own errors have many types, plain RuntimeError among them
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            raise mismatched(text[:400].rstrip(". ")) from error
        raise unreachable(options.address, f"{type(error).__name__}: {text[:300].rstrip('. ')}") from error
    finally:
        limit.cancel()
    return ray


def facts(ray: Any) -> Facts:
    """Return what the cluster has that was joined."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [node.get("CPU", 0.0) for node in resources]
    return Facts(len(resources), sum(cpus), sum(node.get("GPU", 0.0) for node in resources), max(cpus, default=0.0))


def share(options: RayOptions, found: Facts, device: str = "auto") -> tuple[float, float]:
    """Return how many cpus and gpus one head takes: what the user says, else one GPU where there are any, and up to four cores."""
    gpus = options.gpus if options.gpus is not None else float(found.gpus >= 1 and device != "cpu")
    cpus = options.cpus if options.cpus is not None else max(1.0, min(float(CPUS), found.node_cpus))
    return cpus, gpus


def check_share(options: RayOptions, found: Facts, device: str = "auto") -> None:
    """Raise PortraitDiffusionError ``ray-no-room`` where no node will ever have what the user says that one head takes."""
    cpus, gpus = share(options, found, device)
    if cpus > found.node_cpus or gpus > found.gpus:
        what = (
            f"one head takes {cpus:g} CPUs and {gpus:g} GPUs, the largest node has {found.node_cpus:g} CPUs, all have {found.gpus:g} GPUs"
        )
        raise PortraitDiffusionError("ray-no-room", what, "Lower --ray-cpus or --ray-gpus, or add nodes to the cluster")


def room(options: RayOptions, found: Facts, device: str = "auto") -> int:
    """Return how many heads a cluster can make at the same time, at least one: it may grow."""
    cpus, gpus = share(options, found, device)
    return max(1, int(min([total / part for total, part in ((found.cpus, cpus), (found.gpus, gpus)) if part] or [1])))


def probe(options: RayOptions) -> Facts:
    """Join a cluster in a process of its own, which leaves it again, and return what it has; raises what `join` does."""
    check_ray()
    host_and_port(options.address)
    found = _ask(options.address, _probe, options)
    assert isinstance(found, Facts)
    return found


def _probe(pipe: Connection, options: RayOptions) -> None:
    _child(pipe, lambda: facts(join(options)))


@contextmanager
def local_cluster(cpus: int | None = None, gpus: int | None = None) -> Iterator[RayOptions]:
    """Run a cluster of this machine alone, on its loopback, with a token of its own; it ends with this process, whatever way that goes.

    cpus, gpus: what it has; None: all. Raises PortraitDiffusionError ray-missing, ray-unreachable.
    """
    check_ray()
    token = secrets.token_hex(32)
    folder = tempfile.mkdtemp(prefix="pd-ray-", dir="/tmp" if os.name == "posix" else None)  # sockets lie in it: a long path is refused
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_hold, args=(theirs, token, folder, cpus or cores(), gpus), daemon=False, name="portrait-diffusion ray"
    )
    try:
        process.start()
        theirs.close()
        address = _received(ours, "this machine")
        yield RayOptions(str(address), token=token)
    finally:
        with suppress(OSError):
            ours.send(None)
        process.join(END_SECONDS)
        process.kill()
        process.join()
        ours.close()
        shutil.rmtree(folder, ignore_errors=True)


def _hold(pipe: Connection, token: str, folder: str, cpus: int, gpus: int | None) -> None:
    """Hold a cluster until the pipe says so; the target of its process."""

    def start() -> str:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(environment(RayOptions(f"{LOOPBACK}:1", token=token)))
        import ray

        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            object_store_memory=LOCAL_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        return str(ray.get_runtime_context().gcs_address)

    if _child(pipe, start):
        with suppress(EOFError):
            pipe.recv()
        import ray

        ray.shutdown()


def _child(pipe: Connection, answer: Callable[[], Any]) -> bool:
    """Send an answer, or the error instead, and tell whether it was none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    leave_with_parent()
    try:
        pipe.send(answer())
    except PortraitDiffusionError as error:
        pipe.send(error.as_dict())
        return False
    except Exception as error:  # noqa: BLE001 - it is told by the parent
        pipe.send(unreachable("this machine", f"{type(error).__name__}: {str(error)[:300]}").as_dict())
        return False
    return True


def _ask(address: str, target: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        return _received(ours, address)
    finally:
        process.join(END_SECONDS)
        process.kill()
        process.join()
        ours.close()


def _received(pipe: Connection, address: str) -> Any:
    """Return what a child answers; raises the error that it met."""
    try:
        answer = pipe.recv()
    except EOFError as error:
        raise unreachable(address, f"it was not joined within {JOIN_SECONDS:.0f} s") from error
    if isinstance(answer, dict):
        raise PortraitDiffusionError(answer["code"], answer["message"], answer["hint"], bool(answer.get("retryable")))
    return answer
