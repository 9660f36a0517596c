"""Render a multi-view training set of synthetic heads from an external head pack.

The pack (parametric heads + OpenGL renderer, package ``synthheads``) is not part of this project;
its folder is given on the command line. Written layout, one folder per identity::

    id000000/ rgb_000.png    straight alpha, 8 bit
              depth_000.png  16 bit, camera z in steps of `depth_scale_m` metres, 0 = empty
              normal_000.png world space, (n + 1) * 127.5
              part_000.png   part ids
              landmarks.npz  landmarks (V, L, 4) x, y px, z m, visible; points (L, 3) world metres
              cameras.json   OpenCV world-to-camera (3, 4) in metres; written last, marks completion

Identity k depends on (seed, k) only, so a run can be split, resumed and repeated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DEPTH_SCALE_M = 1e-4
EVALUATION_VIEWS = [(0.0, 0.0), (45.0, 0.0), (-45.0, 0.0), (90.0, 0.0), (-90.0, 0.0), (180.0, 0.0)]


def view_plan(rng: np.random.Generator, evaluation: bool) -> list[tuple[float, float]]:
    """Return (azimuth, pitch) in degrees per view.

    Training: two inputs near the front (one up to 40 degrees), then seven views stratified around
    the head. Evaluation: one near-frontal input, the six table views, then eight random views whose
    depth maps make the ground-truth surface.
    """
    near = [(float(rng.uniform(-20, 20)), float(rng.uniform(-14, 14))), (float(rng.uniform(-40, 40)), float(rng.uniform(-14, 14)))]
    start, count = rng.uniform(0, 360), 8 if evaluation else 7
    ring = [
        (float((start + 360 / count * (i + rng.uniform(-0.4, 0.4)) + 180) % 360 - 180), float(rng.uniform(-30, 30))) for i in range(count)
    ]
    return [near[0], *EVALUATION_VIEWS, *ring] if evaluation else [*near, *ring]


def import_pack(folder: Path) -> Any:
    """Import ``synthheads`` from `folder` (raises ImportError naming the folder)."""
    sys.path.insert(0, str(folder))
    try:
        import synthheads
        import synthheads.render_gl
    except ImportError as error:
        raise ImportError(f"no head pack in {folder} (needs the package synthheads, moderngl and EGL): {error}") from error
    finally:
        sys.path.remove(str(folder))
    return synthheads


def _write_view(folder: Path, index: int, frame: Any) -> None:
    def save(name: str, array: np.ndarray) -> None:
        Image.fromarray(array).save(folder / f"{name}_{index:03d}.png", compress_level=2)

    save("rgb", frame.rgba)
    save("depth", np.rint(frame.depth / DEPTH_SCALE_M).clip(0, 65535).astype(np.uint16))
    save("normal", np.where(frame.part[..., None] > 0, np.rint(frame.normals * 127.5 + 127.5), 0).astype(np.uint8))
    save("part", frame.part)


def render_dataset(pack_dir: Path, out: Path, first: int, count: int, seed: int, resolution: int, evaluation: bool = False) -> int:
    """Render identities first..first+count-1 at `resolution` px; finished ones are skipped. Returns how many were made."""
    synthheads = import_pack(pack_dir)
    gl = synthheads.render_gl
    pack, renderer, made = synthheads.Pack(), gl.Renderer(resolution, 2), 0
    for k in range(first, first + count):
        folder = out / f"id{k:06d}"
        if (folder / "cameras.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, k])
        head = synthheads.build_head(pack, synthheads.sample_identity(pack, rng))
        renderer.load(head)
        renderer.set_environment(gl.sample_environment(rng))
        views, landmarks = [], []
        for j, (azimuth, pitch) in enumerate(view_plan(rng, evaluation)):
            camera = gl.Camera(azimuth, pitch)
            frame = renderer.render(camera)
            _write_view(folder, j, frame)
            landmarks.append(frame.landmarks)
            views.append(
                {
                    "view": j,
                    "azimuth": azimuth,
                    "pitch": pitch,
                    "world_to_camera": camera.world_to_camera(head.unit).tolist(),
                    "intrinsics": camera.intrinsics(resolution).tolist(),
                }
            )
        np.savez_compressed(folder / "landmarks.npz", landmarks=np.stack(landmarks), points=head.landmarks)
        meta = {
            "resolution": resolution,
            "fov_deg": gl.FOV,
            "radius_units": gl.RADIUS,
            "metres_per_unit": float(head.unit),
            "depth_scale_m": DEPTH_SCALE_M,
            "identity": head.identity.as_dict(),
            "views": views,
        }
        part = folder / "cameras.json.part"
        part.write_text(json.dumps(meta))
        part.rename(folder / "cameras.json")
        made += 1
    return made
