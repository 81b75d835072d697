"""Pseudo-labels equal OpenCV's to the pixel, intensity views Pillow's to one grey level, for every kind of array."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor
from PIL import Image, ImageEnhance, ImageOps
from skimage.filters import threshold_otsu

from monai_kwtl.data.folders import find_images
from monai_kwtl.data.loading import read_image
from monai_kwtl.errors import KWTLError
from monai_kwtl.transforms import (
    AutoContrast,
    Brightness,
    EqualizeHistogram,
    PseudoLabel,
    Sharpness,
    intensity_views,
)

# odd and even sides, a single row, column and pixel, sides below Sharpness' kernel
SIZES = [(20, 51), (33, 17), (64, 64), (1, 40), (40, 1), (2, 9), (9, 2), (3, 3), (1, 1)]
REAL_SETS = ["ssTEM", "TNBC", "B39", "B5"]

channels = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 2))
images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), *[st.integers(1, 9)] * 2))


def noise(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


def smooth(rng, height, width):
    """A blurred image of uneven light: few grey levels, unevenly filled."""
    waves = sum(
        rng.random() * np.outer(np.sin(np.arange(1, height + 1) / rng.uniform(3, 30)), np.cos(np.arange(width) / 7))
        for _ in range(3)
    )
    return np.rint(90 + 40 * waves / max(np.abs(waves).max(), 1e-9)).astype(np.uint8)


def two_grounds(rng, height, width):
    """Dark cells on a light ground, overlapping in grey level."""
    cells = rng.random((height, width)) < 0.2
    return np.clip(rng.normal(np.where(cells, 70, 150), 25), 0, 255).astype(np.uint8)


def real_images(folder: Path, name: str, count: int | None = None) -> list[np.ndarray]:
    if not (folder / name).is_dir():
        pytest.skip(f"{folder} has no {name}")
    return [read_image(item) for item in find_images(folder / name)[:count]]


def one_line(error) -> bool:
    return isinstance(error.value, ValueError) and "\n" not in str(error.value) and str(error.value).endswith(".")


# --- equalisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make", [noise, smooth, two_grounds])
def test_equalisation_is_opencvs(rng, make, size):
    for _ in range(5):
        image = make(rng, *size)
        assert np.array_equal(EqualizeHistogram()(image[None])[0], cv2.equalizeHist(image))


@settings(max_examples=300, deadline=None)
@given(channels)
def test_equalisation_is_opencvs_for_any_image(image):
    assert np.array_equal(EqualizeHistogram()(image[None])[0], cv2.equalizeHist(image))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=256, max_size=256).filter(any))
def test_equalisation_rounds_as_opencv_for_any_histogram(counts):
    image = np.repeat(np.arange(256, dtype=np.uint8), counts)[None]
    assert np.array_equal(EqualizeHistogram()(image[None])[0], cv2.equalizeHist(image))


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_a_constant_image_stays_as_it_is(level):
    image = np.full((1, 7, 5), level, dtype=np.uint8)
    assert np.array_equal(EqualizeHistogram()(image), image)


def test_channels_are_equalised_each_by_itself(rng):
    image = np.stack([noise(rng, 20, 51), smooth(rng, 20, 51), np.full((20, 51), 9, dtype=np.uint8)])
    assert np.array_equal(EqualizeHistogram()(image), np.stack([cv2.equalizeHist(channel) for channel in image]))


def test_floats_are_rounded_and_clipped_before_equalisation(rng):
    image = rng.uniform(-20, 280, (1, 20, 51)).astype(np.float32)
    expected = cv2.equalizeHist(np.rint(image[0]).clip(0, 255).astype(np.uint8))
    assert np.array_equal(EqualizeHistogram()(image)[0], expected)


@pytest.mark.parametrize("name", REAL_SETS)
def test_real_images_are_equalised_as_by_opencv(kwtl_data, name):
    for image in real_images(kwtl_data, name, 3):
        assert np.array_equal(EqualizeHistogram()(image)[0], cv2.equalizeHist(image[0]))


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


def opencv_label(image, threshold, polarity, iterations):
    equalized = cv2.equalizeHist(image)
    if polarity == "dark":
        _, mask = cv2.threshold(equalized, threshold, 1, cv2.THRESH_BINARY_INV)
    else:
        _, mask = cv2.threshold(equalized, np.ceil(threshold) - 1, 1, cv2.THRESH_BINARY)
    return cv2.dilate(mask, np.ones((2, 2), dtype=np.uint8), iterations=iterations)


@pytest.mark.parametrize("size", [(33, 17), (64, 64), (1, 40), (40, 1)], ids=str)
@pytest.mark.parametrize("polarity", ["dark", "bright"])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_pseudo_labels_are_opencvs(rng, size, polarity, iterations):
    for make, threshold in itertools.product((noise, smooth, two_grounds), (0, 20, 99.5, 140, 250, 255)):
        image = make(rng, *size)
        while image.min() == image.max():  # of those we say: no foreground
            image = noise(rng, *size)
        label = PseudoLabel(threshold=threshold, polarity=polarity, iterations=iterations)(image[None])
        assert label.dtype == np.uint8
        assert np.array_equal(label[0], opencv_label(image, threshold, polarity, iterations))


@settings(max_examples=200, deadline=None)
@given(
    channels.filter(lambda image: image.min() < image.max()),
    st.floats(0, 255),
    st.sampled_from(["dark", "bright"]),
    st.integers(0, 3),
)
def test_pseudo_labels_are_opencvs_for_any_image(image, threshold, polarity, iterations):
    label = PseudoLabel(threshold=threshold, polarity=polarity, iterations=iterations)(image[None])
    assert np.array_equal(label[0], opencv_label(image, threshold, polarity, iterations))


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize("place", [(0, 0), (4, 6), (2, 3)], ids=str)
def test_dilation_grows_right_and_down_and_stops_at_the_border(place, iterations):
    image = np.full((5, 7), 200, dtype=np.uint8)
    image[place] = 3
    expected = np.zeros_like(image)
    expected[place[0] : place[0] + iterations + 1, place[1] : place[1] + iterations + 1] = 1
    assert np.array_equal(PseudoLabel(threshold=20, iterations=iterations)(image[None])[0], expected)


@pytest.mark.parametrize("polarity", ["dark", "bright"])
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_a_fraction_is_the_fraction_of_foreground_before_dilation(rng, polarity, fraction):
    image = np.clip(rng.normal(120, 40, (1, 200, 301)), 0, 255).astype(np.uint8)
    mask = PseudoLabel(fraction=fraction, polarity=polarity, iterations=0)(image)[0] > 0
    assert abs(mask.mean() - fraction) < 0.02  # one grey level holds up to 1 % of the pixels
    assert (image[0][mask].max() < image[0][~mask].min()) == (polarity == "dark")
    assert (image[0][mask].min() > image[0][~mask].max()) == (polarity == "bright")
    threshold = 255 * (fraction if polarity == "dark" else 1 - fraction)
    assert np.array_equal(mask, opencv_label(image[0], threshold, polarity, 0))


@pytest.mark.parametrize("size", [(20, 51), (33, 17), (1, 40)], ids=str)
@pytest.mark.parametrize("make", [noise, smooth, two_grounds])
@pytest.mark.parametrize("polarity", ["dark", "bright"])
def test_otsu_is_scikit_images(rng, make, size, polarity):
    image = make(rng, *size)
    dark = image <= threshold_otsu(image)
    label = PseudoLabel(method="otsu", polarity=polarity, iterations=0)(image[None])[0]
    assert np.array_equal(label, dark if polarity == "dark" else ~dark)


def squared_distances(values, mask):
    """Sum of the squared distances to the mean of the own cluster."""
    return sum(((part - part.mean()) ** 2).sum() for part in (values[mask], values[~mask]) if part.size)


def check_two_clusters(image, method, polarity):
    values = image.astype(np.float64)
    label = PseudoLabel(method=method, polarity=polarity, iterations=0)(image[None])[0] > 0
    best = min(squared_distances(values, values <= level) for level in np.unique(values)[:-1])
    assert label.any() and not label.all()
    assert (values[label].mean() < values[~label].mean()) == (polarity == "dark")
    assert squared_distances(values, label) <= best * (1 + 1e-9) + 1e-9  # ties between thresholds are either's


@pytest.mark.parametrize("make", [noise, smooth, two_grounds])
@pytest.mark.parametrize("polarity", ["dark", "bright"])
@pytest.mark.parametrize("method", ["kmeans", "otsu"])
def test_clusters_have_the_least_squared_distance_of_all_thresholds(rng, make, method, polarity):
    check_two_clusters(make(rng, 20, 51), method, polarity)


@settings(max_examples=150, deadline=None)
@given(channels.filter(lambda image: image.min() < image.max()), st.sampled_from(["dark", "bright"]))
def test_clusters_of_any_image_have_the_least_squared_distance(image, polarity):
    check_two_clusters(image, "kmeans", polarity)


@pytest.mark.parametrize("kind", ["kmeans", "otsu"])
def test_clusters_are_dilated_too(rng, kind):
    image = two_grounds(rng, 20, 51)
    thin = PseudoLabel(method=kind, iterations=0)(image[None])[0]
    expected = cv2.dilate(thin, np.ones((2, 2), dtype=np.uint8), iterations=2)
    assert np.array_equal(PseudoLabel(method=kind, iterations=2)(image[None])[0], expected)


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("polarity", ["dark", "bright"])
@pytest.mark.parametrize(
    "how", [{"threshold": 140}, {"fraction": 0.5}, {"method": "otsu"}, {"method": "kmeans"}], ids=str
)
def test_a_constant_image_is_background(how, polarity, level):
    image = np.full((1, 20, 51), level, dtype=np.uint8)
    assert not PseudoLabel(polarity=polarity, **how)(image).any()


@pytest.mark.parametrize("how", [{"threshold": 99}, {"method": "otsu"}, {"method": "kmeans"}], ids=str)
def test_channels_are_labelled_each_by_itself(rng, how):
    image = np.stack([noise(rng, 20, 51), np.full((20, 51), 9, dtype=np.uint8), two_grounds(rng, 20, 51)])
    label = PseudoLabel(**how)(image)
    for found, channel in zip(label, image, strict=True):
        assert np.array_equal(found, PseudoLabel(**how)(channel[None])[0])
    assert not label[1].any()  # dilation does not leak across channels


def test_stages_are_the_steps_in_order(rng):
    image = two_grounds(rng, 20, 51)
    label = PseudoLabel(threshold=60, iterations=2)
    stages = label.stages(image[None])
    assert list(stages) == ["equalized", "threshold", "dilated"]
    assert all(step.shape == (1, 20, 51) and step.dtype == np.uint8 for step in stages.values())
    assert np.array_equal(stages["equalized"][0], cv2.equalizeHist(image))
    assert np.array_equal(stages["threshold"][0], cv2.equalizeHist(image) <= 60)
    assert np.array_equal(stages["dilated"], label(image[None]))
    assert list(PseudoLabel(method="otsu").stages(image[None])) == ["threshold", "dilated"]


def test_stages_are_plain_arrays_whatever_comes_in(rng):
    image = two_grounds(rng, 20, 51)[None]
    for kind in (torch.from_numpy(image), MetaTensor(torch.from_numpy(image))):
        for name, step in PseudoLabel(threshold=60).stages(kind).items():
            assert type(step) is np.ndarray
            assert np.array_equal(step, PseudoLabel(threshold=60).stages(image)[name])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "threshold"),
        ({"threshold": 20, "fraction": 0.2}, "one of threshold"),
        ({"threshold": -1}, "threshold"),
        ({"threshold": 256}, "from 0 to 255"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": "20"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"fraction": 0}, "between 0 and 1"),
        ({"fraction": 1.0}, "between 0 and 1"),
        ({"fraction": float("inf")}, "fraction"),
        ({"threshold": 20, "polarity": "grey"}, "dark or bright"),
        ({"method": "k-means"}, "equalize, kmeans or otsu"),
        ({"method": "otsu", "threshold": 20}, "not for otsu"),
        ({"method": "kmeans", "fraction": 0.2}, "not for kmeans"),
        ({"threshold": 20, "iterations": -1}, "iterations"),
        ({"threshold": 20, "iterations": 1.0}, "iterations"),
        ({"threshold": 20, "iterations": True}, "iterations"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_in_one_line(settings, words):
    with pytest.raises(KWTLError, match=words) as error:
        PseudoLabel(**settings)
    assert one_line(error)


@pytest.mark.parametrize("name", REAL_SETS)
def test_pseudo_labels_of_real_images_are_opencvs(kwtl_data, name):
    polarity = "bright" if name in ("B39", "B5") else "dark"
    for image in real_images(kwtl_data, name, 2):
        label = PseudoLabel(fraction=0.25, polarity=polarity)(image)[0]
        assert np.array_equal(label, opencv_label(image[0], 255 * (0.25 if polarity == "dark" else 0.75), polarity, 1))


# --- intensity views --------------------------------------------------------------------------------------------------

FACTORS = [0.0, 0.5, 1.0, 1.3, 1.6, 3.0]
VIEWS = {
    "autocontrast": (lambda factor: AutoContrast(), lambda picture, factor: ImageOps.autocontrast(picture)),
    "brightness": (Brightness, lambda picture, factor: ImageEnhance.Brightness(picture).enhance(factor)),
    "sharpness": (Sharpness, lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor)),
}


def check_view(image, name, factor):
    """Against Pillow, which takes each channel of a colour picture for itself, too."""
    make, enhance = VIEWS[name]
    view = make(factor)(image)
    assert view.dtype == np.float32 and view.shape == image.shape
    assert view.size == 0 or (view.min() >= 0 and view.max() <= 255)
    if len(image) == 3:
        expected = np.moveaxis(np.asarray(enhance(Image.fromarray(np.moveaxis(image, 0, -1).copy()), factor)), -1, 0)
    else:
        expected = np.stack([np.asarray(enhance(Image.fromarray(channel), factor)) for channel in image])
    assert np.abs(view - expected.astype(np.float32)).max() <= 1.001


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_pillows_to_one_grey_level(rng, name, factor):
    for size in SIZES:
        for make in (noise, smooth, two_grounds):
            check_view(make(rng, *size)[None], name, factor)
        check_view(np.stack([noise(rng, *size), smooth(rng, *size), two_grounds(rng, *size)]), name, factor)


@settings(max_examples=250, deadline=None)
@given(images, st.sampled_from(list(VIEWS)), st.floats(0, 5))
def test_views_of_any_image_are_pillows_to_one_grey_level(image, name, factor):
    check_view(image, name, factor)


@pytest.mark.parametrize("name", REAL_SETS)
def test_views_of_real_images_are_pillows_to_one_grey_level(kwtl_data, name):
    for image, view, factor in itertools.product(real_images(kwtl_data, name, 2), VIEWS, (1.3, 1.6)):
        check_view(image, view, factor)


@pytest.mark.parametrize("factor", [0.5, 1.3, 1.6])
def test_sharpness_keeps_the_border_and_changes_the_rest(rng, factor):
    image = noise(rng, 20, 51)
    view = Sharpness(factor)(image[None])[0]
    border = np.ones(image.shape, dtype=bool)
    border[1:-1, 1:-1] = False
    assert np.array_equal(view[border], image[border])
    assert (view[~border] != image[~border]).mean() > 0.9


@pytest.mark.parametrize(
    "view", [AutoContrast(), Brightness(1.0), Sharpness(1.0)], ids=lambda view: type(view).__name__
)
def test_what_cannot_change_does_not(rng, view):
    image = noise(rng, 2, 20, 51)
    image[:, 0, :2] = 0, 255  # the full range already
    assert np.allclose(view(image), image, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", [0, 100, 255])
def test_views_of_a_constant_image(level):
    image = np.full((1, 20, 51), level, dtype=np.uint8)
    assert (AutoContrast()(image) == level).all() and (Sharpness()(image) == level).all()
    assert np.allclose(Brightness(1.3)(image), min(1.3 * level, 255), atol=1e-4)


def test_auto_contrast_of_floats_reaches_both_ends(rng):
    image = rng.uniform(80.25, 90.5, (2, 20, 51)).astype(np.float32)
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    assert np.allclose(AutoContrast()(image), 255 * (image - low) / (high - low), atol=1e-3)


def test_the_views_of_the_paper():
    views = intensity_views(1.6)
    assert [type(view) for view in views] == [AutoContrast, Brightness, Sharpness]
    assert [getattr(view, "factor", None) for view in views] == [None, 1.6, 1.6]
    assert [getattr(view, "factor", None) for view in intensity_views()] == [None, 1.3, 1.3]


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf"), "1.3", None, True, [1.3]], ids=repr)
@pytest.mark.parametrize("kind", [Brightness, Sharpness, intensity_views])
def test_factors_that_are_none_are_refused_in_one_line(kind, factor):
    with pytest.raises(KWTLError, match="factor") as error:
        kind(factor)
    assert one_line(error)


# --- every transform --------------------------------------------------------------------------------------------------

EVERY = [AutoContrast(), Brightness(), Sharpness(), EqualizeHistogram(), PseudoLabel(20), PseudoLabel(method="kmeans")]
every = pytest.mark.parametrize("transform", EVERY, ids=lambda transform: type(transform).__name__)


@every
def test_the_kind_of_array_and_the_values_do_not_depend_on_what_comes_in(rng, transform):
    pixels = noise(rng, 2, 20, 51)
    expected = transform(pixels)
    for dtype in ("uint8", "int16", "int64", "float16", "float32", "float64"):
        array = pixels.astype(dtype)
        tensor = torch.from_numpy(array)
        for image in (array, tensor, tensor[:, ::1], MetaTensor(tensor)):
            result = transform(image)
            assert type(result) is type(image)
            assert np.array_equal(np.asarray(result), expected) and np.asarray(result).dtype == expected.dtype


@every
def test_memory_layout_does_not_matter(rng, transform):
    pixels = noise(rng, 51, 20, 2)
    turned = pixels.T  # neither contiguous nor writeable
    turned.flags.writeable = False
    expected = transform(np.ascontiguousarray(turned))
    assert np.array_equal(transform(turned.astype(np.float32)), expected)
    assert np.array_equal(transform(torch.from_numpy(pixels).permute(2, 1, 0)), expected)


@every
def test_meta_data_is_kept_and_not_shared(rng, transform):
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": "images/a.png", "page": 3}
    image = MetaTensor(torch.from_numpy(noise(rng, 1, 20, 51)), affine=affine, meta=meta)
    result = transform(image)
    assert result.meta["filename_or_obj"] == "images/a.png" and result.meta["page"] == 3
    assert torch.equal(result.affine, affine)
    result.meta["page"] = 4
    assert image.meta["page"] == 3


@every
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_image_itself_is_left_alone(rng, transform, dtype):
    pixels = noise(rng, 1, 20, 51).astype(dtype)
    for image in (pixels.copy(), torch.from_numpy(pixels.copy()), MetaTensor(torch.from_numpy(pixels.copy()))):
        result = transform(image)
        result[...] = 7  # were it a view of the image, that would change
        assert np.array_equal(np.asarray(image), pixels)


@every
def test_nothing_stays_nothing(transform):
    for shape in ((0, 4, 5), (1, 0, 5), (1, 4, 0), (1, 0, 0)):
        assert transform(np.zeros(shape, dtype=np.uint8)).shape == shape


@every
def test_other_shapes_are_refused_in_one_line(transform):
    for image in (np.zeros((4, 5)), torch.zeros((1, 1, 4, 5)), np.zeros(5)):
        with pytest.raises(KWTLError, match=r"\(C, H, W\)") as error:
            transform(image)
        assert one_line(error)


@pytest.mark.parametrize("transform", EVERY[3:], ids=lambda transform: type(transform).__name__)
def test_nan_is_no_grey_level_and_infinity_is_the_last(transform):
    image = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    image[0, 3, 4] = np.inf
    assert np.array_equal(transform(image), transform(image.clip(0, 255)))
    image[0, 1, 1] = np.nan
    with pytest.raises(KWTLError, match="NaN") as error:
        transform(image)
    assert one_line(error)


@every
def test_transforms_travel_to_loader_workers(rng, transform):
    image = noise(rng, 1, 20, 51)
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert np.array_equal(twin(image), transform(image))
