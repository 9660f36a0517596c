"""Our paths stay faster than their references: ratios of processor time in one run, each at less than half of what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.comparison import interleaved
from benchmarks.entries import QUICK, noise_warp, splatting
from benchmarks.previews import Watch
from benchmarks.renderer import step
from portrait_backend.context import cpu_context
from portrait_backend.devices import keep_threads
from portrait_backend.mesh.lattice import sample_lattice
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid
from portrait_backend.radiance.head import Head
from portrait_backend.radiance.renderer import render, render_dense

REPEATS = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine count as processor time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_threads()  # numba's too
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def head() -> Head:
    return ellipsoid_head(depth=2, size=48)


def test_a_step_of_a_fit_against_dense_sampling(head: Head) -> None:
    grid, camera = DensityGrid.build(head), Camera.orbit(35, 10, 24)
    ours, dense = (partial(step, head, camera, draw) for draw in (partial(render, grid=grid), render_dense))
    ours(), dense()  # compile
    seconds = interleaved([ours, dense], REPEATS)
    assert seconds[1] > 4 * seconds[0], f"{seconds[1] / seconds[0]:.1f}x"


def test_pictures_against_dense_sampling(head: Head) -> None:
    camera = Camera.orbit(35, 10, 32)
    head.picture(camera)  # compile, and build the lattice

    @torch.no_grad()
    def dense() -> None:
        render_dense(head, camera)

    seconds = interleaved([partial(head.picture, camera), dense], REPEATS)
    assert seconds[1] > 8 * seconds[0], f"{seconds[1] / seconds[0]:.1f}x"


def test_the_lattice_of_the_mesh_against_evaluating_everywhere(head: Head) -> None:
    axis = torch.linspace(-head.half_extent, head.half_extent, 49)

    @torch.no_grad()
    def everywhere() -> None:
        for x in axis:
            head.density(torch.cartesian_prod(x[None], axis, axis))

    seconds = interleaved([partial(sample_lattice, head, 48, cpu_context()), everywhere], REPEATS)
    assert seconds[1] > 1.5 * seconds[0], f"{seconds[1] / seconds[0]:.1f}x"


@pytest.mark.parametrize(("entry", "least"), [(splatting, 6), (noise_warp, 4)])
def test_against_a_loop(head: Head, entry: object, least: float) -> None:
    row = entry(head, replace(QUICK, repeats=REPEATS))[0]  # type: ignore[operator]
    assert row.met and row.ratio > least, row


def test_a_preview_costs_what_lies_between_wish_and_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 4.0))
    watch = Watch()
    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.previews.time.process_time", lambda: next(clock))
        assert watch.wants_preview()
        assert watch.wants_preview(), "the engine asks again, and the clock goes on"
        watch.leave_out(0.5)
        watch.report("mesh", 0, 1, {}, b"a picture")
    assert (watch.seconds, watch.count, watch.bytes) == (2.5, 1, 9)
    assert not watch.wants_preview(), "so soon again"
    watch.report("mesh", 1, 1, {}, None)
    assert watch.seconds == 2.5
