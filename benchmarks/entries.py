"""The entries of `python3 -m benchmarks`: each returns rows that compare our path with a reference. `Scale` says how much work they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import xatlas
from torch import Tensor

from benchmarks.comparison import Row, interleaved
from benchmarks.previews import preview_cost
from benchmarks.renderer import REBUILD, VIEWS, dense_step, leaves_of, psnr, step
from benchmarks.splatting import NAIVE_SIZE, naive, sphere
from portrait_backend.context import cpu_context
from portrait_backend.geometry.reprojection import carried
from portrait_backend.geometry.splatting import has_pytorch3d, splat_points
from portrait_backend.geometry.surface_views import Culling, SurfaceView
from portrait_backend.mesh.bake import Surface, bake_texture
from portrait_backend.mesh.extract import extract_mesh
from portrait_backend.mesh.lattice import compress_density, sample_lattice
from portrait_backend.mesh.simplify import simplify
from portrait_backend.mesh.unwrap import unwrap
from portrait_backend.mesh.views import ProjectedView
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import FINE_SAMPLES, SAMPLES, DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import render, render_dense
from portrait_backend.refinement.noise_resampling import ANYWHERE, anchor_noise


@dataclass(frozen=True)
class Scale:
    """Sizes: small ones say the same about ratios of like work; `full` are those that the aims are about."""

    strip: int
    """Rows of the 512 px image that are rendered; the pixels are those of the whole image."""
    truth: int
    """Pixels of the images whose agreement is measured."""
    lattice: int
    faces: int
    texture: int
    repeats: int


QUICK = Scale(strip=32, truth=48, lattice=96, faces=8000, texture=512, repeats=1)
FULL = Scale(strip=32, truth=128, lattice=256, faces=100000, texture=2048, repeats=3)


def renderer(head: Head, scale: Scale) -> list[Row]:
    """Forward + backward of an image from a known lattice against dense sampling (48 + 48), and pictures against the same."""
    coarse = DensityGrid.build(head)
    fine = coarse.refined(head)
    ways = {
        f"{SAMPLES} samples, lattice 96": partial(render, grid=coarse, samples=SAMPLES),
        f"{FINE_SAMPLES} samples, lattice 192": partial(render, grid=fine, samples=FINE_SAMPLES),
    }
    cameras = [Camera.orbit(azimuth, pitch, scale.truth) for azimuth, pitch in VIEWS]
    with torch.no_grad():
        truth = [render_dense(head, c, coarse=128, fine=128).rgb for c in cameras]
        least = {name: min(map(psnr, (draw(head, c).rgb for c in cameras), truth)) for name, draw in ways.items()}
        dense = min(map(psnr, (render_dense(head, c).rgb for c in cameras), truth))
        pictures = min(map(psnr, (head.picture(c).rgb for c in cameras), truth))
    rows, leaves = [], leaves_of(head)
    for size in (128, 512):
        view = Camera.orbit(*VIEWS[1], size)
        camera = strip(view, scale.strip if size == 512 else max(scale.strip * 2, 16))
        steps = [*(partial(step, head, camera, draw, leaves) for draw in ways.values()), partial(dense_step, head, camera, leaves)]
        seconds = interleaved(steps, scale.repeats)
        for (name, _), ours in zip(ways.items(), seconds, strict=False):
            agreement = f"{least[name]:.1f} dB to 128 + 128 samples; the reference's own {dense:.1f}"
            met = seconds[-1] / ours >= 25 and least[name] >= min(42, dense)
            work = f"forward + backward, {camera.height} rows of {size} px, {name}"
            rows.append(Row(work, "dense 48 + 48", ours, seconds[-1], agreement, "25x at 42 dB", met))
        with torch.no_grad():
            ours, theirs = interleaved([partial(head.picture, camera), partial(render_dense, head, camera)], scale.repeats)
        agreement = f"{pictures:.1f} dB; the reference's own {dense:.1f}"
        met = theirs / ours >= 25
        rows.append(Row(f"picture, {camera.height} rows of {size} px", "dense 48 + 48", ours, theirs, agreement, "25x", met))
    builds = interleaved([lambda: DensityGrid.build(head), lambda: coarse.refined(head)], 1)
    share = f"once in {REBUILD} steps of a fit"
    rows.append(Row("lattice 96", "lattice 192 on top", builds[0], builds[1], share, "", True))
    return rows


def strip(camera: Camera, rows: int) -> Camera:
    """Return the camera of the middle rows of an image."""
    intrinsics = camera.intrinsics.clone()
    intrinsics[1, 2] -= (camera.height - rows) // 2
    return replace(camera, intrinsics=intrinsics, height=rows)


def splatting(head: Head, scale: Scale) -> list[Row]:
    """Nearest points of a splat against the loop over points and pixels that one writes first, and against PyTorch3D where it is."""
    views = [sphere(azimuth, NAIVE_SIZE) for azimuth in (0, 30)]
    pixels, z, keep = carried(views[0], views[1], Culling())

    def ours(backend: str = "torch") -> Tensor:
        found = splat_points(pixels, z, keep, NAIVE_SIZE, NAIVE_SIZE, radius=1.5, backend=backend)  # type: ignore[arg-type]
        return found.index[0, :, :, 0]

    loop = partial(naive, pixels[0], z[0], keep[0], NAIVE_SIZE, 1.5)
    same = bool(torch.equal(ours(), loop()))
    seconds = interleaved([ours, loop], scale.repeats)
    rows = [Row(f"splat, {NAIVE_SIZE} px", "loop over points", *seconds, "the same points" if same else "DIFFER", "3x", same)]
    if has_pytorch3d():
        same = bool(torch.equal(ours(), ours("pytorch3d")))
        seconds = interleaved([ours, partial(ours, "pytorch3d")], scale.repeats)
        rows.append(Row(f"splat, {NAIVE_SIZE} px", "PyTorch3D", *seconds, "the same points" if same else "DIFFER", "3x", same))
    return [replace(row, met=row.met and (row.ratio or 0) >= 3) for row in rows]


def noise_warp(head: Head, scale: Scale) -> list[Row]:
    """Carry a driver's noise into a target view against a loop over its cells; the voids' fresh noise is left out of the agreement."""
    driver, target = sphere(0, 256), sphere(30, 256)
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = partial(anchor_noise, noise, driver, target, torch.Generator().manual_seed(1))
    loop = partial(_warp_in_a_loop, noise, driver, target)
    known = loop()
    error = float((ours() - known).abs().nan_to_num(0).max())
    seconds = interleaved([ours, loop], max(3, scale.repeats))
    row = Row("noise warp, 64 x 64 x 4", "loop over cells", *seconds, f"largest difference {error:.0e}", "3x", error < 1e-5)
    return [replace(row, met=row.met and (row.ratio or 0) >= 3)]


def _warp_in_a_loop(noise: Tensor, driver: SurfaceView, target: SurfaceView) -> Tensor:
    """Return Eq. 13 by a loop, nan where nothing falls."""
    size = noise.shape[-1]
    pixels, _, keep = carried(driver.shrunk(size), target.shrunk(size), ANYWHERE)
    total, count = np.zeros((4, size, size)), np.zeros((size, size))
    for n in range(size * size):
        x, y = int(np.floor(float(pixels[0, n, 0]))), int(np.floor(float(pixels[0, n, 1])))
        if bool(keep[0, n]) and 0 <= x < size and 0 <= y < size:
            count[y, x] += 1
            for c in range(4):
                total[c, y, x] += float(noise[0, c, n // size, n % size])
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(total / np.sqrt(count)).float()[None]


def marching_cubes(head: Head, scale: Scale) -> list[Row]:
    """Sample the lattice of marching cubes near the surface only against everywhere; the signs, which decide the mesh, must agree."""
    n = scale.lattice
    axis = torch.linspace(-head.half_extent, head.half_extent, n + 1)

    @torch.no_grad()
    def everywhere() -> Tensor:
        slices = []
        for x in axis:
            points = torch.cartesian_prod(x[None], axis, axis)
            slices.append(compress_density(head.density(points), head.surface_density, head.mesh_level).view(n + 1, n + 1))
        return torch.stack(slices)

    ours = partial(sample_lattice, head, n, cpu_context())
    wrong = int(((ours() > 0) != (everywhere() > 0)).sum())
    seconds = interleaved([ours, everywhere], 1)
    work, agreement = f"lattice of {n}^3 cells for marching cubes", f"{wrong} of {(n + 1) ** 3} signs differ"
    rows = [Row(work, "evaluated everywhere", *seconds, agreement, "3x", wrong == 0 and seconds[1] >= 3 * seconds[0])]
    (whole,) = interleaved([partial(extract_mesh, head, n, cpu_context())], 1)
    return [*rows, Row(f"mesh from {n}^3 cells, lattice included", "-", whole, None, "-", "", True)]


def unwrap_and_bake(head: Head, scale: Scale) -> list[Row]:
    """Unwrap a head against xatlas's own charts (capped at 8000 faces: its time grows with their square), then bake it with a photo."""
    vertices, faces = extract_mesh(head, min(320, max(96, scale.lattice)), cpu_context())
    small = simplify(vertices, faces, min(8000, scale.faces))
    theirs = partial(xatlas.parametrize, small[0].astype(np.float32), small[1].astype(np.uint32))
    seconds = interleaved([partial(unwrap, *small, scale.texture, cpu_context()), theirs], 1)
    rows = [Row(f"unwrap, {len(small[1])} faces", "xatlas's charts", *seconds, "-", "", True)]
    vertices, faces = simplify(vertices, faces, scale.faces)
    camera = Camera.orbit(0, 0, 512)
    seen = head.picture(camera)
    photo = ProjectedView((seen.rgb / seen.alpha.clamp_min(1e-6)[..., None]).clamp(0, 1), seen.alpha, torch.ones(512, 512), camera)

    def both() -> None:
        surface = Surface(vertices, faces, unwrap(vertices, faces, scale.texture, cpu_context()))
        bake_texture(surface, head, [photo], scale.texture, cpu_context())

    (ours,) = interleaved([both], 1)
    work = f"unwrap and bake, {len(faces)} faces, {scale.texture} texels a side"
    return [*rows, Row(work, "-", ours, None, "-", "10 s on 2 cores", ours <= 20)]


def previews(head: Head, scale: Scale) -> list[Row]:
    """Measure what the previews of a draft cost, of its own photo."""
    cost = preview_cost()
    share = cost.previews / cost.job
    found = f"{100 * share:.1f} % of the job; {cost.count} previews, {cost.bytes / 1000:.0f} kB"
    return [Row("previews of a draft", "the job with them", cost.previews, cost.job, found, "less than 3 %", share < 0.03)]


ENTRIES: dict[str, Callable[[Head, Scale], list[Row]]] = {
    "renderer": renderer,
    "splatting": splatting,
    "noise": noise_warp,
    "marching": marching_cubes,
    "unwrap": unwrap_and_bake,
    "previews": previews,
}


def run(names: Sequence[str], head: Head, scale: Scale) -> list[Row]:
    """Run entries one after the other."""
    return [row for name in names for row in ENTRIES[name](head, scale)]
