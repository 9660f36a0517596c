"""Stage 1 alone against stage 1 + 2: figures on held-out synthetic heads, and before / after sheets of real photos.

    python -m portrait_backend.evaluation.restoration --data DATA --identities 32 -o restoration.json --sheet sheet.png
    python -m portrait_backend.evaluation.restoration --photos PHOTO... --sheet sheet.png

--cache DIR keeps the heads of stage 1, so that several settings of stage 2 can be compared. --codec, --denoiser and --phi name other
weights than the shipped ones; --phi none starts from a fresh Detail Preservation UNet.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from portrait_backend.context import cpu_context
from portrait_backend.devices import peak_memory_mb
from portrait_backend.diffusion.sources import STARTER_SIZE
from portrait_backend.diffusion.weights import load_codec, load_denoiser
from portrait_backend.evaluation.ground_truth import SIZE
from portrait_backend.evaluation.held_out import Scores, score_head
from portrait_backend.portrait.types import Portrait
from portrait_backend.prior.starter import StarterPrior
from portrait_backend.radiance.cameras import METRES_PER_UNIT
from portrait_backend.radiance.head import Head
from portrait_backend.restoration.detail_unet import DetailPreservationUNet, config_for, load_detail_unet
from portrait_backend.restoration.fit import reference_image, restore
from portrait_backend.restoration.guide import DiffusionPrior
from portrait_backend.restoration.views import render_view
from portrait_backend.training.codec_trainer import save_picture
from portrait_backend.training.head_dataset import HeadDataset, camera_at, decode_depth, load_heads
from portrait_backend.training.prior_evaluation import VIEWS
from portrait_backend.training.synthetic_portrait import portrait_of
from portrait_shared.settings import PriorSettings, RestorationSettings, Settings, get

SHOWN = ((0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (-90.0, 0.0))
TILE = 128


@dataclass
class Table:
    """Scores of one stage; depth_mm: mean absolute depth error per view group where truth and head both have a surface."""

    scores: Scores = field(default_factory=lambda: Scores({}, []))
    depth_mm: dict[str, list[float]] = field(default_factory=dict)

    def add(self, head: Head, data: HeadDataset, identity: int) -> None:
        """Score one head."""
        score_head(head, data, identity, self.scores)
        for name, views in VIEWS.items():
            for view in views:
                step = max(1, data.size // SIZE)
                depth = decode_depth(data.depth[identity, view])[step // 2 :: step, step // 2 :: step]
                out = head.render(camera_at(data, identity, view, depth.shape[0]))
                both = (depth > 0) & (out.alpha > 0.5)
                error = float((out.depth - depth).abs()[both].mean()) * METRES_PER_UNIT * 1000
                self.depth_mm.setdefault(name, []).append(error)

    def table(self) -> dict[str, object]:
        """Means, ready for JSON."""
        return self.scores.table() | {"depth_mm": {name: round(float(np.mean(x)), 2) for name, x in self.depth_mm.items()}}


def kept(path: Path | None, make: Callable[[], Head]) -> Head:
    """Return the head at `path`, made and saved if it is not there."""
    if path is None:
        return make()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        make().save(path)
    return Head.load(path)


@torch.no_grad()
def strip(portrait: Portrait, heads: list[Head]) -> Tensor:
    """Return the portrait, then for each of `SHOWN` the heads' colour and normals: (3, 2 TILE, ...)."""
    photo = torch.nn.functional.interpolate(reference_image(portrait)[:, :3], size=(TILE, TILE), mode="area")[0]
    columns = [torch.cat([photo, torch.full_like(photo, 0.5)], 1)]
    for azimuth, pitch in SHOWN:
        for head in heads:
            view = render_view(head, azimuth, pitch, TILE, head.density_grid(), 1024)
            columns.append(torch.cat([view.rgb[0], view.normal[0]], 1))
    return torch.cat(columns, 2)


def photo_portrait(photo: Path) -> Portrait:
    """Read a photo as the product does."""
    from portrait_backend.portrait.align import prepare_portrait

    return prepare_portrait(photo, cpu_context())


@dataclass
class Run:
    """How stage 2 is run in this evaluation."""

    settings: RestorationSettings
    prior: DiffusionPrior
    phi: str
    seconds: list[float] = field(default_factory=list)

    def __call__(self, head: Head, portrait: Portrait, seed: int) -> Head:
        """Restore one head and note the seconds."""
        phi: DetailPreservationUNet | None = None
        if self.phi == "none":
            torch.manual_seed(seed)
            phi = DetailPreservationUNet(config_for(head))
        else:
            phi = load_detail_unet(self.phi)
        clock = time.perf_counter()
        restored = restore(head, portrait, self.settings, cpu_context(seed), self.prior, phi)
        self.seconds.append(time.perf_counter() - clock)
        return restored


def evaluate_data(a: argparse.Namespace, run: Run) -> tuple[dict[str, object], list[Tensor]]:
    """Score held-out heads before and after stage 2."""
    data = load_heads(a.data, a.identities, seed=1, input_views=(0,))
    before, after, strips, result = Table(), Table(), list[Tensor](), dict[str, object]()
    for row in range(min(a.identities, len(data.input_id))):
        portrait, identity = portrait_of(data, row), int(data.input_id[row])
        head = kept(
            a.cache and a.cache / f"{row:03d}.safetensors",
            lambda p=portrait, seed=row: StarterPrior().initialise(p, PriorSettings(), cpu_context(seed)),  # type: ignore[misc]
        )
        restored = run(head, portrait, row)
        with torch.no_grad():
            before.add(head, data, identity)
            after.add(restored, data, identity)
        strips.append(strip(portrait, [head, restored]))
        shown = [[round(float(np.mean(v, 0)[1]), 2) for v in t.scores.views.values()] for t in (before, after)]
        print(f"{row + 1}/{a.identities} foreground PSNR {shown[0]} -> {shown[1]}", flush=True)
        write(a, result := _figures(run, before, after))
    return result, strips


def _figures(run: Run, before: Table, after: Table) -> dict[str, object]:
    return {
        "settings": vars(run.settings),
        "stage 1": before.table(),
        "stage 1 + 2": after.table(),
        "seconds": round(float(np.mean(run.seconds)), 1),
        "peak_memory_mb": peak_memory_mb(),
    }


def write(a: argparse.Namespace, result: dict[str, object]) -> None:
    """Write what there is so far: an evaluation that is interrupted leaves the figures of the heads that it had seen."""
    if a.output is not None:
        a.output.write_text(json.dumps(result, indent=1) + "\n")


def evaluate_photos(a: argparse.Namespace, run: Run) -> list[Tensor]:
    """Make before / after strips of photos."""
    strips = []
    for photo in a.photos:
        portrait = photo_portrait(photo)
        head = kept(
            a.cache and a.cache / f"{photo.stem}.safetensors",
            lambda p=portrait: StarterPrior().initialise(p, PriorSettings(), cpu_context()),  # type: ignore[misc]
        )
        strips.append(strip(portrait, [head, run(head, portrait, 0)]))
        print(photo.name, flush=True)
    return strips


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--photos", type=Path, nargs="*", default=[])
    parser.add_argument("--identities", type=int, default=32)
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the stage, e.g. steps=24")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--codec", default="starter")
    parser.add_argument("--denoiser", default="starter")
    parser.add_argument("--phi", default="starter")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--sheet", type=Path)
    a = parser.parse_args()
    values = {}
    for pair in a.set:
        name, _, value = pair.partition("=")
        default = get(Settings(preset=a.preset), f"restoration.{name}")
        values[name] = value == "true" if isinstance(default, bool) else type(default)(value)
    settings = RestorationSettings(**vars(Settings(preset=a.preset).restoration) | values)
    denoiser = load_denoiser(a.denoiser)
    run = Run(settings, DiffusionPrior(load_codec(a.codec), {"rgb": denoiser, "normal": denoiser}, STARTER_SIZE), a.phi)
    strips = evaluate_photos(a, run)
    if a.data is not None:
        result, more = evaluate_data(a, run)
        strips += more
        print(json.dumps(result, indent=1))
    if a.sheet is not None:
        save_picture(torch.cat(strips[:8], 1), a.sheet)


if __name__ == "__main__":
    main()
