"""`portrait-diffusion serve`: keep a backend running that the Blender extension and other clients speak with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from portrait_backend.cli.console import Debug, Json, quieten
from portrait_backend.cli.executor import PANEL, AddressOption, CpusOption, ExecutorOption, GpusOption, check_local, ray_cluster

if TYPE_CHECKING:
    from portrait_backend.server.executor import Executor

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder of jobs and keys.", show_default="the user's folder")
]


def data_folder(given: Path | None) -> Path:
    """Return the server's data folder: the one given, or the user's."""
    import platformdirs

    return given or platformdirs.user_data_path("portrait-diffusion", appauthor=False) / "server"


def serve(
    data: DataOption = None,
    connection_file: Annotated[
        Path | None, typer.Option("--connection-file", metavar="FILE", help="Written once it listens.", show_default="DIR/connection.json")
    ] = None,
    bind: Annotated[str, typer.Option("--bind", help="Where to listen; off the loopback only with authorised keys.")] = "tcp://127.0.0.1:*",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or several: cuda:0,cuda:1.")] = "auto",
    parent_pid: Annotated[int | None, typer.Option("--parent-pid", metavar="PID", help="Leave when this process is gone.")] = None,
    idle_exit: Annotated[float | None, typer.Option("--idle-exit", metavar="MIN", min=0, help="Leave after so long unused.")] = None,
    keep_days: Annotated[
        float | None, typer.Option("--keep-days", metavar="DAYS", min=0, help="Remove jobs, photos and all, so long after their end.")
    ] = None,
    max_queued: Annotated[int, typer.Option("--max-queued", metavar="N", min=1, help="Jobs that a client may have waiting.")] = 1000,
    max_gigabytes: Annotated[
        float | None, typer.Option("--max-gigabytes", metavar="GB", min=0, help="What a client's jobs may take in the data folder.")
    ] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option("--log-format", help="json: one object per line.")] = "text",
    executor: ExecutorOption = "local",
    ray_address: AddressOption = None,
    ray_jobs: Annotated[
        int | None,
        typer.Option(
            "--ray-jobs",
            metavar="N",
            min=1,
            max=256,
            help="Heads made at the same time.",
            show_default="all it has room for",
            rich_help_panel=PANEL,
        ),
    ] = None,
    ray_cpus: CpusOption = None,
    ray_gpus: GpusOption = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", metavar="N", min=0, max=65535, help="Answer Prometheus there (0: any port).")
    ] = None,
    metrics_address: Annotated[
        str, typer.Option("--metrics-address", help="Of --metrics-port; whoever reaches it may read the page.")
    ] = "127.0.0.1",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve until Ctrl-C. Clients find the address and the keys in the connection file; jobs survive a restart."""
    quieten(debug)
    from portrait_backend.server.jobs import Quota
    from portrait_backend.server.metrics import MetricsOptions
    from portrait_backend.server.serve import ServeOptions, serve

    check_local(executor, ray_address=ray_address, ray_jobs=ray_jobs, ray_cpus=ray_cpus, ray_gpus=ray_gpus)

    def ready(endpoint: str, path: Path) -> None:
        if json:
            facts = {"endpoint": endpoint, "connection_file": str(path), "data": str(options.data), "pid": os.getpid()}
            typer.echo(dumps(facts))  # one line: more may follow, an error for one
        else:
            typer.echo(f"listening on {endpoint}, connection file {path}")

    options = ServeOptions(
        data=data_folder(data),
        connection_file=connection_file,
        bind=bind,
        parent=parent_pid,
        idle_minutes=math.inf if idle_exit is None else idle_exit,
        quota=Quota(max_queued, math.inf if max_gigabytes is None else 1e9 * max_gigabytes),
        keep_days=math.inf if keep_days is None else keep_days,
        log_format=log_format,
        metrics=None if metrics_port is None else MetricsOptions(metrics_port, metrics_address),
    )
    with _executor(executor, devices(device), ray_address, ray_jobs, ray_cpus, ray_gpus) as made:
        options = replace(options, executor=made)
        serve(options, ready)


@contextmanager
def _executor(
    kind: str, names: tuple[str, ...], address: str | None, jobs: int | None, cpus: float | None, gpus: float | None
) -> Iterator[Executor]:
    """Yield what computes, as the options say."""
    from portrait_backend.server.executor import Executor

    if kind == "local":
        yield Executor(names)
        return
    if len(names) > 1 or ":" in names[0]:
        raise typer.BadParameter(f"--device {','.join(names)}: with --executor ray the cluster chooses the GPU; use auto, cpu or cuda")
    from portrait_backend.cluster.engine import ray_executor

    with ray_cluster(address, cpus, gpus, names[0]) as cluster:
        yield ray_executor(cluster.options, jobs or cluster.room, names[0])


def devices(text: str) -> tuple[str, ...]:
    """Return the devices that --device names; raises a usage error."""
    import re

    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise typer.BadParameter(f"--device {text}: use auto, cpu, cuda or cuda:NUMBER")
    return names
