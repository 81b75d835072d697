"""A box cuts the same pixels as its numbers say, and is that of a region."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from monai_kwtl.selection.regions import Region
from monai_kwtl.windows.box import Box, pixels_inside


@pytest.mark.parametrize("box", [Box(0, 0, 12, 9), Box(3, 2, 5, 4), Box(11, 8, 1, 1)])
def test_a_box_cuts_what_pillow_cuts(box):
    plane = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12)
    cut = np.array(Image.fromarray(plane).crop(box.corners))
    assert np.array_equal(plane[box.slices], cut)
    assert np.array_equal(plane[None][(..., *box.slices)][0], cut)
    assert cut.shape == (box.height, box.width)


def test_a_region_has_a_box_and_a_key_that_knows_no_rank():
    region = Region(1, "a.png", 2, "0" * 64, x=3, y=4, width=5, height=6, score=0.5)
    assert region.box == Box(x=3, y=4, width=5, height=6)
    assert region.key == Region(9, "a.png", 2, "1" * 64, 3, 4, 5, 6, 0.1).key
    others = [Region(1, "a.png", page, "0" * 64, *box, 0.5) for page, box in ((None, region.box), (2, (4, 3, 5, 6)))]
    assert len({region.key, *(other.key for other in others)}) == 3


def test_pixels_inside_any_of_the_boxes_are_those_that_a_loop_finds(rng):
    for _ in range(20):
        boxes = [Box(*rng.integers(-9, 15, 2).tolist(), *rng.integers(1, 12, 2).tolist()) for _ in range(3)]
        inside = pixels_inside((11, 14), boxes)
        for y in range(11):
            for x in range(14):
                assert inside[y, x] == any(b.x <= x < b.x + b.width and b.y <= y < b.y + b.height for b in boxes)
    assert not pixels_inside((3, 4), []).any()
