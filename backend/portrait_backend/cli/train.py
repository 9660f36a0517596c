"""`portrait-diffusion train`: render training sets and train the starter networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from portrait_backend.cli.console import Debug
from portrait_backend.cli.train_options import Rates, check_data, training, training_parts
from portrait_shared.errors import PortraitDiffusionError

if TYPE_CHECKING:
    from portrait_backend.diffusion.sources import Sources
    from portrait_backend.training.trainer import TrainOptions

app = typer.Typer(help="Render training sets and train the starter networks.", no_args_is_help=True)


Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="A rendered training set.", show_default=False)]
Steps = Annotated[int, typer.Option("--steps", min=1, help="End of the schedule.")]
Minutes = Annotated[float, typer.Option("--minutes", min=0, help="End after this much training, if that is earlier.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of weights and sampling.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first identities.")]
CodecOption = Annotated[str, typer.Option("--codec", metavar="FILE", help="Codec: starter, a codec.safetensors, or a diffusers folder.")]
DenoiserOption = Annotated[str, typer.Option("--denoiser", metavar="FILE", help="Denoiser, named as --codec; none: without guidance.")]


@app.command("dataset")
def dataset(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the data set.", show_default=False)],
    pack: Annotated[Path | None, typer.Option("--pack", metavar="DIR", help="Folder of the head pack.", show_default=False)] = None,
    prior: Annotated[
        Literal["panohead", "portrait4d"] | None,
        typer.Option("--prior", help="Render this prior's heads instead of a pack's: random ones, or (portrait4d) those of --photos."),
    ] = None,
    photos: Annotated[Path | None, typer.Option("--photos", metavar="DIR", help="Photos for --prior portrait4d, one head each.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where a prior's heads are computed.")] = "auto",
    first: Annotated[int, typer.Option("--first", min=0, help="Number of the first identity.")] = 0,
    count: Annotated[int, typer.Option("--count", min=1, help="How many identities.")] = 640,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Identity k depends on (seed, k) only.")] = 0,
    resolution: Annotated[int, typer.Option("--resolution", min=32, max=2048, help="Width and height of the views in px.")] = 160,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="The fixed views of a held-out set.")] = False,
    debug: Debug = False,
) -> None:
    """Render a multi-view set of synthetic heads; identities that are there already are skipped."""
    if (pack is None) == (prior is None):
        raise PortraitDiffusionError("usage", "the heads come from one source", "Use either --pack DIR or --prior panohead|portrait4d")
    faceless = 0
    with training_parts():
        if pack is not None:
            from portrait_backend.training.synthetic import render_dataset

            made = render_dataset(pack, out, first, count, seed, resolution, evaluation)
        else:
            from portrait_backend.devices import choose_device
            from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
            from portrait_backend.training.prior_dataset import head_source, render_prior_dataset

            assert prior is not None
            heads = head_source(prior, seed, photos, choose_device(device))
            with MediaPipeFaces() as detector:
                made, faceless = render_prior_dataset(heads, out, first, count, seed, resolution, detector, evaluation)
    without = f", {faceless} had no face and were left out" if faceless else ""
    typer.echo(f"{out}: {made} identities rendered, {count - made - faceless} were there already{without}")


@app.command("prior")
@training("prior", Rates(1.2e-3, 3e-4))
def prior(
    options: TrainOptions,
    start_from: Annotated[Path | None, typer.Option("--start-from", metavar="FILE", help="Begin with these prior.safetensors.")] = None,
    keep_decoder: Annotated[
        bool, typer.Option("--keep-decoder", help="Leave the decoder as it is: phi and the super-resolution still fit the new prior.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Train the starter prior, or a larger one of its kind; run it again with the same --out to resume."""
    with training_parts():
        from portrait_backend.training.prior_trainer import train_prior

        checkpoint = train_prior(options, start_from, keep_decoder)
    typer.echo(f"checkpoint: {checkpoint}")


@app.command("codec")
@training("codec", Rates(1.2e-3, 1.2e-3, batch=16))
def codec(
    options: TrainOptions,
    decoder_only: Annotated[bool, typer.Option("--decoder-only", help="Keep the latents; a trained denoiser stays right.")] = False,
    debug: Debug = False,
) -> None:
    """Train the starter codec (images <-> latents); run it again with the same --out to resume. Full scale has a codec already."""
    with training_parts():
        from portrait_backend.training.codec_trainer import train_codec

        checkpoint = train_codec(options, decoder_only)
    typer.echo(f"checkpoint: {checkpoint}")


@app.command("denoiser")
@training("denoiser", Rates(8e-4, 1e-5))
def denoiser(
    options: TrainOptions,
    codec: CodecOption = "starter",
    small_share: Annotated[float, typer.Option("--small-share", min=0, max=1, help="Share of batches at half the views' size.")] = 0.5,
    debug: Debug = False,
) -> None:
    """Train the denoiser on rgb and normal maps of heads; run it again with the same --out to resume.

    Full scale: the UNet of sd15 (or of the diffusers folder --codec) goes on learning under its prompts, at the views' own size.
    """
    with training_parts():
        from portrait_backend.training.denoiser_trainer import train_denoiser

        if options.scale == "full":
            checkpoint = train_denoiser(options, _sources("denoiser").denoiser if codec == "starter" else codec, 0.0)
        else:
            checkpoint = train_denoiser(options, codec, small_share)
    typer.echo(f"checkpoint: {checkpoint}")


@app.command("phi")
@training("phi", Rates(1e-3, 1e-3, batch=1))
def phi(
    options: TrainOptions,
    codec: CodecOption = "starter",
    denoiser: DenoiserOption = "none",
    heads: Annotated[int, typer.Option("--heads", min=1, help="How many heads are fitted to their photo first, and kept.")] = 64,
    start: Annotated[
        str, typer.Option("--start", metavar="FILE", help="Weights to go on from: starter, a detail_unet.safetensors, or none.")
    ] = "none",
    debug: Debug = False,
) -> None:
    """Pre-train the Detail Preservation UNet over many portraits; run it again with the same --out to resume.

    Full scale: guided by sd15 and sd15-normal at 512 px.
    """
    with training_parts():
        from portrait_backend.diffusion.sources import STARTER_SIZE
        from portrait_backend.diffusion.weights import load_codec, load_denoiser
        from portrait_backend.restoration.guide import DiffusionPrior
        from portrait_backend.training.phi_trainer import train_phi

        prior = None
        if options.scale == "full":
            found = _sources("restoration")
            denoisers = {"rgb": load_denoiser(found.denoiser), "normal": load_denoiser(found.normal)}
            prior = DiffusionPrior(load_codec(found.codec), denoisers, found.size)  # type: ignore[arg-type]
        elif denoiser != "none":
            loaded = load_denoiser(denoiser)
            prior = DiffusionPrior(load_codec(codec), {"rgb": loaded, "normal": loaded}, STARTER_SIZE)
        checkpoint = train_phi(options, prior, heads, None if start == "none" else start)
    typer.echo(f"checkpoint: {checkpoint}")


@app.command("hybrid-priors")
@training("hybrid-priors", Rates(4e-4, 1e-5))
def hybrid_priors(
    options: TrainOptions,
    codec: CodecOption = "starter",
    denoiser: DenoiserOption = "starter",
    coarse: Annotated[
        Path | None, typer.Option("--coarse", metavar="DIR", help="The same views from stage 1 (train coarse-views).")
    ] = None,
    largest_step: Annotated[float, typer.Option("--largest-step", min=1, max=180, help="Largest angle between two views.")] = 45.0,
    small_share: Annotated[float, typer.Option("--small-share", min=0, max=1, help="Share of batches at half the views' size.")] = 0.7,
    debug: Debug = False,
) -> None:
    """Train stage 3's branches on pairs of neighbouring views; run it again with the same --out to resume.

    Full scale: over sd15, from BrushNet's weights, with gradient checkpointing.
    """
    with training_parts():
        from portrait_backend.training.hybrid_priors_trainer import HybridPriorsOptions, train_hybrid_priors

        more = HybridPriorsOptions(codec, denoiser, coarse, largest_step, small_share)
        if options.scale == "full":
            more = HybridPriorsOptions.full(_sources("refinement"), coarse, largest_step)
        checkpoint = train_hybrid_priors(options, more)
    typer.echo(f"checkpoint: {checkpoint}")


def _sources(stage: str) -> Sources:
    """Return where a stage's downloaded networks are, whatever was trained over them before."""
    from portrait_backend.diffusion.sources import find_sources
    from portrait_shared.settings import DiffusionSettings

    return find_sources(DiffusionSettings(weights="sd15"), (stage,), trained=False)


@app.command("coarse-views")
def coarse_views(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the rendered views.", show_default=False)],
    limit: Limit = None,
    fit_steps: Annotated[int, typer.Option("--fit-steps", min=0, help="Steps of stage 1's fit; 0 is the network alone.")] = 40,
    debug: Debug = False,
) -> None:
    """Render a set's views from stage 1's heads, for train hybrid-priors --coarse; identities that are there already are skipped."""
    check_data(data)
    with training_parts():
        from portrait_backend.training.coarse_views import render_coarse_views

        made = render_coarse_views(data, out, limit, fit_steps)
    typer.echo(f"{out}: {made} identities rendered")


@app.command("super-resolution")
def super_resolution(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for pairs, checkpoint and weights.")] = Path("runs/sr"),
    heads: Annotated[int, typer.Option("--heads", min=2, help="How many heads to fit and render.")] = 24,
    views: Annotated[int, typer.Option("--views", min=1, help="Views per head.")] = 6,
    steps: Steps = 4000,
    minutes: Minutes = math.inf,
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Train the super-resolution of rendered features on the prior's own heads; run it again with the same --out to resume."""
    check_data(data)
    with training_parts():
        from portrait_backend.training.super_resolution_trainer import TrainSuperResolutionOptions, train_super_resolution

        options = TrainSuperResolutionOptions(data, out, heads, views, steps=steps, minutes=minutes, seed=seed)
        weights = train_super_resolution(options)
    typer.echo(f"weights: {weights}")
