"""The renderer against dense sampling: forward + backward of one image, the same head, the same views, one run.

Dense is the usual 48 coarse + 48 importance samples per ray (EG3D), our own implementation with the same decoder and
sampling kernels, so the ratio measures the sample placement, and that ours leaves samples of no gradient out of the
backward pass. Ours takes its samples from the density lattice, which a fit rebuilds every 14 steps: the ratio is given
with that share of a rebuild and without.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from torch import Tensor

from portrait_backend.devices import keep_threads
from portrait_backend.radiance import decoder_kernel
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import RenderOutput, render, render_dense

VIEWS = ((0, 0), (35, 10), (-90, 0), (180, 15))
REBUILD = 14
"""Optimisation steps per lattice, as in the fit."""
LEAST_RATIO, LEAST_PSNR = 12.0, 42.0

Draw = Callable[[Head, Camera], RenderOutput]


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of images in [0, 1]."""
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-12))


def leaves_of(head: Head) -> list[Tensor]:
    """Return copies of the planes of a head, one if colours and density share them, to differentiate by."""
    shared = head.appearance is head.geometry
    return [p.planes.detach().clone().requires_grad_() for p in ((head.geometry,) if shared else (head.geometry, head.appearance))]


def step(head: Head, camera: Camera, draw: Draw, leaves: list[Tensor] | None = None) -> tuple[float, Tensor]:
    """Render and differentiate by all planes, as one step of a fit does: seconds, and the gradient of the geometry planes.

    leaves: those of the head (`leaves_of`), which a fit makes once; None copies them here, which isn't counted in the seconds.
    """
    leaves = leaves or leaves_of(head)
    start = time.perf_counter()
    for leaf in leaves:
        leaf.grad = None
    appearance = None if len(leaves) == 1 else head.appearance.with_planes(leaves[1])
    out = draw(head.with_planes(head.geometry.with_planes(leaves[0]), appearance), camera)
    ((out.rgb - 0.5).abs().mean() + out.alpha.mean()).backward()
    seconds = time.perf_counter() - start
    assert leaves[0].grad is not None
    return seconds, leaves[0].grad


def dense_step(head: Head, camera: Camera, leaves: list[Tensor] | None = None) -> tuple[float, Tensor]:
    """Do `step` by dense sampling, every sample in the decoder's backward pass: leaving some out is a saving of ours."""
    with mock.patch.object(decoder_kernel, "samples_with_gradient", lambda grad: torch.arange(len(grad))):
        return step(head, camera, render_dense, leaves)


def measure(head: Head, size: int, samples: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """Return one row per sample count; the kinds take turns within each repeat, so that a busy machine slows all alike."""
    cameras = [Camera.orbit(azimuth, pitch, size) for azimuth, pitch in VIEWS]
    grid = DensityGrid.build(head)
    kinds: dict[int, Draw] = {n: lambda h, c, n=n: render(h, c, grid=grid, samples=n) for n in samples}  # type: ignore[misc]
    steps = {n: partial(step, draw=draw) for n, draw in kinds.items()} | {0: dense_step}
    seconds: dict[int, list[float]] = {n: [] for n in steps}
    build: list[float] = []
    for do in steps.values():
        do(head, cameras[0].resized(32))  # compile
    for repeat in range(repeats):
        start = time.perf_counter()
        DensityGrid.build(head)
        build.append(time.perf_counter() - start)
        for n, do in steps.items():
            seconds[n].append(do(head, cameras[repeat % len(cameras)])[0])
    dense, rebuild = median(seconds[0]), median(build)
    rows = []
    for n in samples:
        with torch.no_grad():
            agreement = [psnr(kinds[n](head, c).rgb, render_dense(head, c).rgb) for c in cameras]
        gradients = [do(head, cameras[1])[1].flatten() for do in (steps[n], dense_step)]
        ours = median(seconds[n])
        rows.append(
            {
                "samples": n,
                "seconds": ours,
                "dense_seconds": dense,
                "lattice_seconds": rebuild,
                "ratio": dense / ours,
                "ratio_with_lattice": dense / (ours + rebuild / REBUILD),
                "psnr_least": min(agreement),
                "psnr_mean": sum(agreement) / len(agreement),
                "gradient_cosine": float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)),
            }
        )
    return rows


def main() -> int:
    """Measure, print a table, and fail if the default sample count misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=Path, help="a head.safetensors; default: an analytic ellipsoid of the starter's size")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 12, 16, 24])
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_threads()  # numba's too
    head = Head.load(arguments.head) if arguments.head else ellipsoid_head(depth=2, size=128)
    planes = " and ".join("x".join(map(str, p.planes.shape[1:])) for p in dict.fromkeys((head.geometry, head.appearance)))
    machine = f"{arguments.threads} threads, torch {torch.__version__}, {platform.machine()}"
    print(f"{arguments.head or 'analytic ellipsoid'}: planes {planes}, {arguments.size} px, {machine}")
    rows = measure(head, arguments.size, tuple(arguments.samples), arguments.repeats)
    dense, lattice = rows[0]["dense_seconds"], rows[0]["lattice_seconds"]
    print(f"dense 48 + 48: {dense:.3f} s forward + backward; lattice {lattice:.3f} s, rebuilt every {REBUILD} steps")
    print("samples  seconds   ratio  with lattice   PSNR to dense: least  mean   gradient cosine")
    for r in rows:
        print(
            f"{r['samples']:7d}  {r['seconds']:7.3f}  {r['ratio']:5.1f}x  {r['ratio_with_lattice']:11.1f}x"
            f"  {r['psnr_least']:20.1f}  {r['psnr_mean']:4.1f}   {r['gradient_cosine']:.4f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    good = [r for r in rows if r["ratio_with_lattice"] >= LEAST_RATIO and r["psnr_least"] >= LEAST_PSNR]
    verdict = f"met with {', '.join(str(r['samples']) for r in good)} samples" if good else "MISSED"
    print(f"target {LEAST_RATIO:.0f}x with lattice at {LEAST_PSNR:.0f} dB: {verdict}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
