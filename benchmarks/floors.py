"""What the stages must cost at least on this thread: multiply-adds over matmul speed, bytes over memory bandwidth, beside what they take.

    python3 -m benchmarks.floors [--head out/head.safetensors]

Counted are the networks' products, the texels that tri-planes are read from (8 of 32 channels on each of 3 planes) and lattices; not the
placing of samples, triangles, files. Speed and bandwidth are measured in the same run, one thread, processor seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from portrait_backend.context import cpu_context
from portrait_backend.devices import keep_threads
from portrait_backend.mesh.bake import Surface, bake_texture
from portrait_backend.mesh.extract import extract_mesh
from portrait_backend.mesh.simplify import simplify
from portrait_backend.mesh.unwrap import unwrap
from portrait_backend.painting.surface import silhouette
from portrait_backend.prior.fit import ANYWHERE, NEAR, RAYS, ShapeField
from portrait_backend.prior.starter import starter_network
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.decoder import Decoder
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.picture import draw

TEXELS = 3 * 8
"""Texels that one point of a tri-plane with depth reads."""
CUBES, FACES, TEXTURE = 192, 8000, 512


@dataclass(frozen=True)
class Speed:
    """Of one thread: multiply-adds and bytes per second."""

    products: float
    bandwidth: float


@dataclass(frozen=True)
class Floor:
    """Multiply-adds and bytes that work can't do without, and the processor seconds that it took."""

    work: str
    products: float
    bytes: float
    seconds: float

    def least(self, speed: Speed) -> float:
        """Seconds: the products or the bytes, whichever take longer."""
        return max(self.products / speed.products, self.bytes / speed.bandwidth)


class CountedDecoder(Decoder):
    """A decoder that counts its products and its points."""

    products, points = 0, 0

    def forward(self, features: Tensor, outputs: int = 33) -> tuple[Tensor, Tensor]:
        """Decode, as the decoder that it was made of."""
        count, (hidden, channels) = features.numel() // features.shape[-1], self.hidden1.weight.shape
        self.points += count
        self.products += count * (channels * hidden + hidden * hidden + hidden * outputs)
        return super().forward(features, outputs)


def counted(head: Head) -> tuple[Head, CountedDecoder]:
    """Return the head with a decoder that counts."""
    decoder = CountedDecoder(head.geometry.channels, head.decoder.hidden1.out_features)
    decoder.load_state_dict(head.decoder.state_dict())
    return replace(head, decoder=decoder.requires_grad_(False), _made={}), decoder


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call that was warmed up by one before."""
    call()
    start = time.process_time()
    call()
    return time.process_time() - start


def measured_speed() -> Speed:
    """Measure a product of 1024 x 1024 matrices and a copy of 256 MB (read and written)."""
    a, big = torch.randn(1024, 1024), torch.zeros(64 * 2**20)
    target = torch.empty_like(big)
    products = 10 * 1024**3 / seconds(lambda: [a @ a for _ in range(10)])
    return Speed(products, 4 * 2 * big.numel() * 4 / seconds(lambda: [target.copy_(big) for _ in range(4)]))


def of_points(work: str, head: Head, call: Callable[[Head], object], planes: int = 1, passes: int = 1, extra: float = 0) -> Floor:
    """Return the floor of work that asks a field at points: `planes` tri-planes are read, in `passes` passes; `extra` bytes besides."""
    head, decoder = counted(head)
    took = seconds(lambda: call(head))
    points, channels = decoder.points / 2, head.geometry.channels  # both calls were counted
    reads = points * TEXELS * channels * planes
    return Floor(work, passes * (decoder.products / 2 + reads), passes * 4 * reads + extra, took)


def fit_step(head: Head, grid: DensityGrid) -> None:
    """Do what one step of the fit of the shape does, without the regulariser of its planes."""
    field = ShapeField(head)
    origin, directions = Camera.orbit(0, 0, round(RAYS**0.5)).rays()
    alpha, _ = silhouette(field, origin, directions, grid)
    points = (torch.rand(NEAR + ANYWHERE, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1) * head.half_extent
    (alpha.sum() + field.raw(points).sum()).backward()


def floors(head: Head) -> list[Floor]:
    """Measure the stages."""
    from torch.utils.flop_counter import FlopCounterMode

    encoder = starter_network().encoder.eval()
    photo = torch.zeros(1, encoder.stem.in_channels // 4, 128, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(photo)
    with torch.no_grad():
        took = seconds(lambda: encoder(photo))
    weights = 4.0 * sum(p.numel() for p in encoder.parameters())
    rows = [Floor("encoder", counter.get_total_flops() / 2, weights, took)]
    coarse = DensityGrid.build(head, 80)
    rows.append(of_points("step of the fit", head, lambda h: fit_step(h, coarse), planes=2, passes=3))
    grid_bytes = 4.0 * (CUBES + 1) ** 3
    lattice, camera = head.picture_lattice(), Camera.orbit(0, 0, 512)
    rows.append(of_points("picture of 512 px", head, lambda h: draw(h, camera, lattice), extra=4.0 * lattice.roots.numel()))
    rows.append(of_points(f"mesh from {CUBES}^3 cells", head, lambda h: extract_mesh(h, CUBES, cpu_context()), extra=2 * grid_bytes))
    vertices, faces = simplify(*extract_mesh(head, 96, cpu_context()), FACES)
    surface = Surface(vertices, faces, unwrap(vertices, faces, TEXTURE, cpu_context()))
    rows.append(of_points(f"bake, {TEXTURE} texels a side", head, lambda h: bake_texture(surface, h, [], TEXTURE, cpu_context())))
    return rows


def table(rows: list[Floor], speed: Speed) -> str:
    """Return rows as a markdown table."""
    lines = ["| work | multiply-adds, 10^9 | MB | least, s | takes, s | times the least |", "|---|---|---|---|---|---|"]
    for row in rows:
        least = row.least(speed)
        columns = (row.products / 1e9, row.bytes / 1e6, least, row.seconds, row.seconds / least)
        lines.append(f"| {row.work} | {' | '.join(f'{value:.3g}' for value in columns)} |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", type=Path, help="a head.safetensors of `generate`; default: an analytic ellipsoid of the starter's size")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_threads()
    speed = measured_speed()
    print(f"one thread: {speed.products / 1e9:.1f} * 10^9 multiply-adds and {speed.bandwidth / 1e9:.1f} GB a second\n")
    print(table(floors(Head.load(given.head) if given.head else ellipsoid_head(depth=2, size=128)), speed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
