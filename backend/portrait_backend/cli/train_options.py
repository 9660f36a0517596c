"""The options that all training commands share, declared once; a command names its own defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    from portrait_backend.training.trainer import TrainOptions

OPTIONS: dict[str, tuple[Any, Any]] = {
    "data": (Annotated[Path | None, typer.Option("--data", metavar="DIR", help="A rendered training set.", show_default=False)], None),
    "out": (
        Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For checkpoint, log, pictures; default runs/<what>.")],
        None,
    ),
    "validation": (Annotated[Path | None, typer.Option("--validation", metavar="DIR", help="A held-out set to measure on.")], None),
    "steps": (Annotated[int, typer.Option("--steps", min=1, help="End of the schedule.")], 20000),
    "minutes": (Annotated[float, typer.Option("--minutes", min=0, help="End after this much training, if that is earlier.")], math.inf),
    "batch": (Annotated[int, typer.Option("--batch", min=1, help="Samples per forward pass and process.")], 8),
    "accumulate": (Annotated[int, typer.Option("--accumulate", min=1, help="Forward passes per step.")], 1),
    "learning_rate": (
        Annotated[float | None, typer.Option("--learning-rate", min=0, help="Peak learning rate.", show_default="by command and scale")],
        None,
    ),
    "seed": (Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and sampling.")], 0),
    "threads": (Annotated[int, typer.Option("--threads", min=0, help="CPU threads; 0 leaves it to torch.")], 0),
    "limit": (Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first identities.")], None),
    "evaluate_every": (
        Annotated[int, typer.Option("--evaluate-every", min=1, help="Steps between measurements and sample pictures.")],
        500,
    ),
    "save_every": (Annotated[int, typer.Option("--save-every", min=1, help="Steps between checkpoints.")], 200),
    "scale": (
        Annotated[Literal["starter", "full"], typer.Option("--scale", help="starter: the shipped sizes; full: on downloaded models.")],
        "starter",
    ),
    "precision": (
        Annotated[Literal["no", "bf16", "fp16"], typer.Option("--precision", help="Mixed; bf16 only where quicker.")],
        "bf16",
    ),
    "log_with": (
        Annotated[Literal["", "tensorboard", "wandb"], typer.Option("--log-with", help="A tracker besides log.jsonl.", show_default=False)],
        "",
    ),
    "dry_run": (Annotated[bool, typer.Option("--dry-run", help="Only say what a step would take.")], False),
}


@dataclass(frozen=True)
class Rates:
    """A command's learning rates and batch by default."""

    starter: float
    full: float
    batch: int = 8


def training(what: str, rates: Rates) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared options; it is called with `options: TrainOptions` in their place, and not at all for a dry run."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for p in inspect.signature(function, eval_str=True, locals={"TrainOptions": object}).parameters.values()
            if p.name != "options"
        ]

        def command(**values: Any) -> None:
            given = {name: values.pop(name) for name in OPTIONS}
            dry_run, home = given.pop("dry_run"), given.pop("out") or Path("runs") / what.replace("-", "_")
            given["learning_rate"] = given["learning_rate"] or getattr(rates, given["scale"])
            if dry_run:
                _say(what, given)
            else:
                function(options=_options(home, given), **values)

        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=rates.batch if name == "batch" else default, annotation=kind)
            for name, (kind, default) in OPTIONS.items()
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        return command

    return decorate


def _options(home: Path, given: dict[str, Any]) -> TrainOptions:
    if given["data"] is None:
        raise PortraitDiffusionError("data-not-found", "no training set is named", "Use --data DIR")
    check_data(given["data"])
    with training_parts():
        from portrait_backend.training.trainer import TrainOptions

        return TrainOptions(out=home, **given)


def check_data(data: Path) -> None:
    """Raise PortraitDiffusionError ``data-not-found`` if there is no such folder."""
    if not data.is_dir():
        raise PortraitDiffusionError("data-not-found", f"{data} is not a folder", "Render one with portrait-diffusion train dataset")


@contextmanager
def training_parts() -> Iterator[None]:
    """Say what to install where an optional part for training is missing."""
    try:
        yield
    except ImportError as error:
        raise PortraitDiffusionError(
            "extra-missing", str(error), "Install the training parts: python3 -m pip install -c constraints.txt '.[train]'"
        ) from error


def _say(what: str, given: dict[str, Any]) -> None:
    with training_parts():
        from portrait_backend.training.dry_run import STEPS, describe
    if what not in STEPS:
        raise PortraitDiffusionError("usage", f"there is no estimate for {what}", f"--dry-run knows {', '.join(STEPS)}")
    typer.echo("\n".join(describe(what, given["scale"], given["batch"], given["accumulate"], given["steps"])))
