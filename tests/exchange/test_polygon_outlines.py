"""Polygons and masks: pixel edges and centres, holes, hands that slip, against OpenCV-free brute force and shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as MatplotlibPath
from scipy import ndimage
from skimage.draw import disk

from monai_kwtl.exchange.polygons import Canvas, mask_polygons, number_objects, paint_rings, ring_arrays


def painted(geometry, shape, x=0, y=0):
    canvas = Canvas(*shape, x, y)
    parts = shapely.get_parts(geometry)
    assert canvas.paint([list(map(shapely.get_coordinates, shapely.get_rings(part))) for part in parts]) == (
        canvas.mask.any()
    )
    return canvas.mask


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 17))), st.integers(0, 9), st.integers(0, 9))
def test_any_mask_comes_back_pixel_by_pixel(mask, x, y):
    labels = number_objects(mask)
    polygons = mask_polygons(labels, x, y)
    assert len(polygons) == labels.max()
    assert all(polygon.is_valid and polygon.geom_type == "Polygon" for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    back = np.zeros(mask.shape, dtype=bool)
    for number, polygon in enumerate(polygons, start=1):
        assert np.array_equal(painted(polygon, mask.shape, x, y), labels == number)
        back |= painted(polygon, mask.shape, x, y)
    assert np.array_equal(back, mask)


def test_a_ring_keeps_its_hole():
    mask = np.zeros((21, 30), dtype=bool)
    mask[disk((10, 15), 9)] = True
    mask[disk((10, 15), 4)] = False
    (polygon,) = mask_polygons(number_objects(mask))
    assert len(polygon.interiors) == 1
    assert np.array_equal(painted(polygon, mask.shape), mask)


def test_straight_edges_have_no_points_in_between():
    mask = np.ones((40, 70), dtype=bool)
    (polygon,) = mask_polygons(number_objects(mask))
    assert len(polygon.exterior.coords) == 5
    assert polygon.equals(shapely.box(0, 0, 70, 40))


def test_pixels_count_by_their_centres_as_matplotlib_has_it():
    rng = np.random.default_rng(5)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radius = rng.uniform(5, 20, 9)
        points = np.stack([25.3 + radius * np.cos(angles), 21.7 + radius * np.sin(angles)], axis=1)
        columns, rows = np.meshgrid(np.arange(51) + 0.5, np.arange(43) + 0.5)
        centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
        expected = MatplotlibPath([*points, points[0]], closed=True).contains_points(centres).reshape(43, 51)
        assert np.array_equal(painted(shapely.Polygon(points), (43, 51)), expected)


def drawn(rings, shape):
    mask = np.zeros(shape, dtype=bool)
    assert paint_rings(mask, ring_arrays(rings)) == mask.any()
    return mask


def test_a_crossed_outline_becomes_what_it_encloses():
    bow = drawn([[[0, 0], [8, 8.2], [8, 0], [0, 8.2]]], (9, 9))
    assert bow.sum() == 32 and bow[1:7, [0, 7]].all() and not bow[[0, 7], 1:7].any()
    loop = drawn([[[0, 0], [10, 0], [10, 10], [4, 10], [4, -4], [6, -4], [6, 12], [0, 12]]], (12, 10))
    assert loop[5].sum() == 10  # what it goes round twice is inside as well


@pytest.mark.parametrize(
    "rings", [[], [[]], [[[1, 1]]], [[[1, 1], [2, 2]]], [[[1, 1], [2, 2], [3, 3]]], [[[1, 1]] * 5]]
)
def test_outlines_without_an_inside_are_empty(rings):
    assert not drawn(rings, (5, 6)).any()
    assert not Canvas(5, 6).paint([ring_arrays(rings)])


@pytest.mark.parametrize(
    "ring",
    [
        [[0, 0], [1e300, 0], [0, 1e300]],
        [[0, 0], [float("nan"), 0], [5, 5]],
        [[0, 0], ["a", 1], [2, 2]],
        [[0, 0], [1, [2]], [2, 2]],
        [1, 2, 3, 4],
        [[0], [1], [2]],
        [[0, 0], [10**400, 1], [2, 2]],
        "text",
        None,
        [None, None, None],
    ],
)
def test_points_that_are_none_are_refused(ring):
    with pytest.raises(ValueError, match="outline"):
        ring_arrays([ring])


def test_rings_are_painted_as_the_valid_geometry_of_them_is():
    rng = np.random.default_rng(3)
    for _ in range(50):
        ring = rng.uniform(-4, 44, (rng.integers(3, 9), 2))
        hole = np.array([[10, 10], [30, 10], [30, 30], [10, 30]]) + rng.uniform(-4, 4, (4, 2))
        shell, cut = (shapely.make_valid(shapely.Polygon(one), method="structure") for one in (ring, hole))
        assert np.array_equal(drawn([ring], (40, 41)), painted(shell, (40, 41)))
        assert np.array_equal(drawn([ring, hole], (40, 41)), painted(shell.difference(cut), (40, 41)))


def test_crossings_are_worked_out_in_parts_to_the_same_mask(monkeypatch):
    ring = ring_arrays([np.random.default_rng(4).uniform(0, 60, (70, 2))])
    whole, in_parts = np.zeros((2, 60, 61), dtype=bool)
    paint_rings(whole, ring)
    monkeypatch.setattr("monai_kwtl.exchange.polygons._AT_ONCE", 7)
    paint_rings(in_parts, ring)
    assert whole.any() and np.array_equal(whole, in_parts)


def test_huge_outlines_cost_what_lies_in_the_region():
    mask = painted(shapely.box(-9e6, -9e6, 9e6, 9e6), (30, 41), x=3, y=5)
    assert mask.all()


def test_objects_of_a_mask_hold_together_by_edges_and_those_of_a_label_image_by_number():
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]])
    assert np.array_equal(number_objects(mask), ndimage.label(mask)[0])
    assert number_objects(mask * 255).max() == 2
    labels = np.array([[7, 7, 0], [9, 9, 0], [0, 0, 7]], dtype=np.uint16)
    assert np.array_equal(number_objects(labels), [[1, 1, 0], [2, 2, 0], [0, 0, 1]])
    assert np.array_equal(number_objects(labels + 3), [[2, 2, 1], [3, 3, 1], [1, 1, 2]])
    assert number_objects(np.zeros((3, 5))).max() == 0
