"""Grey values change within their range, by the amounts that are said, and only as the generator says."""

from __future__ import annotations

import numpy as np
import pytest

from monai_kwtl.data.crops import CropDataset, GridCropDataset
from monai_kwtl.transforms.photometric import BLUR, BRIGHTNESS, CONTRAST, GAMMA, NOISE, photometric


class Told:
    """A generator that gives what it is told: the logarithms of the three factors, what further, and how strong."""

    def __init__(self, brightness=1.0, contrast=1.0, gamma=1.0, further=2, strength=0.0):
        self.uniforms = [*np.log([brightness, contrast, gamma]), strength]
        self.further, self.limits = further, []

    def uniform(self, low, high):
        self.limits.append((low, high))
        return self.uniforms[len(self.limits) - 1]

    def integers(self, number):
        assert number == 3
        return self.further

    def standard_normal(self, shape, dtype):
        return np.random.default_rng(0).standard_normal(shape, dtype=dtype)


def grey(height=37, width=23, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def test_factors_of_one_change_nothing():
    assert np.array_equal(photometric(grey(), Told()), grey())


@pytest.mark.parametrize("factors", [(1.2, 1, 1), (1, 0.7, 1), (1, 1, 1.4), (0.8, 1.3, 0.7), (1.25, 1.4, 1.2)])
def test_brightness_contrast_and_gamma_equal_their_formula_pixel_by_pixel(factors):
    brightness, contrast, gamma = factors
    brighter = [min(max(float(v) * brightness, 0), 255) for v in grey().ravel()]
    mean = sum(brighter) / len(brighter)
    expected = []
    for value in brighter:
        stretched = min(max(mean + contrast * (value - mean), 0), 255)
        expected.append(255 * (stretched / 255) ** gamma)
    found = photometric(grey(), Told(*factors)).ravel()
    assert np.abs(found - np.array(expected)).max() <= 0.501


def test_noise_and_blur_are_as_strong_as_drawn():
    flat = np.full((200, 210), 128, dtype=np.uint8)
    noisy = photometric(flat, Told(further=0, strength=8.0)).astype(float)
    assert noisy.std() == pytest.approx(8, rel=0.03)
    assert noisy.mean() == pytest.approx(128, abs=0.2)
    dot = np.zeros((31, 31), dtype=np.uint8)
    dot[15, 15] = 255
    blurred = photometric(dot, Told(further=1, strength=1.0)).astype(float)
    rows, columns = np.mgrid[-15:16, -15:16]
    expected = 255 * np.exp(-(rows**2 + columns**2) / 2) / (2 * np.pi)
    assert np.abs(blurred - expected).max() < 1


def test_what_is_drawn_is_within_the_ranges_that_are_said():
    for further, range_of_it in ((0, NOISE), (1, BLUR)):
        told = Told(further=further)
        photometric(grey(), told)
        expected = [np.log(limits) for limits in (BRIGHTNESS, CONTRAST, GAMMA)] + [range_of_it]
        np.testing.assert_allclose(told.limits, expected)


@pytest.mark.parametrize("image", [np.zeros((5, 7)), np.full((5, 7), 255), np.full((1, 1), 9), np.eye(9) * 255])
def test_any_image_stays_an_image_and_is_not_changed_in_place(image):
    image = image.astype(np.uint8)
    before = image.copy()
    for seed in range(50):
        found = photometric(image, np.random.default_rng(seed))
        assert (found.dtype, found.shape) == (np.uint8, image.shape)
        assert np.array_equal(found, photometric(image, np.random.default_rng(seed)))
    assert np.array_equal(image, before)


# --- in crops ---------------------------------------------------------------------------------------------------------


def items():
    return [{"image": grey(60, 45, seed)[None], "label": (grey(60, 45, seed + 9) > 99)[None]} for seed in range(2)]


@pytest.mark.parametrize("kind", [CropDataset, GridCropDataset])
def test_crops_have_other_grey_values_at_the_same_places_with_the_same_labels(kind):
    plain, changed, again = (kind(items(), size=16, batch_size=8, photometric=p) for p in (False, True, True))
    for step in (0, 3):
        one, other = plain.crop_batch(step), changed.crop_batch(step)
        assert (one["label"] == other["label"]).all()
        assert (one["known"] == other["known"]).all()
        assert (one["image"] != other["image"]).flatten(1).any(1).all()
        assert other["image"].abs().max() <= 1
        assert (again.crop_batch(step)["image"] == other["image"]).all()
        for a, b in zip(one["image"].flatten(1), other["image"].flatten(1), strict=True):
            assert np.corrcoef(a, b)[0, 1] > 0.5  # it is still that place


def test_crops_of_several_processes_are_those_of_one():
    dataset = CropDataset(items(), size=16, batch_size=5, photometric=True)
    whole = dataset.crop_batch(2)["image"]
    for rank in range(2):
        assert (dataset.crop_batch(2, rank, 2)["image"] == whole[rank::2]).all()
