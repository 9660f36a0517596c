"""The density lattice and the samples it proposes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid, box_interval, propose
from portrait_backend.radiance.grid_kernels import absorbed_share
from portrait_backend.radiance.head import Head

MakeField = Callable[..., Any]


def test_refining_gives_the_full_lattice_with_fewer_evaluations(make_sphere: MakeField) -> None:
    class Counted(make_sphere):  # type: ignore[misc, valid-type]
        evaluated = 0

        def density(self, points: torch.Tensor) -> torch.Tensor:
            Counted.evaluated += len(points)
            return super().density(points)

    full, refined = DensityGrid.build(make_sphere(), 64, refine=False), DensityGrid.build(Counted(), 64)
    assert torch.allclose(full.values, refined.values, atol=0.02 * full.values.max())
    assert Counted.evaluated < 64**3 / 3


def test_lookup_is_indexed_x_y_z(make_sphere: MakeField) -> None:
    grid = DensityGrid.build(make_sphere(0.1, centre=(0.3, -0.2, 0.1), sharpness=100.0), 48)
    looked = grid.lookup(torch.tensor([[0.3, -0.2, 0.1], [0.1, -0.2, 0.3], [-0.3, 0.2, -0.1]]))
    assert looked.tolist() == pytest.approx([1000, 0, 0], abs=5)


def test_lookup_interpolates_a_linear_density_exactly() -> None:
    centres = (torch.arange(16) + 0.5) / 16 - 0.5
    grid = DensityGrid.from_values(centres.view(1, 1, 16).expand(16, 16, 16) + 1, 0.5)
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) * 0.9 - 0.45
    assert torch.allclose(grid.lookup(points), points[:, 0] + 1, atol=1e-5)


def test_the_box_interval_from_outside_inside_and_behind() -> None:
    origins = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [2.0, 0.0, 2.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    near, far = box_interval(origins, directions, 0.5)
    assert near[:2].tolist() == pytest.approx([1.5, 0.0])
    assert far[:2].tolist() == pytest.approx([2.5, 0.5])
    assert (near >= far).tolist() == [False, False, True, True]


@pytest.mark.parametrize("stratified", [False, True])
def test_the_kernel_places_the_torch_samples(head: Head, stratified: bool) -> None:
    origin, directions = Camera.orbit(25, -10, 48).rays()
    kernel, plain = (
        propose(head.density_grid(), origin, directions, 9, generator=torch.Generator().manual_seed(1) if stratified else None, compiled=c)
        for c in (True, False)
    )
    assert torch.equal(kernel.index, plain.index)
    same = ((kernel.t - plain.t).abs().amax(-1) < 1e-4) & ((kernel.gap - plain.gap).abs().amax(-1) < 1e-4)
    assert same.float().mean() > 0.99  # at a threshold, rounding may end a ray one step earlier
    assert (kernel.t - plain.t).abs().max() < 0.02


def test_samples_ascend_and_their_gaps_sum_to_the_matter(head: Head) -> None:
    origin, directions = Camera.orbit(25, -10, 48).rays()
    placed = propose(head.density_grid(), origin, directions, 12)
    assert (placed.t.diff(dim=-1) >= 0).all()
    assert (placed.gap >= 0).all()
    assert (placed.gap.sum(-1) < 0.75).all()  # never the empty stretch before the head


def test_rays_that_hit_nothing_are_left_out_and_nothing_is_placed_behind_the_surface(make_sphere: MakeField) -> None:
    grid = DensityGrid.build(make_sphere(0.2))
    camera = Camera.orbit(0, 0, 33)
    origin, directions = camera.rays()
    placed = propose(grid, origin, directions, 8)
    assert 0.1 < len(placed.index) / len(directions) < 0.25  # the disc covers 17 %
    centre = placed.t[placed.index == 16 * 33 + 16][0]
    assert centre.min() > 2.5 - 0.05
    assert centre.max() < 2.5 + 0.05  # the far side, at 2.9, gets none


def test_two_surfaces_on_a_ray_both_get_samples_and_the_gap_between_them_none(make_sphere: MakeField) -> None:
    class Shells(make_sphere):  # type: ignore[misc, valid-type]
        """Two thin translucent sheets across z."""

        def density(self, points: torch.Tensor) -> torch.Tensor:
            return 20.0 * (((points[:, 2] - 0.3).abs() < 0.03) | ((points[:, 2] + 0.3).abs() < 0.03))

    origin, directions = Camera.orbit(0, 0, 3).rays()
    placed = propose(DensityGrid.build(Shells(), refine=False), origin, directions, 12)
    z = 2.7 - placed.t[4]
    assert ((z - 0.3).abs() < 0.08).sum() >= 4
    assert ((z + 0.3).abs() < 0.08).sum() >= 4
    assert ((z.abs() - 0.3).abs() < 0.08).all()
    assert placed.gap[4].sum() < 0.3


def test_samples_are_the_same_when_the_kernel_was_just_compiled_and_from_its_cache(tmp_path: Path) -> None:
    program = """
import hashlib, torch
from portrait_backend.radiance.analytic import ellipsoid_head
from portrait_backend.radiance.cameras import Camera
from portrait_backend.radiance.density_grid import DensityGrid, propose
found = propose(DensityGrid.build(ellipsoid_head(size=16), 48), *Camera.orbit(20, 5, 64).rays(), compiled=True)
print(hashlib.sha256(found.t.numpy().tobytes() + found.gap.numpy().tobytes()).hexdigest())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    made = [subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert list(tmp_path.rglob("grid_kernels.place_samples*.nbc")), "the second one came from the cache"
    assert made[0].stdout == made[1].stdout


def test_what_a_step_absorbs_is_exact_on_both_sides_of_the_change_of_formula() -> None:
    depths = np.concatenate([np.logspace(-7, 1, 200), [0.0299, 0.0301]]).astype(np.float32)
    found = np.array([absorbed_share(x) for x in depths])
    np.testing.assert_allclose(found, -np.expm1(-depths.astype(np.float64)), rtol=3e-6)
