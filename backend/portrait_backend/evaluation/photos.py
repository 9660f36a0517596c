"""How well heads meet their photos: landmark error and matte IoU at the reference view, seconds, and a contact sheet.

    python -m portrait_backend.evaluation.photos PHOTO... -o DIR --preset standard

Writes DIR/<photo>/ (the job), DIR/photos.json and DIR/contact_sheet.png: our seven views of each sitter and the
textured mesh from the front and the back; the photos themselves are not in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import portrait_backend
from portrait_backend.mesh.picture import picture
from portrait_backend.outputs import VIEWS
from portrait_backend.pipeline import Result
from portrait_backend.portrait.faces import find_face
from portrait_backend.portrait.mediapipe_tools import MediaPipeFaces
from portrait_backend.portrait.types import Portrait
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.head import Head
from portrait_shared.errors import PortraitDiffusionError
from portrait_shared.settings import Preset, Settings

EYE_CORNERS = (33, 263)
"""Face-mesh indices of the outer eye corners."""
TILE = 256


def landmark_error(rendered: np.ndarray, portrait: Portrait) -> float | None:
    """Mean distance of the landmarks detected in the rendered reference view (512, 512, 3) u8 from the photo's, in outer-eye distances.

    None if no face is found in the render.
    """
    with MediaPipeFaces() as detector:
        try:
            face, _, _ = find_face(rendered, detector)
        except PortraitDiffusionError:
            return None
    marks = portrait.landmarks.numpy()
    eyes = float(np.linalg.norm(marks[EYE_CORNERS[0]] - marks[EYE_CORNERS[1]]))
    return float(np.linalg.norm(face.landmarks - marks, axis=1).mean() / eyes)


def matte_iou(alpha: Tensor, portrait: Portrait) -> float:
    """Intersection over union of the rendered silhouette and the photo's matte at 0.5, where the photo is valid."""
    inside = portrait.valid > 0.5
    a, b = (alpha > 0.5) & inside, (portrait.matte > 0.5) & inside
    return float((a & b).sum() / (a | b).sum())


@torch.no_grad()
def measure(head: Head, portrait: Portrait) -> dict[str, float | None]:
    """Return landmark error, matte IoU and PSNR over the matte at the reference view."""
    out = head.render(portrait.camera)
    over_grey = (out.rgb + 0.5 * (1 - out.alpha[..., None])).clamp(0, 1)
    solid = (portrait.matte > 0.9) & (portrait.valid > 0.5)
    error = ((over_grey - portrait.rgba[..., :3]) ** 2).mean(-1)[solid].mean()
    marks = landmark_error((over_grey.numpy() * 255).round().astype(np.uint8), portrait)
    return {
        "landmark_error_percent": None if marks is None else round(100 * marks, 2),
        "matte_iou": round(matte_iou(out.alpha, portrait), 4),
        "reference_psnr": round(float(-10 * error.log10()), 2),
    }


def mesh_tile(result: Result, azimuth: float) -> Tensor:
    """Render the textured mesh, unlit, from an azimuth: (TILE, TILE, 3) over white."""
    colour, alpha = picture(result.mesh, Camera.orbit(azimuth, 0, TILE))
    return colour + 1 - alpha[..., None]


def sheet_row(result: Result, folder: Path) -> Tensor:
    """One row of the contact sheet: the seven views as written, then the mesh from the front and the back."""
    tiles = []
    for name in VIEWS:
        view = Image.open(folder / "views" / f"{name}.png").resize((TILE, TILE), Image.Resampling.LANCZOS)
        rgba = torch.from_numpy(np.asarray(view).astype(np.float32) / 255)
        tiles.append(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
    return torch.cat([*tiles, mesh_tile(result, 0), mesh_tile(result, 150)], 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--preset", default="standard")
    a = parser.parse_args()
    rows, figures = [], {}
    for photo in a.photos:
        folder = a.output / photo.stem
        result = portrait_backend.generate(photo, Settings(preset=cast(Preset, a.preset)), output=folder)
        figures[photo.name] = measure(result.head, result.portrait) | {
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
