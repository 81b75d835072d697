"""A rectangle of a TIFF page is that of the whole page, and only what it touches is decoded."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from monai_kwtl.readers.image_files import open_image
from monai_kwtl.readers.tiff_regions import SegmentCache

WAYS = {
    "strips": {"rowsperstrip": 7},
    "one strip": {"rowsperstrip": 203},
    "deflated strips": {"rowsperstrip": 7, "compression": "zlib"},
    "one deflated strip": {"rowsperstrip": 203, "compression": "zlib"},
    "predicted strips": {"rowsperstrip": 16, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (32, 48)},
    "LZW tiles": {"tile": (64, 16), "compression": "lzw"},
    "big-endian": {"rowsperstrip": 20, "byteorder": ">"},
}
PLACES = [(0, 203, 0, 150), (0, 1, 0, 1), (202, 203, 149, 150), (13, 77, 31, 97), (64, 128, 48, 96)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "RGB", "planes"])
def test_rectangles_are_those_of_the_page(tmp_path, rng, way, kind):
    options = dict(WAYS[way])
    if kind in ("RGB", "planes"):
        shape = (203, 150, 3) if kind == "RGB" else (3, 203, 150)
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        options |= {"photometric": "rgb", "planarconfig": "contig" if kind == "RGB" else "separate"}
    else:
        array = (rng.random((203, 150)) * 250).astype(kind)
        options |= {"photometric": "minisblack"}
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(
        path, **({"byteorder": options.pop("byteorder")} if "byteorder" in options else {})
    ) as tif:
        tif.write(array, **options)
    expected = np.moveaxis(array, 0, -1) if kind == "planes" else array
    cache = SegmentCache(limit=5000)
    with open_image(path) as file:
        assert np.array_equal(file.read(None), expected)
        assert file.in_parts(None)
        for top, bottom, left, right in PLACES:
            part = file.region(None, slice(top, bottom), slice(left, right), cache)
            assert np.array_equal(part, expected[top:bottom, left:right])


def test_a_page_of_a_stack_and_inverted_grey(tmp_path, rng):
    stack = rng.integers(0, 256, (3, 60, 41), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="miniswhite", tile=(16, 16), compression="zlib")
    with open_image(tmp_path / "a.tif") as file:
        cache = SegmentCache()
        for page in (2, 0, 1):
            part = file.region(page, slice(5, 50), slice(3, 40), cache)
            assert np.array_equal(part, 255 - stack[page, 5:50, 3:40])
            assert np.array_equal(file.read(page)[5:50, 3:40], part)


def test_turned_pages_and_palettes_are_read_whole(tmp_path, rng):
    array = rng.integers(0, 256, (40, 50), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "turned.tif", array, extratags=[(274, "H", 1, 6, True)])
    tifffile.imwrite(
        tmp_path / "palette.tif", array, photometric="palette", colormap=np.zeros((3, 256), dtype=np.uint16)
    )
    for name in ("turned.tif", "palette.tif"):
        with open_image(tmp_path / name) as file:
            assert not file.in_parts(None)


def test_only_what_is_touched_is_decoded(tmp_path, rng, monkeypatch):
    from monai_kwtl.readers import tiff_regions

    array = rng.integers(0, 256, (256, 256), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(64, 64), compression="zlib")
    decoded, decode = [], tiff_regions._decoded
    monkeypatch.setattr(tiff_regions, "_decoded", lambda page, index: decoded.append(index) or decode(page, index))
    cache = SegmentCache()
    with open_image(tmp_path / "a.tif") as file:
        file.region(None, slice(60, 70), slice(130, 140), cache)
        assert decoded == [2, 6]
        file.region(None, slice(0, 64), slice(128, 200), cache)
        assert decoded == [2, 6, 3]


def test_the_cache_keeps_within_its_limit_and_what_was_used_last():
    cache, made = SegmentCache(limit=250), []

    def segment(key):
        return cache.get((0, key), lambda: made.append(key) or np.zeros(100, dtype=np.uint8))

    for key in (1, 2, 1, 3, 1, 2):
        segment(key)
    assert made == [1, 2, 3, 2]
    assert cache.get((0, 9), lambda: np.zeros(1000, dtype=np.uint8)).size == 1000, "also what is larger by itself"
