"""How well heads meet their photos at the photo's own view, seconds, and a contact sheet for the documentation.

    python -m portrait_backend.evaluation.photos PHOTO... -o DIR --preset standard

Writes DIR/<photo>/ (the job), DIR/photos.json and DIR/contact_sheet.png: our seven views of each sitter and the
textured mesh from four sides; the photos themselves are not in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import portrait_backend
from portrait_backend.evaluation.image_metrics import over_white
from portrait_backend.evaluation.photo_scores import reference_figures
from portrait_backend.mesh.picture import picture
from portrait_backend.outputs import VIEWS
from portrait_backend.pipeline import Result
from portrait_backend.portrait.faces import FaceDetector
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_backend.radiance.cameras import Camera
from portrait_shared.settings import Preset, Settings

TILE = 256
MESH_AZIMUTHS = (0.0, 60.0, -90.0, 150.0)
"""From where the mesh is shown."""


@torch.no_grad()
def measure(result: Result, detector: FaceDetector) -> dict[str, float | None]:
    """Return the figures of the photo's own view (`photo_scores.reference_figures`)."""
    found = reference_figures(result.head.render(result.portrait.camera), result.portrait, detector)
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def sheet_row(result: Result, folder: Path) -> Tensor:
    """One row of the contact sheet: the seven views as written, then the mesh."""
    tiles = []
    for name in VIEWS:
        view = Image.open(folder / "views" / f"{name}.png").resize((TILE, TILE), Image.Resampling.LANCZOS)
        rgba = torch.from_numpy(np.asarray(view).astype(np.float32) / 255)
        tiles.append(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
    tiles += [over_white(*picture(result.mesh, Camera.orbit(azimuth, 0, TILE))) for azimuth in MESH_AZIMUTHS]
    return torch.cat(tiles, 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--preset", default="standard")
    a = parser.parse_args()
    rows: list[Tensor] = []
    figures: dict[str, dict[str, Any]] = {}
    for photo in a.photos:
        folder = a.output / photo.stem
        result = portrait_backend.generate(photo, Settings(preset=cast(Preset, a.preset)), output=folder)
        with MediaPipeFaces() as detector:
            measured = measure(result, detector)
        figures[photo.name] = measured | {
            "seconds": result.record["seconds"],
            "peak_memory_mb": max(stage["peak_memory_mb"] for stage in result.record["stages"]),
            "stages": {stage["stage"]: stage["seconds"] for stage in result.record["stages"]},
            "yaw": round(result.portrait.yaw, 1),
        }
        print(photo.name, json.dumps(figures[photo.name]), flush=True)
        rows.append(sheet_row(result, folder))
    sheet = (torch.cat(rows).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(sheet).save(a.output / "contact_sheet.png")
    (a.output / "photos.json").write_text(json.dumps({"preset": a.preset, "photos": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
