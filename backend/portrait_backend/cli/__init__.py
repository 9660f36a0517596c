"""The command line: `portrait-diffusion generate | batch | render | evaluate | serve | keys | jobs | doctor | models | train`.

Nothing heavy is imported before a command really runs: `--help` and typing errors answer at once.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from portrait_backend import __version__
from portrait_backend.cli import batch, console, doctor, evaluate, generate, jobs, keys, models, render, serve, train
from portrait_backend.files import disk_full, is_disk_full
from portrait_shared.errors import PortraitDiffusionError

COLLECTED_EVERY = (50_000, 20, 100)
"""gc's thresholds. By default it goes through the half million objects of torch, numba and the face tools five times while they are being
loaded, which find nothing: 0.4 s of a draft's 20."""
HELP = "One portrait photo in; a textured, full 360-degree 3D head out."


def build_app() -> typer.Typer:
    """Return the command-line application with all its commands."""
    app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.callback()(_root)
    app.command("generate")(generate.command())
    app.command("batch")(batch.command())
    app.command("render")(render.render)
    app.command("evaluate")(evaluate.command())
    app.command("serve")(serve.serve)
    app.add_typer(keys.app, name="keys")
    app.add_typer(jobs.app, name="jobs")
    app.command("doctor")(doctor.doctor)
    app.add_typer(models.app, name="models")
    app.add_typer(train.app, name="train")
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"portrait-diffusion {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 internal error, 2 the user can mend it, 130 cancelled."""
    gc.set_threshold(*COLLECTED_EVERY)
    given = list(sys.argv[1:] if arguments is None else arguments)
    report = console.ErrorReport(as_json="--json" in given, debug="--debug" in given)
    try:
        with console.terminable():
            code = build_app()(given or ["--help"], standalone_mode=False, prog_name="portrait-diffusion")
    except PortraitDiffusionError as error:
        return report.user_error(error)
    except typer.TyperException as error:
        return report.user_error(PortraitDiffusionError("usage", error.format_message().rstrip("."), "See portrait-diffusion --help"))
    except typer.Abort:
        return report.cancelled()
    except Exception as error:  # noqa: BLE001 - the outermost frame: everything unexpected becomes one line and a log file
        if is_disk_full(error):
            return report.user_error(disk_full(error))
        return report.internal_error(error)
    return report.cancelled() if code == console.CANCELLED else int(code or 0)
