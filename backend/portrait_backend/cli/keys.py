"""`portrait-diffusion keys`: which clients on other machines may use this backend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from portrait_backend.cli.console import Json, print_json
from portrait_backend.cli.serve import DataOption, data_folder

app = typer.Typer(help="Say which clients on other machines may use this backend.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name for the client.", show_default=False)]


@app.command("create")
def create(
    name: Name,
    endpoint: Annotated[str, typer.Option("--endpoint", help="How the client reaches this backend: tcp://HOST:PORT.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The client's connection file.", show_default=False)],
    data: DataOption = None,
    json: Json = False,
) -> None:
    """Authorise a client and write its connection file; give it to nobody else."""
    from portrait_backend.server.keys import KeyFolder
    from portrait_shared.connection import Connection, write_connection
    from portrait_shared.errors import PortraitDiffusionError

    if output.exists():
        raise PortraitDiffusionError("output-not-empty", f"{output} exists already", "Choose another file with -o")
    folder = KeyFolder(data_folder(data) / "keys")
    pair = folder.create(name)
    try:
        write_connection(output, Connection(endpoint, folder.server().public, pair.public, pair.secret))
    except (OSError, ValueError) as error:
        folder.revoke(name)
        what = str(error) if isinstance(error, ValueError) else f"can't write {output} ({error.strerror})"
        raise PortraitDiffusionError("key-not-written", what, "Check --endpoint and -o") from error
    if json:
        print_json({"name": name, "public_key": pair.public, "connection_file": str(output)})
    else:
        typer.echo(f"{output}: connection file of {name}; copy it to that machine over a safe way and delete it here")


@app.command("list")
def list_keys(data: DataOption = None, json: Json = False) -> None:
    """List the authorised clients."""
    from portrait_backend.server.keys import KeyFolder

    clients = KeyFolder(data_folder(data) / "keys").authorised()
    if json:
        print_json([{"name": client.name, "public_key": client.public} for client in clients])
    else:
        typer.echo("\n".join(f"{client.name}  {client.public}" for client in clients) or "no client is authorised")


@app.command("revoke")
def revoke(name: Name, data: DataOption = None, json: Json = False) -> None:
    """Shut a client out, at once."""
    from portrait_backend.server.keys import KeyFolder

    KeyFolder(data_folder(data) / "keys").revoke(name)
    if json:
        print_json({"revoked": name})
    else:
        typer.echo(f"{name} is out")
