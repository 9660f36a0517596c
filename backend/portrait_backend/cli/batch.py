"""`portrait-diffusion batch`: many photos become heads, in processes of their own, until all are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from portrait_backend.cli.console import Debug, Json, print_json, quieten
from portrait_backend.cli.executor import AddressOption, CpusOption, ExecutorOption, GpusOption, check_local, ray_cluster
from portrait_backend.cli.options import with_settings

if TYPE_CHECKING:
    from portrait_backend.batch.summary import Summary
    from portrait_backend.batch.worker import Engine

SOME_FAILED = 1
SHOWN_ROWS = 40
"""A longer table is left to summary.csv; what is missing is always shown."""


def batch(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the heads' folders.", show_default=False)],
    overrides: dict[str, Any],
    photos: Annotated[
        list[Path] | None, typer.Argument(metavar="PHOTOS...", help="Photos, or folders of photos.", show_default=False)
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", metavar="FILE", help="CSV or JSON Lines with settings of each photo (docs/batch.md).")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            max=256,
            help="Heads made at the same time.",
            show_default="1, or one per GPU; ray: all it has room for",
        ),
    ] = None,
    gpus: Annotated[str, typer.Option("--gpus", metavar="0,1,…", help="Numbers of the GPUs to spread the jobs over.")] = "",
    name: Annotated[
        str, typer.Option("--name", metavar="TEMPLATE", help="Name of a head's folder: {stem} {index} {sha} {parent} {preset} {seed}.")
    ] = "{stem}",
    redo: Annotated[bool, typer.Option("--redo", help="Make heads again that lie there finished.")] = False,
    executor: ExecutorOption = "local",
    ray_address: AddressOption = None,
    ray_cpus: CpusOption = None,
    ray_gpus: GpusOption = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make heads of many photos. The same command again goes on where it was: finished heads are skipped.

    DIR gets a folder for each photo (what generate writes), summary.json and summary.csv. One bad photo doesn't stop the others.
    Exit code 0: every head is there; 1: some failed, the summary says why; 2: nothing was started.
    """
    quieten(debug)
    from portrait_backend.batch.manifest import read_manifest
    from portrait_backend.batch.plan import make_plan
    from portrait_backend.batch.run import Interrupted, run_batch
    from portrait_backend.cli.batch_report import batch_report
    from portrait_shared.errors import PortraitDiffusionError

    numbers = _numbers(gpus)
    check_local(executor, ray_address=ray_address, ray_cpus=ray_cpus, ray_gpus=ray_gpus)
    if executor == "ray" and numbers:
        raise typer.BadParameter("--gpus is for --executor local; a cluster chooses by --ray-gpus")
    items = make_plan(photos or [], read_manifest(manifest) if manifest else [], overrides, output, name)
    try:
        making = _making(executor, ray_address, ray_cpus, ray_gpus, str(overrides.get("device", "auto")))
        with making as (engine, room), batch_report(len(items), json) as report:
            summary = run_batch(items, output, report, jobs or room or len(numbers) or 1, redo, engine, numbers)
    except Interrupted as interrupted:
        hint = f"The finished heads are in {output}; the same command goes on"
        raise PortraitDiffusionError("cancelled", f"cancelled, {interrupted.summary.sentence()}", hint, retryable=True) from interrupted
    if json:
        print_json({"output": str(output), **summary.as_dict()})
    else:
        _show(summary)
    if not summary.complete:
        raise typer.Exit(SOME_FAILED)


@contextmanager
def _making(kind: str, address: str | None, cpus: float | None, gpus: float | None, device: str) -> Iterator[tuple[Engine | None, int]]:
    """Yield what makes the heads (None: this machine) and how many it can make at the same time (0: it doesn't say)."""
    if kind == "local":
        yield None, 0
        return
    from portrait_backend.cluster.heads import RayHeads

    with ray_cluster(address, cpus, gpus, device) as cluster:
        yield RayHeads(cluster.options, device), cluster.room


def _numbers(text: str) -> list[int]:
    """Return the numbers that --gpus names; raises a usage error."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isascii() and part.isdigit() for part in parts) or len(set(parts)) != len(parts):
        raise typer.BadParameter(f"--gpus {text}: give numbers with commas between, none twice")
    return [int(part) for part in parts]


def _show(summary: Summary) -> None:
    """Print the table for people and the sentence under it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = summary.rows()
    if len(rows) > SHOWN_ROWS:
        rows = [row for row in rows if row["state"] not in ("completed", "skipped")]
    if rows:
        table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
        table.add_column("head", overflow="fold")
        table.add_column("state")
        table.add_column("seconds", justify="right")
        table.add_column("why", overflow="fold")
        for row in rows:
            table.add_row(_plain(row["name"]), row["state"], f"{row['seconds']:.0f}" if row["seconds"] else "", _plain(_why(row)))
        Console().print(table)
    typer.echo(f"{summary.sentence()}, {summary.seconds:.0f} s; {summary.output / 'summary.csv'}")


def _why(row: dict[str, Any]) -> str:
    error = row.get("error")
    return f"{error['message']}. {error['hint']}" if error else "; ".join(row["warnings"])


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # a name in square brackets is no markup


def command() -> Callable[..., Any]:
    """Return the command with one option for every setting."""
    return with_settings(batch)
