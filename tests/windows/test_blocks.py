"""What is reduced a rectangle at a time is what is reduced at once."""

from __future__ import annotations

import numpy as np
import pytest

from monai_kwtl.windows.blocks import BlockReduction, window_extremes
from monai_kwtl.windows.grid import WindowGrid

GRIDS = [(61, 83, 16, 7), (40, 97, 32, 50), (7, 5, 16, 3), (64, 64, 16, 16), (1, 30, 8, 3), (33, 20, 1, 1)]


def rectangles(height, width, rows, columns):
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("part", [(1000, 1000), (9, 11), (1, 1000), (1000, 1), (16, 8)])
def test_sums_of_parts_are_the_sums_of_the_map(rng, grid, part):
    grid = WindowGrid(*grid)
    values = rng.random((grid.height, grid.width)).astype(np.float32)
    sums = BlockReduction(grid)
    for rows, columns in rectangles(grid.height, grid.width, *part):
        sums.add(rows, columns, values[rows, columns])
    np.testing.assert_allclose(sums.blocks, grid.block_sums(values), rtol=1e-12)
    loop = [
        values[y : y + grid.size[0], x : x + grid.size[1]].astype(np.float64).mean()
        for y, x in zip(grid.y, grid.x, strict=True)
    ]
    np.testing.assert_allclose(grid.window_means(sums.blocks), loop, rtol=1e-10)


def test_a_whole_map_has_the_same_bits(rng):
    grid = WindowGrid(61, 83, 16, 7)
    values = rng.random((61, 83)).astype(np.float32)
    sums = BlockReduction(grid)
    sums.add(slice(0, 61), slice(0, 83), values)
    assert np.array_equal(sums.blocks, grid.block_sums(values))


@pytest.mark.parametrize("grid", GRIDS)
def test_extremes_of_windows_are_those_of_their_pixels(rng, grid):
    grid = WindowGrid(*grid)
    values = rng.integers(0, 256, (grid.height, grid.width), dtype=np.uint8)
    for operation, start in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        blocks = BlockReduction(grid, operation, start)
        for rows, columns in rectangles(grid.height, grid.width, 10, 13):
            blocks.add(rows, columns, values[rows, columns])
        loop = [
            operation.reduce(values[y : y + grid.size[0], x : x + grid.size[1]], axis=None)
            for y, x in zip(grid.y, grid.x, strict=True)
        ]
        assert np.array_equal(window_extremes(grid, blocks.blocks, operation), loop)
