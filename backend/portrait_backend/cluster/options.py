"""What a user says about the cluster, and the errors of a cluster that isn't what it should be."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field

from portrait_shared.errors import PortraitDiffusionError

ADDRESS = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")


@dataclass(frozen=True)
class RayOptions:
    """Which Ray cluster, and what one head takes of it.

    address: HOST:PORT of the head node; cpus, gpus: of one head, None for what fits the cluster (see `link.share`); token: of a cluster
    that was started for us, None: Ray finds the user's own.
    """

    address: str
    cpus: float | None = None
    gpus: float | None = None
    token: str | None = field(default=None, repr=False)


def check_ray() -> None:
    """Raise PortraitDiffusionError ``ray-missing`` where Ray isn't installed."""
    if importlib.util.find_spec("ray") is None:
        raise PortraitDiffusionError("ray-missing", "--executor ray needs the package ray", 'pip install "portrait-diffusion[cluster]"')


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of an address; raises PortraitDiffusionError ``ray-address-invalid``."""
    match = ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise PortraitDiffusionError(
            "ray-address-invalid",
            f"--ray-address {address} is no address of a Ray head node",
            "Use HOST:PORT as `ray start --head` prints it; ray:// addresses are for clients outside the cluster and can't be used",
        )
    return match[1].strip("[]"), int(match[2])


def unreachable(address: str, why: str) -> PortraitDiffusionError:
    """Return the error of a cluster that doesn't answer as one should."""
    hint = "See that its head node runs, and that this machine is one of its nodes (ray start --address=HOST:PORT --num-cpus=0)"
    return PortraitDiffusionError("ray-unreachable", f"can't join the Ray cluster at {address} ({why})", hint, retryable=True)


def mismatched(what: str) -> PortraitDiffusionError:
    """Return the error of a cluster that has other versions."""
    return PortraitDiffusionError("ray-mismatched", what, "Install the same versions of Python, ray and portrait-diffusion on every node")
