"""`portrait-diffusion jobs`: what a backend on this machine holds for its clients, and how to get rid of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from portrait_backend.cli.console import Json, print_json
from portrait_backend.cli.serve import DataOption, data_folder

if TYPE_CHECKING:
    from portrait_backend.server.folders import DataFolder
    from portrait_backend.server.keys import KeyFolder
    from portrait_backend.server.store import JobStore, Record

app = typer.Typer(help="See and remove the jobs that this machine's backend keeps.", no_args_is_help=True)


@app.command("list")
def list_jobs(data: DataOption = None, json: Json = False) -> None:
    """List all jobs of all clients, oldest first."""
    with _opened(data_folder(data)) as (store, _, keys):
        rows = [_facts(record, keys) for record in store.all()]
    if json:
        print_json(rows)
    else:
        typer.echo("\n".join("  ".join(str(value) for value in row.values()) for row in rows) or "there are no jobs")


@app.command("purge")
def purge(
    older_than: Annotated[float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="Jobs that ended so long ago.")] = None,
    client: Annotated[str | None, typer.Option("--client", metavar="NAME", help="Jobs of this client, or of this public key.")] = None,
    revoked: Annotated[bool, typer.Option("--revoked", help="Jobs of clients that are not authorised any more.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All jobs that have ended.")] = False,
    data: DataOption = None,
    json: Json = False,
) -> None:
    """Remove ended jobs for good: photo, result and all that is known of them. A server may go on running meanwhile.

    What is named is narrowed down by each further option. Waiting and running jobs stay.
    """
    from portrait_backend.server import retention

    if older_than is None and client is None and not revoked and not everything:
        raise typer.BadParameter("say which jobs: --older-than, --client, --revoked or --all")
    with _opened(data_folder(data)) as (store, folder, keys):
        owner = None if client is None else keys.key_of(client)

        def wanted(record: Record) -> bool:
            return (owner is None or record.owner == owner) and not (revoked and keys.name_of(record.owner))

        removed = retention.purge(store, folder, time.time() - (older_than or 0) * retention.DAY_SECONDS, wanted)
    if json:
        print_json({"removed": removed})
    else:
        typer.echo(f"{len(removed)} job{'' if len(removed) == 1 else 's'} removed")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[JobStore, DataFolder, KeyFolder]]:
    """Open a server's data folder; raises PortraitDiffusionError ``data-not-found`` if it is none, ``data-not-writable``."""
    import sqlite3

    from portrait_backend.server.folders import DataFolder
    from portrait_backend.server.keys import KeyFolder
    from portrait_backend.server.store import JobStore
    from portrait_shared.errors import PortraitDiffusionError

    if not (path / "jobs.sqlite").is_file():
        raise PortraitDiffusionError("data-not-found", f"{path} is no data folder of a backend", "Name the folder of serve with --data")
    try:
        folder = DataFolder(path)
        store = JobStore(folder.store)
        try:
            yield store, folder, KeyFolder(folder.keys)
        finally:
            store.close()
    except (OSError, sqlite3.OperationalError) as error:
        raise PortraitDiffusionError(
            "data-not-writable", f"can't write to {path} ({error})", "Free some space, or see who may write there"
        ) from error


def _facts(record: Record, keys: KeyFolder) -> dict[str, str]:
    info = record.info
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.created))
    return {"id": info.id, "state": info.state, "created": created, "client": keys.name_of(record.owner) or record.owner, "name": info.name}
