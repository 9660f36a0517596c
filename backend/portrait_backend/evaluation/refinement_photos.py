"""Before / after crops of real photos: the same mesh with and without stage 3's images in its texture, and the field's own renders.

    python -m portrait_backend.evaluation.refinement_photos PHOTO... -o crops.jpg --preset standard

Each photo fills a band of two rows: above without stage 3, below with it. Columns: the mesh from --mesh, then the field from --field. The
photos themselves are not in it. Printed: the mean gradient of every picture, in grey levels of 255 per pixel, without and with the stage.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import portrait_backend
from portrait_backend.evaluation.image_metrics import over_white
from portrait_backend.evaluation.refinement import gradient_magnitude
from portrait_backend.mesh.picture import picture
from portrait_backend.pipeline import Result
from portrait_backend.radiance.cameras import Camera
from portrait_shared.settings import OutputSettings, from_dict, to_dict

MESH_AZIMUTHS, FIELD_AZIMUTHS = (30, -30, 60, -60, 90, -90, 180), (45, -90)
TILE = 256


def mesh_tile(result: Result, azimuth: float, size: int = TILE) -> Tensor:
    """Render the textured mesh from an azimuth: (size, size, 3) over white."""
    return over_white(*picture(result.mesh, Camera.orbit(azimuth, 0, size)))


@torch.no_grad()
def field_tile(result: Result, azimuth: float, size: int = TILE) -> Tensor:
    """Render the radiance field from an azimuth: (size, size, 3) over white."""
    out = result.head.render(Camera.orbit(azimuth, 0, size))
    return over_white(out.rgb, out.alpha).clamp(0, 1)


def sharpness(tile: Tensor) -> float:
    """Mean gradient of a tile's grey level where it isn't white, in grey levels of 255 per pixel."""
    return 255 * gradient_magnitude(tile, tile.amin(-1) < 0.99)


def before_and_after(photo: Path, settings: dict[str, Any]) -> tuple[Result, Result]:
    """Make a head without stage 3, then run stage 3 and the texture again on its geometry."""
    wanted = from_dict(settings)
    plain = replace(wanted, stages=tuple(s for s in wanted.stages if s != "refinement"))
    with tempfile.TemporaryDirectory() as folder:
        before = portrait_backend.generate(photo, plain, checkpoints=folder)
        after = portrait_backend.generate(photo, wanted, geometry=folder)
    return before, after


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a picture (.jpg, .png)")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--stages", default="prior,refinement")
    parser.add_argument("--size", type=int, default=TILE, help="width and height of a view, px")
    parser.add_argument("--mesh", type=float, nargs="*", default=MESH_AZIMUTHS, help="azimuths of the mesh, degrees")
    parser.add_argument("--field", type=float, nargs="*", default=FIELD_AZIMUTHS, help="azimuths of the field, degrees")
    parser.add_argument("--settings", type=json.loads, default={}, help='changes as JSON, e.g. {"refinement": {"iterations": 4}}')
    a = parser.parse_args()
    output = to_dict(OutputSettings(turntable="none"))
    bands, figures = [], {}
    for photo in a.photos:
        settings = {"preset": a.preset, "stages": a.stages.split(","), "output": output, **a.settings}
        pair = before_and_after(photo, settings)
        rows = [[*(mesh_tile(r, x, a.size) for x in a.mesh), *(field_tile(r, x, a.size) for x in a.field)] for r in pair]
        bands.append(torch.cat([torch.cat(row, 1) for row in rows]))
        names = [*(f"mesh {x:g}" for x in a.mesh), *(f"field {x:g}" for x in a.field)]
        figures[photo.stem] = {n: [round(sharpness(row[k]), 2) for row in rows] for k, n in enumerate(names)}
        print(photo.stem, json.dumps(figures[photo.stem]), json.dumps(pair[1].record["stages"]), flush=True)
        picture = (torch.cat(bands).clamp(0, 1) * 255).round().byte().numpy()
        Image.fromarray(picture).save(a.output, quality=85)


if __name__ == "__main__":
    main()
