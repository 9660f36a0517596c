"""The options that say where heads are computed, `serve` and `batch` alike: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from portrait_backend.cluster.options import RayOptions

PANEL = "Where to compute"
Where = Literal["local", "ray"]
ExecutorOption = Annotated[
    Where, typer.Option("--executor", help="local: processes of this machine; ray: nodes of a Ray cluster.", rich_help_panel=PANEL)
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The cluster's head node.",
        show_default="a cluster on this machine",
        rich_help_panel=PANEL,
    ),
]
CpusOption = Annotated[
    float | None,
    typer.Option("--ray-cpus", metavar="N", min=0.1, help="CPUs of a node for each head.", show_default="up to 4", rich_help_panel=PANEL),
]
GpusOption = Annotated[
    float | None,
    typer.Option(
        "--ray-gpus", metavar="N", min=0, help="GPUs of a node for each head.", show_default="1 if it has any", rich_help_panel=PANEL
    ),
]


@dataclass(frozen=True)
class RayCluster:
    """A cluster that is there; room: heads that it can make at the same time."""

    options: RayOptions
    room: int


def check_local(executor: Where, **given: object) -> None:
    """Raise a usage error if options of a cluster are given without one."""
    for name, value in given.items():
        if executor == "local" and value is not None:
            raise typer.BadParameter(f"--{name.replace('_', '-')} is for --executor ray")


@contextmanager
def ray_cluster(address: str | None, cpus: float | None, gpus: float | None, device: str) -> Iterator[RayCluster]:
    """Yield the cluster at an address, or a local one that ends with the block.

    Raises PortraitDiffusionError ray-missing, ray-address-invalid, ray-unreachable, ray-mismatched, ray-no-room.
    """
    from portrait_backend.cluster import link
    from portrait_backend.cluster.options import RayOptions

    if address is None:
        with link.local_cluster() as started:
            yield _checked(replace(started, cpus=cpus, gpus=gpus), device)
        return
    yield _checked(RayOptions(address, cpus, gpus), device)


def _checked(options: RayOptions, device: str) -> RayCluster:
    from portrait_backend.cluster import link

    found = link.probe(options)
    link.check_share(options, found, device)
    return RayCluster(options, link.room(options, found, device))
