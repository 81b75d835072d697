"""Polygons to masks and back, against shapely, brute force and counting."""

from __future__ import annotations

import numpy as np
import shapely

from monai_kwtl.exchange.polygons import paint_rings, ring_arrays


def rasterize(polygons, shape):
    """Outlines with their holes, painted one after the other."""
    mask = np.zeros(shape, dtype=bool)
    drawn = [paint_rings(mask, ring_arrays(rings)) for rings in polygons]
    assert any(drawn) == mask.any()
    return mask


def by_shapely(polygons, shape):
    """Every pixel centre asked by itself; no centre may lie on an edge."""
    rows, columns = np.indices(shape) + 0.5
    mask = np.zeros(shape, dtype=bool)
    for outline, *holes in polygons:
        mask |= shapely.contains_xy(shapely.Polygon(outline, holes), columns, rows)
    return mask


def random_star(rng, shape, points=9):
    """A polygon without self-crossings: points at rising angles around a centre."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(2, max(shape) / 2, points)
    centre = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
    return np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1)


def test_pixels_are_those_whose_centres_shapely_finds_inside(rng):
    shape = (37, 53)
    for _ in range(100):
        polygons = [[random_star(rng, shape)] for _ in range(3)]
        assert np.array_equal(rasterize(polygons, shape), by_shapely(polygons, shape))


def test_holes_are_left_out(rng):
    outline, hole = [[2.1, 2.2], [40.3, 3.1], [38.27, 30.43], [3.3, 28.1]], [[10.1, 10.2], [20.3, 11.1], [15.2, 20.3]]
    mask = rasterize([[outline, hole]], (33, 47))
    assert np.array_equal(mask, by_shapely([[outline, hole]], (33, 47)))
    assert not mask[13, 15] and mask[5, 5]


def test_a_box_along_pixel_edges_is_that_box_and_not_its_border():
    mask = rasterize([[[[3, 2], [9, 2], [9, 7], [3, 7]]]], (11, 17))
    expected = np.zeros((11, 17), dtype=bool)
    expected[2:7, 3:9] = True
    assert np.array_equal(mask, expected)


def test_x_is_the_column_and_y_the_row():
    mask = rasterize([[[[12, 1], [14, 1], [14, 2], [12, 2]]]], (5, 20))
    assert np.argwhere(mask).tolist() == [[1, 12], [1, 13]]


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_no_gap(rng):
    # corners on pixel centres, where every rule of thumb goes wrong
    for _ in range(50):
        middle = np.stack([rng.integers(1, 19, 6) + 0.5, np.sort(rng.choice(24, 6, replace=False)) + 0.5], axis=1)
        middle[0, 1], middle[-1, 1] = 0, 25
        left = [[0, 0], *middle.tolist(), [0, 25]]
        right = [[20, 0], [20, 25], *middle[::-1].tolist()]
        count = rasterize([[left]], (25, 20)).astype(int) + rasterize([[right]], (25, 20))
        assert (count == 1).all()


def test_the_direction_and_the_closing_point_make_no_difference(rng):
    star = random_star(rng, (30, 41))
    mask = rasterize([[star]], (30, 41))
    assert np.array_equal(mask, rasterize([[star[::-1]]], (30, 41)))
    assert np.array_equal(mask, rasterize([[np.concatenate([star, star[:1]])]], (30, 41)))


def test_what_leaves_the_image_is_cut_off():
    assert rasterize([[[[-50, -50], [60, -50], [60, 60], [-50, 60]]]], (7, 9)).all()
    assert rasterize([[[[20, 1], [30, 1], [30, 5]]]], (7, 9)).sum() == 0
    assert rasterize([[[[-20, 1], [-3, 1], [-3, 5]]]], (7, 9)).sum() == 0


def test_overlapping_polygons_are_a_union():
    square = [[1, 1], [6, 1], [6, 6], [1, 6]]
    assert np.array_equal(rasterize([[square], [square]], (8, 8)), rasterize([[square]], (8, 8)))


def test_no_polygon_is_an_empty_mask():
    assert rasterize([], (4, 6)).shape == (4, 6) and not rasterize([], (4, 6)).any()
