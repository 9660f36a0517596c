"""`portrait-diffusion serve`: keep a backend running that the Blender extension and other clients speak with."""

from __future__ import annotations

import math
import os
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import typer

from portrait_backend.cli.console import Debug, Json, quieten

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
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Serve until Ctrl-C. Clients find the address and the keys in the connection file; jobs survive a restart."""
    quieten(debug)
    from portrait_backend.server.jobs import Quota
    from portrait_backend.server.serve import ServeOptions, serve

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
        devices=devices(device),
        parent=parent_pid,
        idle_minutes=math.inf if idle_exit is None else idle_exit,
        quota=Quota(max_queued, math.inf if max_gigabytes is None else 1e9 * max_gigabytes),
        keep_days=math.inf if keep_days is None else keep_days,
        log_format=log_format,
    )
    serve(options, ready)


def devices(text: str) -> tuple[str, ...]:
    """Return the devices that --device names; raises a usage error."""
    import re

    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise typer.BadParameter(f"--device {text}: use auto, cpu, cuda or cuda:NUMBER")
    return names
