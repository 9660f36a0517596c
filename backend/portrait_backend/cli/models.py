"""`portrait-diffusion models`: which weights there are, and download, check, convert or remove them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from portrait_backend.cli.console import USER, Debug, Json, print_json
from portrait_backend.cli.models_progress import JsonProgress, progress

if TYPE_CHECKING:
    from portrait_backend.models.catalogue import Model

HELP = "Weights for full scale: list, download, verify, convert, remove. Nothing of this is needed at starter scale."
app = typer.Typer(help=HELP, no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A model of the list.", show_default=False)]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="DIR", help="Folder of the models.", show_default="$PORTRAIT_DIFFUSION_MODELS or the user's folder"),
]


@app.command("list")
def list_models(folder: Folder = None, json: Json = False, debug: Debug = False) -> None:
    """List the shipped weights and those that can be downloaded, with size, licence and what is there."""
    from portrait_backend.models.catalogue import CATALOGUE
    from portrait_backend.models.inventory import starter_weights
    from portrait_backend.models.listing import facts
    from portrait_backend.models.store import models_folder

    where = models_folder(folder)
    shipped: list[dict[str, Any]] = [{"name": w.name, "size": w.size, "sha256": w.sha256, "state": w.state} for w in starter_weights()]
    models = [facts(model, where) for model in CATALOGUE]
    if json:
        print_json({"folder": str(where), "shipped": shipped, "models": models})
        return
    typer.echo("shipped with the program")
    for weight in shipped:
        typer.echo(f"  {weight['name']:<28} {_megabytes(weight['size'])}  {weight['state']}")
    typer.echo(f"for full scale, in {where}")
    for model in models:
        state = "converted" if model["converted"] else model["state"]
        typer.echo(f"  {model['name']:<12} {state:<10} {model['size_text']}: {model['title']}; {model['purpose']}")
        typer.echo(f"  {'':<12} {'':<10} licence: {model['licence']}; commercial use {model['commercial_use']}")


@app.command("download")
def download(
    name: Name,
    mirror: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Copy the files from this folder instead of the network.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the licence without being asked.")] = False,
    folder: Folder = None,
    json: Json = False,
    json_progress: JsonProgress = False,
    debug: Debug = False,
) -> None:
    """Show size and licence, ask, download and check. Run it again to go on after an interruption."""
    from portrait_backend.models import fetching
    from portrait_backend.models.catalogue import find_model
    from portrait_backend.models.listing import facts
    from portrait_backend.models.store import models_folder, state_of
    from portrait_shared.errors import PortraitDiffusionError

    model, where = find_model(name), models_folder(folder)
    if mirror is not None and not mirror.is_dir():
        raise PortraitDiffusionError("mirror-incomplete", f"{mirror} is not a folder", "Name the folder that holds the files")
    if state_of(model, where) != "installed":
        if mirror is None:
            fetching.refuse_manual(model)
        _show(model, where)
        if not yes:
            _ask(model, json)
    with progress(json, json_progress, model) as report:
        target = fetching.download(model, where, mirror, report)
    if json:
        print_json(facts(model, where))
        return
    typer.echo(f"{target}: {model.title}")
    if model.convert:
        typer.echo(f"convert it: portrait-diffusion models convert --as {model.convert}")


@app.command("verify")
def verify(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A model; default all that are installed.")] = None,
    folder: Folder = None,
    json: Json = False,
    json_progress: JsonProgress = False,
    debug: Debug = False,
) -> None:
    """Read every file and compare its sha256. Exit code 2 if one is altered or missing."""
    from portrait_backend.models import store
    from portrait_backend.models.catalogue import CATALOGUE, find_model

    where = store.models_folder(folder)
    chosen = [find_model(name)] if name else [m for m in CATALOGUE if store.state_of(m, where) in ("installed", "damaged")]
    results = {}
    for model in chosen:
        with progress(json, json_progress, model) as report:
            results[model.name] = store.verify(model, where, report)
    sound = all(check.state == "ok" for checks in results.values() for check in checks)
    if json:
        print_json({"folder": str(where), "ok": sound, "models": {n: [asdict(c) for c in checks] for n, checks in results.items()}})
    else:
        for found, checks in results.items():
            for check in checks:
                typer.echo(f"{check.state:<8} {found}/{check.path}  sha256 {check.sha256[:16] or '-'} ({check.against})")
        bad = [found for found, checks in results.items() if any(c.state != "ok" for c in checks)]
        hints = [f"portrait-diffusion models remove {n} && portrait-diffusion models download {n}" for n in bad]
        typer.echo("\n".join(hints) if hints else "everything is as it was published or installed" if results else "no model is installed")
    if not sound:
        raise typer.Exit(USER)


@app.command("convert")
def convert(
    kind: Annotated[str, typer.Option("--as", metavar="portrait4d|panohead|eg3d", help="What it holds.", show_default=False)],
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A .pkl, .pt, .pth or .bin checkpoint; default the downloaded one of that name."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The safetensors file to write; default where the prior looks for it."),
    ] = None,
    folder: Folder = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a pickled checkpoint into safetensors. Nothing in the pickle is ever executed."""
    from portrait_backend.models.conversion import convert_checkpoint
    from portrait_backend.models.converted import converted_path, downloaded_checkpoint

    if file is None:
        file = downloaded_checkpoint(kind, folder)
    if output is None:
        output = converted_path(kind, folder)
        output.parent.mkdir(parents=True, exist_ok=True)
    done = convert_checkpoint(file, kind, output)
    if json:
        print_json({"output": str(output), **asdict(done)})
    else:
        typer.echo(f"{output}: {done.tensors} tensors, {_megabytes(done.size)}, {done.network} of {file.name}")


@app.command("remove")
def remove(name: Name, folder: Folder = None, json: Json = False, debug: Debug = False) -> None:
    """Remove a model, and what an interrupted download left."""
    from portrait_backend.models import store
    from portrait_backend.models.catalogue import find_model

    freed = store.remove(find_model(name), store.models_folder(folder))
    if json:
        print_json({"removed": name, "freed": freed})
    else:
        typer.echo(f"{name} is removed, {_megabytes(freed)} are free again")


@app.command("path")
def path(name: Name, folder: Folder = None, json: Json = False, debug: Debug = False) -> None:
    """Print the folder of an installed model."""
    from portrait_backend.models import store

    found = store.model_path(name, store.models_folder(folder))
    if json:
        print_json({"name": name, "path": str(found)})
    else:
        typer.echo(str(found))


def _show(model: Model, folder: Path) -> None:
    """Print what one agrees to, on stderr: stdout is for the result."""
    known = sum(bool(file.sha256) for file in model.files)
    lines = [
        f"{model.name}: {model.title}, {model.size_text}, for {model.purpose}",
        f"from: {model.source.page}, into: {folder / model.name}",
        f"licence: {model.licence} ({model.licence_page})",
        f"commercial use: {model.commercial}" + (f"; {model.note}" if model.note else ""),
        f"sha256 known here beforehand: {known} of {len(model.files)} files",
    ]
    typer.echo("\n".join(lines), err=True)


def _ask(model: Model, json: bool) -> None:
    from portrait_shared.errors import PortraitDiffusionError

    refused = PortraitDiffusionError(
        "licence-not-accepted", f"the licence of {model.name} was not accepted", "Read it, then answer yes or use --yes"
    )
    if json or not sys.stdin.isatty() or not typer.confirm("Do you accept the licence and download it?", err=True):
        raise refused


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
