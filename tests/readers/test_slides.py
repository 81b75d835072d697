"""Rectangles of a slide are those of the image that is read whole."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from monai_kwtl.data import loading, pool
from monai_kwtl.data.loading import LoadMicroscopyd, read_image
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.readers import slides
from monai_kwtl.readers.slides import ImageInMemory, Slide, bands, grey_range

RECTANGLES = [(0, 131, 0, 90), (0, 1, 0, 1), (37, 100, 11, 64), (130, 131, 89, 90)]
KINDS = ("grey", "colour", "16 bit", "float", "deep colour", "constant", "png", "turned")


def write(folder, kind, rng):
    """One image of a kind, 131 rows and 90 columns as shown."""
    if kind == "png":
        Image.fromarray(rng.integers(0, 256, (131, 90), dtype=np.uint8)).save(folder / "a.png")
    elif kind == "turned":
        tifffile.imwrite(
            folder / "a.tif", rng.integers(0, 256, (90, 131), dtype=np.uint8), extratags=[(274, "H", 1, 6, True)]
        )
    else:
        array = {
            "grey": lambda: rng.integers(0, 256, (131, 90), dtype=np.uint8),
            "colour": lambda: rng.integers(0, 256, (131, 90, 3), dtype=np.uint8),
            "16 bit": lambda: rng.integers(50, 5000, (131, 90), dtype=np.uint16),
            "float": lambda: rng.normal(size=(131, 90)).astype(np.float32),
            "deep colour": lambda: rng.integers(0, 9000, (131, 90, 3), dtype=np.uint16),
            "constant": lambda: np.full((131, 90), 700, dtype=np.uint16),
        }[kind]()
        photometric = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(folder / "a.tif", array, tile=(32, 32), compression="zlib", photometric=photometric)
    return load_pool(folder)[0]


@pytest.mark.parametrize("rescale", [None, (100, 3000)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_rectangles_are_those_of_the_image(tmp_path, rng, monkeypatch, kind, rescale):
    item = write(tmp_path, kind, rng)
    whole = read_image(item, rescale)
    monkeypatch.setattr(slides, "_BAND", 90 * 10)
    slide = Slide(item, rescale)
    assert slide.in_parts is (kind not in ("png", "turned"))
    for top, bottom, left, right in RECTANGLES:
        part = slide.pixels(slice(top, bottom), slice(left, right))
        assert part.dtype == np.uint8 and part.flags.writeable
        assert np.array_equal(part, whole[:, top:bottom, left:right])
    assert np.array_equal(slide.array(), whole)
    assert torch.equal(slide.whole(), torch.from_numpy(whole)[None])
    assert grey_range(slide) == grey_range(ImageInMemory(slide.whole())) == (whole.min(), whole.max())
    copied = pickle.loads(pickle.dumps(slide)).to("cpu")
    assert torch.equal(copied.read(slice(3, 9), slice(5, 70)), torch.from_numpy(whole[None, :, 3:9, 5:70]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_large_images_are_read_and_loaded_as_slides(tmp_path, rng, monkeypatch, kind):
    item = write(tmp_path, kind, rng)
    whole = read_image(item)
    assert torch.equal(LoadMicroscopyd("image", slides=True)(item)["image"].as_tensor(), torch.from_numpy(whole))
    monkeypatch.setattr(pool, "DECODE_LIMIT", 131 * 90 - 1)
    monkeypatch.setattr(loading, "DECODE_LIMIT", 131 * 90 - 1)
    assert np.array_equal(read_image(item), whole)
    loaded = LoadMicroscopyd("image", slides=True)(item)["image"]
    assert isinstance(loaded, Slide) and np.array_equal(loaded.array(), whole)


def test_a_file_that_has_gone_is_named(tmp_path, rng):
    item = write(tmp_path, "grey", rng)
    (tmp_path / "a.tif").unlink()
    with pytest.raises(KWTLError, match="^cannot read .*a.tif: "):
        Slide(item).pixels(slice(0, 1), slice(0, 1))


def test_bands_cover_an_image_once():
    for height, width in ((1, 1), (100_000, 100_000), (3, 1 << 26)):
        edges = list(bands(height, width))
        assert edges[0].start == 0 and edges[-1].stop == height
        assert all(a.stop == b.start for a, b in zip(edges, edges[1:], strict=False))
