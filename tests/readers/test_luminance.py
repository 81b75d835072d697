"""Luminance is Pillow's; scaling to 8 bit is exact, monotonic, and never wraps around."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.luminance import check_rescale, to_grey, to_uint8

DTYPES = ["int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64"]


def images(dtype):
    elements = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else {}
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)
    return hnp.arrays(dtype, shapes, elements=hnp.from_dtype(np.dtype(dtype), **elements))


def test_8_bit_luminance_equals_pillow_for_every_colour():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(52, -1, 3)
    assert np.array_equal(to_grey(colours), np.asarray(Image.fromarray(colours).convert("L")))


def test_deep_luminance_is_the_weighted_sum(rng):
    colours = rng.integers(0, 65536, (7, 9, 3)).astype(np.uint16)
    expected = 0.299 * colours[..., 0] + 0.587 * colours[..., 1] + 0.114 * colours[..., 2]
    assert np.allclose(to_grey(colours), expected, atol=1)
    grey = np.repeat(colours[..., :1], 3, axis=2)
    assert np.array_equal(to_grey(grey), colours[..., 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_grey_passes_as_it_is(rng, dtype):
    pixels = rng.integers(0, 200, (5, 3)).astype(dtype)
    assert to_grey(pixels) is pixels


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DTYPES).flatmap(images))
def test_own_range_becomes_0_to_255_in_order(pixels):
    scaled = to_uint8(pixels)
    assert scaled.dtype == np.uint8 and scaled.shape == pixels.shape
    wide = pixels.astype(np.float64).ravel()
    if wide.min() == wide.max():
        assert not scaled.any()
        return
    assert scaled.min() == 0 and scaled.max() == 255
    assert (np.diff(scaled.ravel()[np.argsort(wide, kind="stable")].astype(int)) >= 0).all()
    low, span = Fraction(wide.min()), Fraction(wide.max()) - Fraction(wide.min())
    for value, found in zip(wide, scaled.ravel(), strict=True):
        assert abs(255 * (Fraction(value) - low) / span - int(found)) <= Fraction(501, 1000)


@settings(max_examples=100, deadline=None)
@given(images("int32"), st.integers(-(2**31), 2**31), st.integers(1, 2**31))
def test_a_fixed_range_is_clipped_and_rounded_exactly(pixels, low, span):
    scaled = to_uint8(pixels, (low, low + span))
    for value, found in zip(pixels.ravel(), scaled.ravel(), strict=True):
        exact = 255 * min(max(Fraction(int(value) - low, span), Fraction(0)), Fraction(1))
        assert round(exact) == found  # Python and numpy both round halves to even


def test_8_bit_is_never_rescaled():
    pixels = np.array([[3, 9], [40, 41]], dtype=np.uint8)
    assert to_uint8(pixels, (0, 50)) is pixels


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_becomes_black_unless_the_range_is_fixed(dtype):
    pixels = np.full((3, 4), 51, dtype=dtype)
    assert not to_uint8(pixels).any()
    assert (to_uint8(pixels, (0, 102)) == 128).all()


def test_scaling_leaves_its_input_alone(rng):
    pixels = rng.normal(size=(4, 5))
    copy = pixels.copy()
    to_uint8(pixels)
    assert np.array_equal(pixels, copy)


def test_ranges():
    assert check_rescale(None) is None
    assert check_rescale([0, 4095]) == (0.0, 4095.0)


@pytest.mark.parametrize("bad", [(5, 5), (9, 1), (1,), (1, 2, 3), 7, "ab", (0, np.inf), (np.nan, 1), ("a", "b")])
def test_what_is_no_range_is_refused(bad):
    with pytest.raises(KWTLError, match="two grey values"):
        check_rescale(bad)
