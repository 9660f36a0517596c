"""`portrait-diffusion generate`: a photo becomes a head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from portrait_backend.cli.console import Debug, Json, print_json, progress_report, quieten
from portrait_backend.cli.options import with_settings
from portrait_shared.settings import Settings


def generate(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="The portrait photo.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the result.", show_default=False)],
    settings: Settings,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a textured 3D head from one portrait photo.

    DIR gets head.glb, head.safetensors, views/*.png, a turntable and job.json. It appears when all is complete; an earlier
    result there is replaced.
    """
    quieten(debug)
    from portrait_backend import pipeline

    with progress_report(json) as report:
        result = pipeline.generate(photo, settings, on_progress=report, output=output)
    if json:
        print_json({"output": str(output), **result.record})
        return
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    triangles = f"{len(result.mesh.faces):,} triangles"
    typer.echo(f"{output / f'head.{settings.output.format}'}: {triangles}, {result.record['seconds']:.0f} s, seed {settings.seed}")


def command() -> Callable[..., Any]:
    """Return the command with one option for every setting."""
    return with_settings(generate)
