"""Windows cover every pixel, and sums over blocks and windows are those of a direct loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer, exact_window_scores, prepare_image
from monai_kwtl.windows.grid import WindowGrid, rectangle_sums, window_starts

quick = settings(deadline=None, database=None, max_examples=200)
sides = st.integers(1, 90)
SHAPES = [
    (1, 1, 4, 3),
    (5, 90, 8, 3),
    (37, 61, 8, 8),
    (37, 61, 8, 13),
    (64, 50, 16, 5),
    (33, 33, 64, 7),
    (20, 41, 7, 1),
]


@given(st.integers(1, 400), st.integers(1, 120), st.integers(1, 150))
@quick
def test_starts_cover_the_axis_in_order_from_edge_to_edge(length, window, step):
    starts = window_starts(length, window, step)
    size = min(window, length)
    assert starts[0] == 0 and starts[-1] == length - size
    assert starts.dtype == np.int64 and (np.diff(starts) > 0).all()
    assert set(starts[:-1] % step) <= {0}
    if step <= window:
        covered = np.zeros(length, dtype=bool)
        for start in starts:
            covered[start : start + size] = True
        assert covered.all()


@given(st.integers(1, 400), st.integers(1, 120), st.integers(1, 120))
@quick
def test_last_window_is_moved_to_the_edge_and_not_added_unless_pixels_would_be_lost(length, window, step):
    if length <= window or step > window:
        return
    regular = [start for start in range(0, length, step) if start + window <= length]
    last = length - window
    moved = [*regular[:-1], last]
    lost = len(moved) > 1 and moved[-1] - moved[-2] > window or moved[0] != 0
    assert window_starts(length, window, step).tolist() == ([*regular, last] if lost else moved)


@pytest.mark.parametrize(("size", "step", "count"), [(1024, 30, 676), (512, 28, 100), (256, 30, 1), (200, 30, 1)])
def test_number_of_windows_is_that_of_the_paper(size, step, count):
    assert len(WindowGrid(size, size, window=256, step=step)) == count


def test_an_axis_barely_longer_than_the_window_has_two():
    assert window_starts(257, 256, 30).tolist() == [0, 1]
    assert window_starts(256, 256, 30).tolist() == [0]
    assert window_starts(286, 256, 30).tolist() == [0, 30]
    assert window_starts(287, 256, 30).tolist() == [0, 31]


def test_a_step_beyond_the_window_leaves_gaps_between_but_ends_at_the_edge():
    assert window_starts(100, 10, 40).tolist() == [0, 40, 80, 90]


@pytest.mark.parametrize("name", ["height", "width", "window", "step"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "8", True, None, float("nan")])
def test_sizes_that_are_no_positive_whole_numbers_are_refused(name, value):
    with pytest.raises(KWTLError, match=f"^{name} must be a whole number"):
        WindowGrid(**({"height": 9, "width": 9, "window": 4, "step": 2} | {name: value}))


@pytest.mark.parametrize(("height", "width", "window", "step"), SHAPES)
def test_windows_are_listed_row_by_row(height, width, window, step):
    grid = WindowGrid(height, width, window, step)
    rows, columns = window_starts(height, window, step), window_starts(width, window, step)
    assert list(zip(grid.y.tolist(), grid.x.tolist(), strict=True)) == [(y, x) for y in rows for x in columns]
    assert len(grid) == len(rows) * len(columns)
    assert grid.size == (min(window, height), min(window, width))


@pytest.mark.parametrize(("height", "width", "window", "step"), SHAPES)
def test_blocks_are_the_pieces_that_window_edges_cut(height, width, window, step):
    grid = WindowGrid(height, width, window, step)
    membership = np.zeros((len(grid), height, width), dtype=bool)
    for index, (y, x) in enumerate(zip(grid.y, grid.x, strict=True)):
        membership[index, y : y + grid.size[0], x : x + grid.size[1]] = True
    areas = grid.block_areas()
    assert areas.sum() == height * width
    for i, (top, bottom) in enumerate(zip(grid.row_edges, grid.row_edges[1:], strict=False)):
        for j, (left, right) in enumerate(zip(grid.column_edges, grid.column_edges[1:], strict=False)):
            piece = membership[:, top:bottom, left:right]
            assert areas[i, j] == piece[0].size
            assert (piece == piece[:, :1, :1]).all()  # a window holds all of a block or nothing


@given(sides, sides, st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
@quick
def test_sums_equal_a_loop(height, width, window, step, seed):
    grid = WindowGrid(height, width, window, step)
    values = np.random.default_rng(seed).exponential(size=(height, width)).astype(np.float32)
    exact = values.astype(np.float64)
    blocks = grid.block_sums(values)
    assert blocks.dtype == np.float64
    for i, top in enumerate(grid.row_edges[:-1]):
        for j, left in enumerate(grid.column_edges[:-1]):
            piece = exact[top : grid.row_edges[i + 1], left : grid.column_edges[j + 1]]
            assert blocks[i, j] == pytest.approx(piece.sum(), rel=1e-9)
    h, w = grid.size
    sums = np.array([exact[y : y + h, x : x + w].sum() for y, x in zip(grid.y, grid.x, strict=True)])
    np.testing.assert_allclose(grid.window_sums(blocks).reshape(-1), sums, rtol=1e-9)
    np.testing.assert_allclose(grid.window_means(blocks), sums / (h * w), rtol=1e-9)


def test_sums_of_a_large_map_keep_nine_digits():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(1024, 1024)).astype(np.float32)
    values[:300, :300] *= 1e4  # what an integral image carries along to windows that are far smaller
    grid = WindowGrid(1024, 1024, 256, 30)
    means = grid.window_means(grid.block_sums(values))
    direct = [values[y : y + 256, x : x + 256].mean(dtype=np.float64) for y, x in zip(grid.y, grid.x, strict=True)]
    np.testing.assert_allclose(means, direct, rtol=1e-9)


def test_several_maps_at_once():
    grid = WindowGrid(23, 31, 8, 5)
    values = np.random.default_rng(0).random((2, 3, 23, 31))
    together = grid.window_means(grid.block_sums(values))
    assert together.shape == (2, 3, len(grid))
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(together[index], grid.window_means(grid.block_sums(values[index])), rtol=1e-12)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int32, np.float16])
def test_maps_of_any_real_type_are_summed_in_float64(kind):
    grid = WindowGrid(60, 50, 40, 7)
    values = (np.random.default_rng(0).random((60, 50)) * 200).astype(kind)
    blocks = grid.block_sums(values)
    assert blocks.dtype == np.float64
    assert blocks.sum() == pytest.approx(values.sum(dtype=np.float64), rel=1e-12)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the grid is for"):
        WindowGrid(10, 12).block_sums(np.zeros((12, 10)))


def test_rectangle_sums_equal_a_loop():
    blocks = np.random.default_rng(0).random((7, 9))
    top, bottom, left, right = np.array([0, 2, 6]), np.array([3, 7, 7]), np.array([0, 4]), np.array([9, 5])
    expected = [
        [blocks[t:b, le:r].sum() for le, r in zip(left, right, strict=True)] for t, b in zip(top, bottom, strict=True)
    ]
    np.testing.assert_allclose(rectangle_sums(blocks, (top, bottom, left, right)), expected, rtol=1e-12)


# ---- exact scores and the inferer


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("height", "width"), [(33, 47), (16, 16), (10, 50)])
def test_exact_scores_equal_a_loop(batch_size, height, width):
    image = torch.rand(1, height, width, generator=torch.Generator().manual_seed(0)) * 255
    grid, sizes = WindowGrid(height, width, 16, 5), []

    def score(crops):
        sizes.append(len(crops))
        return crops - crops.amin((2, 3), keepdim=True)  # a score that depends on its own window only

    got = exact_window_scores(image, grid, score, batch_size=batch_size)
    h, w = grid.size
    crops = [image[0, y : y + h, x : x + w].double().numpy() for y, x in zip(grid.y, grid.x, strict=True)]
    np.testing.assert_allclose(got, [crop.mean() - crop.min() for crop in crops], rtol=1e-6)
    assert got.dtype == np.float64 and sum(sizes) == len(grid) and max(sizes) <= batch_size


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = FCRN(features=(4, 8, 8, 16)).eval()
    nn.init.normal_(network.head.weight, std=0.3)
    return network


def grey(height=61, width=83, seed=0):
    pixels = np.random.default_rng(seed).integers(20, 200, (height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)[None, None]


def test_dense_scores_are_means_of_the_images_own_map(network):
    scorer, image = ScoreMapInferer(), grey()
    out = WindowScoreInferer(scorer, window=32, step=9)(image, network)
    maps = scorer(image, network)
    grid = WindowGrid(61, 83, 32, 9)
    assert out["grid"] == grid
    for name, values in (("window_scores", maps["score"]), ("foreground", torch.sigmoid(maps["logits"]))):
        values = values[0, 0].double().numpy()
        direct = [values[y : y + 32, x : x + 32].mean() for y, x in zip(grid.y, grid.x, strict=True)]
        np.testing.assert_allclose(out[name], direct, rtol=1e-7)  # rounded alike but for the last bit
    np.testing.assert_allclose(
        out["cells"].sum(), out["score"].sum(dtype=np.float64), rtol=1e-7
    )  # float32 maps, rounded alike but for the last bit
    assert out["score"].shape == out["probability"].shape == (61, 83)
    assert out["score"].dtype == out["probability"].dtype == np.float32
    assert 0 <= out["probability"].min() and out["probability"].max() <= 1


def test_exact_scores_are_those_of_each_window_by_itself(network):
    scorer, image = ScoreMapInferer(), grey()
    out = WindowScoreInferer(scorer, window=32, step=20, exact=True, batch_size=3)(image, network)
    grid = out["grid"]
    alone = [
        scorer(image[..., y : y + 32, x : x + 32], network)["score"].double().mean().item()
        for y, x in zip(grid.y, grid.x, strict=True)
    ]
    np.testing.assert_allclose(out["window_scores"], alone, rtol=1e-4)
    assert out["cells"] is None
    dense = WindowScoreInferer(scorer, window=32, step=20)(image, network)
    assert not np.allclose(dense["window_scores"], alone, rtol=1e-3)


def test_an_image_smaller_than_the_window_is_one_window_and_exact_is_dense(network):
    scorer, image = ScoreMapInferer(), grey(21, 30)
    dense = WindowScoreInferer(scorer)(image, network)
    exact = WindowScoreInferer(scorer, exact=True)(image, network)
    assert len(dense["grid"]) == 1 and dense["grid"].size == (21, 30)
    np.testing.assert_allclose(dense["window_scores"], exact["window_scores"], rtol=1e-6)


def test_bad_sizes_are_refused_before_any_work():
    with pytest.raises(KWTLError, match="step"):
        WindowScoreInferer(ScoreMapInferer(), step=0)
    with pytest.raises(KWTLError, match="window"):
        WindowScoreInferer(ScoreMapInferer(), window=2.5)


def test_an_item_becomes_a_batch_of_one_without_a_label():
    batch, label = prepare_image({"image": grey()[0]}, torch.device("cpu"), non_blocking=False)
    assert batch.shape == (1, 1, 61, 83) and label is None
