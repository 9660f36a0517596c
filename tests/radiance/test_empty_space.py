"""How far rays may jump."""

from __future__ import annotations

import pytest
import torch

from portrait_backend.radiance.empty_space import MOST, blocks_near, clearance


def test_a_block_is_near_a_cell_in_it_or_beside_it() -> None:
    cells = torch.zeros(12, 12, 12, dtype=torch.bool)
    cells[4, 5, 7] = True  # on the border of the middle block along z and x
    near = blocks_near(cells, 4).nonzero().tolist()
    assert near == [[0, 1, 1], [0, 1, 2], [1, 1, 1], [1, 1, 2]]
    assert blocks_near(cells[:11, :11, :11], 4).sum() == 27, "cells of their own where no block fits"


@pytest.mark.parametrize("seed", range(3))
def test_the_cube_within_the_clearance_is_empty_and_no_larger_one_is(seed: int) -> None:
    occupied = torch.rand(9, 9, 9, generator=torch.Generator().manual_seed(seed)) > 0.99
    occupied[0, 0, 0] = True
    place = occupied.nonzero()
    everywhere = torch.cartesian_prod(*3 * [torch.arange(9)])
    nearest = (everywhere[:, None] - place).abs().amax(-1).amin(1)
    assert torch.equal(clearance(occupied).long().flatten(), nearest)


def test_nothing_anywhere_is_as_far_as_can_be() -> None:
    assert clearance(torch.zeros(4, 4, 4, dtype=torch.bool)).unique().tolist() == [MOST]
