"""Seconds and peak memory against the sizes of the work, each in a process of its own so that its peak is its own.

    python3 -m benchmarks.scaling [planes images views lattices workers]

An analytic ellipsoid, one thread; processor seconds, so that other work on the machine disturbs little. Peak memory
includes Python and torch (the row "nothing").
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PLANES, IMAGES, VIEWS, LATTICES, WORKERS = (64, 128, 256), (128, 256, 512), (1, 7, 13), (96, 128, 192, 256), (1, 2)
KINDS = {"nothing": (0,), "planes": PLANES, "images": IMAGES, "views": VIEWS, "lattices": LATTICES, "workers": WORKERS}
WHAT = {
    "nothing": "nothing",
    "planes": "forward + backward of 128 px, planes of {0} x {0}",
    "images": "a picture of {0} x {0} px",
    "views": "{} pictures of 256 px, lattices included",
    "lattices": "mesh from {}^3 cells",
    "workers": "batch of two photos with {} at a time (without a fit)",
}


def prepared(kind: str, size: int) -> Callable[[], object]:
    """Return the work of one cell of the table, everything that it needs loaded and compiled."""
    import torch

    from benchmarks.renderer import VIEWS as ANGLES
    from benchmarks.renderer import step
    from portrait_backend.context import cpu_context
    from portrait_backend.devices import keep_threads
    from portrait_backend.mesh.extract import extract_mesh
    from portrait_backend.radiance.analytic import ellipsoid_head
    from portrait_backend.radiance.cameras import Camera
    from portrait_backend.radiance.renderer import render

    torch.set_num_threads(1)
    keep_threads()
    head = ellipsoid_head(depth=2, size=size if kind == "planes" else 128)
    if kind == "planes":
        grid, camera = head.density_grid(), Camera.orbit(*ANGLES[1], 128)
        step(head, camera.resized(16), lambda h, c: render(h, c, grid=grid))
        return lambda: step(head, camera, lambda h, c: render(h, c, grid=grid))
    if kind == "images":
        head.picture(Camera.orbit(0, 0, 16))
        return lambda: head.picture(Camera.orbit(0, 0, size))
    if kind == "views":
        ellipsoid_head(depth=2, size=16).picture(Camera.orbit(0, 0, 16))
        return lambda: [head.picture(Camera.orbit(360 * n / size, 0, 256)) for n in range(size)]
    if kind == "lattices":
        extract_mesh(head, 16, cpu_context())
        return lambda: extract_mesh(head, size, cpu_context())
    return lambda: None


def batch(workers: int) -> None:
    """Make two heads with `workers` at a time."""
    photos = 2 * [Path(__file__).parent.parent / "examples" / "astronaut.png"]
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for n, photo in enumerate(photos):
            names.append(str(Path(folder, f"{n}.png")))
            Path(names[-1]).write_bytes(photo.read_bytes())
        command = [sys.executable, "-m", "portrait_backend", "batch", *names, "-o", f"{folder}/heads", "--jobs", str(workers)]
        subprocess.run(
            [*command, "--preset", "draft", "--prior-fit-steps", "0"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def measure(kind: str, size: int) -> dict[str, float]:
    """Do the work once: processor and wall seconds, and the peak memory in MB of the largest process."""
    work = (lambda: batch(size)) if kind == "workers" else prepared(kind, size)
    wall, processor = time.perf_counter(), _processor()
    work()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit / 1e6
    return {"processor": _processor() - processor, "wall": time.perf_counter() - wall, "peak": peak}


def _processor() -> float:
    """Processor seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def rows(kinds: list[str]) -> Iterator[str]:
    """Yield the lines of a markdown table."""
    yield "| work | processor, s | wall, s | peak memory, MB |"
    yield "|---|---|---|---|"
    for kind in kinds:
        for size in KINDS[kind]:
            command = [sys.executable, "-m", "benchmarks.scaling", "--one", kind, str(size)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            yield f"| {WHAT[kind].format(size)} | {found['processor']:.3g} | {found['wall']:.3g} | {found['peak']:.0f} |"


def main() -> int:
    """Print the table; it has no aims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIZE"), help="measure this alone, print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]))))
        return 0
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    for line in rows(given.kinds or list(KINDS)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
