"""`portrait-diffusion evaluate`: a claim about quality as a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from portrait_backend.cli.console import Debug, Json, print_json, progress_report, quieten
from portrait_backend.cli.options import with_settings
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Settings


def evaluate(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="REPORT", help="Folder for the report.", show_default=False)],
    settings: Settings,
    jobs: Annotated[
        list[Path] | None, typer.Argument(metavar="[JOB_DIR]...", help="Folders that generate has written.", show_default=False)
    ] = None,
    photos: Annotated[
        Path | None, typer.Option("--photos", metavar="DIR", help="Photos to make heads of; with JOB_DIRs: where their photos are.")
    ] = None,
    ground_truth: Annotated[
        Path | None, typer.Option("--ground-truth", metavar="DATASET", help="Heads with known cameras (docs/evaluation.md).")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", metavar="NAME=PATH", help="Another tool's mesh or images; may be given several times.")
    ] = None,
    ablations: Annotated[bool, typer.Option("--ablations", help="Also the rows of the ablation study.")] = False,
    identities: Annotated[int, typer.Option("--identities", min=1, help="How many heads of DATASET.")] = 32,
    models: Annotated[Path | None, typer.Option("--models", metavar="DIR", help="Where the weights of learned metrics lie.")] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch missing weights of learned metrics; says what, whose, how large.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="Renew the figures between the markers of this page.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure heads against their photos, against the truth and against other tools, and write a report.

    REPORT gets report.html (one page, works offline), report.json and scores.csv.
    """
    quieten(debug)
    peers = tuple(_peer(text) for text in compare or ())
    with _evaluation_parts(), progress_report(json) as progress:
        from portrait_backend.evaluation.report import as_json
        from portrait_backend.evaluation.results_page import check_page, renew
        from portrait_backend.evaluation.run import Task
        from portrait_backend.evaluation.run import evaluate as run

        if results is not None:
            check_page(results)
        task = Task(
            tuple(jobs or ()), photos, ground_truth, peers, ablations, identities, models, download, lambda line: typer.echo(line, err=True)
        )
        report = run(task, settings, output, progress)
        if results is not None:
            renew(results, report)
    if json:
        print_json({"output": str(output), **{name: value for name, value in as_json(report).items() if name != "scores"}})
        return
    for problem in report.record["problems"]:
        typer.echo(f"left out: {problem}", err=True)
    absent = [model["name"] for model in report.record["models"] if not model["available"]]
    if absent:
        typer.echo(f"not available here: {', '.join(absent)} (the report says why)", err=True)
    typer.echo(f"{output / 'report.html'}: {len(report.scores)} figures")


def command() -> Callable[..., Any]:
    """Return the command with one option for every setting."""
    return with_settings(evaluate)


def _peer(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    return (name, Path(path)) if separator and name and path else (Path(text).stem, Path(text))


@contextmanager
def _evaluation_parts() -> Iterator[None]:
    """Say what to install where a part for evaluation is missing."""
    try:
        yield
    except ImportError as error:
        raise PortraitDiffusionError(
            "extra-missing", str(error), "Install the evaluation parts: python3 -m pip install -c constraints.txt '.[evaluation]'"
        ) from error
