"""Point splatting against a naive loop over points, and the pull against the splat: one driver view of a sphere into a target, one run.

The naive loop is what one writes first: every point visits the pixels of its window in Python and keeps the nearest. It gets a
small image, and its time is scaled by the number of points; both find the same nearest points, which is checked.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from portrait_backend.geometry.reprojection import carried, find_warp
from portrait_backend.geometry.splatting import splat_points
from portrait_backend.geometry.surface_views import Culling, SurfaceView
from portrait_backend.radiance.cameras import Camera

RADIUS, LEAST_RATIO = 0.35, 20.0
NAIVE_SIZE = 128


def sphere(azimuth: float, size: int) -> SurfaceView:
    """Return a view of a sphere."""
    camera = Camera.orbit(azimuth, 0, size)
    origin, directions = camera.rays()
    a, b, c = directions.pow(2).sum(-1), directions @ origin, origin @ origin - RADIUS**2
    root = b**2 - a * c
    depth = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, 0.0)
    normals = torch.nn.functional.normalize(origin + directions * depth[:, None], dim=-1) * (depth > 0)[:, None]
    shape = (1, size, size)
    return SurfaceView.from_cameras(depth.view(shape), (depth > 0).float().view(shape), [camera], normals.view(*shape, 3))


def naive(pixels: Tensor, depth: Tensor, keep: Tensor, size: int, radius: float) -> Tensor:
    """Return the nearest point's index (size, size), -1 for none, by a loop over points and pixels."""
    nearest = [[(float("inf"), -1)] * size for _ in range(size)]
    reach = int(radius + 1)
    for n in range(len(depth)):
        if not keep[n]:
            continue
        x, y, z = float(pixels[n, 0]), float(pixels[n, 1]), float(depth[n])
        for row in range(max(0, int(y) - reach), min(size, int(y) + reach + 1)):
            for column in range(max(0, int(x) - reach), min(size, int(x) + reach + 1)):
                inside = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 < 0.9999 * radius**2
                if inside and (z, n) < nearest[row][column]:
                    nearest[row][column] = (z, n)
    return torch.tensor([[n if n >= 0 else -1 for _, n in line] for line in nearest])


def timed(work: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of a call, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def main() -> int:
    """Measure, print a table, and fail if splatting is not much faster than the loop or finds other points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    small = [sphere(azimuth, NAIVE_SIZE) for azimuth in (0, 30)]
    pixels, z, keep = carried(small[0], small[1], Culling())
    start = time.perf_counter()
    expected = naive(pixels[0], z[0], keep[0], NAIVE_SIZE, 1.5)
    loop = time.perf_counter() - start
    found = splat_points(pixels, z, keep, NAIVE_SIZE, NAIVE_SIZE, radius=1.5, backend="torch").index[0, :, :, 0]
    same = bool(torch.equal(found, expected))
    ours = timed(lambda: splat_points(pixels, z, keep, NAIVE_SIZE, NAIVE_SIZE, radius=1.5, backend="torch"), a.repeats)
    views = [view.to(torch.device(a.device)) for view in (sphere(0, a.size), sphere(30, a.size))]
    whole = {
        method: timed(lambda m=method: find_warp(views[0], views[1], method=m), a.repeats)  # type: ignore[misc]
        for method in ("pull", "splat")
    }
    figures = {
        "naive_seconds": loop, "splat_seconds": ours, "ratio": loop / ours, "same_points": same, "size": a.size,
        "find_warp_pull_seconds": whole["pull"], "find_warp_splat_seconds": whole["splat"],
    }  # fmt: skip
    print(f"{a.threads} threads, torch {torch.__version__}, {platform.machine()}, {a.device}")
    print(f"{NAIVE_SIZE} px, radius 1.5: loop {loop:.3f} s, splat_points {1000 * ours:.2f} ms, {loop / ours:.0f}x; same points: {same}")
    print(f"{a.size} px, culling included: pull {1000 * whole['pull']:.0f} ms, splat (4 points a pixel) {1000 * whole['splat']:.0f} ms")
    if a.json:
        a.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    good = same and loop / ours >= LEAST_RATIO
    print(f"target {LEAST_RATIO:.0f}x with the same points: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
