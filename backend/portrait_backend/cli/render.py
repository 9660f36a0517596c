"""`portrait-diffusion render`: pictures of a finished head from given cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from portrait_backend.cli.console import Debug, Json, print_json, progress_report, quieten


def render(
    job: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that generate has written.", show_default=False)],
    cameras: Annotated[Path, typer.Option("--cameras", metavar="FILE", help="OpenCV cameras (docs/cameras.md).", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR2", help="Folder for the pictures.", show_default=False)],
    passes: Annotated[str, typer.Option("--passes", help="Any of rgba, depth, normals, with commas between.")] = "rgba",
    upsample: Annotated[
        Literal["direct", "super_resolution"],
        typer.Option("--upsample", help="direct: every pixel from the field; super_resolution: a quarter's side, then psi_SR (quicker)."),
    ] = "direct",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where to compute.")] = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Render the radiance field of a finished head from given cameras."""
    quieten(debug)
    from portrait_backend.rendering import render_cameras

    chosen = [name.strip() for name in passes.split(",")]
    with progress_report(json) as report:
        record = render_cameras(job, cameras, output, chosen, device, on_progress=report, upsample=upsample)
    if json:
        print_json({"output": str(output), **record})
    else:
        typer.echo(f"{output}: {len(record['cameras'])} views ({', '.join(record['passes'])}), {record['seconds']:.1f} s")
