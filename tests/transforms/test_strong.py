"""Sure predictions become labels, the strong view stays an image, and CutMix mixes image and label alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from monai_kwtl.transforms.strong import BOX, PSI, cut_mix, pseudo_target, strong_view


def test_labels_are_where_the_prediction_is_sure_and_nowhere_else():
    probability = torch.tensor([0.0, 0.03, 0.0499, 0.0501, 0.3, 0.5, 0.8999, 0.9001, 1.0])
    label, sure = pseudo_target(probability)
    assert label.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert sure.tolist() == [True, True, True, False, False, False, False, True, True]
    label, sure = pseudo_target(probability, 0.5, 0.5)
    assert label.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert sure.all()
    assert [part.shape for part in pseudo_target(probability.reshape(3, 1, 3, 1))] == [(3, 1, 3, 1)] * 2


def grey(height=31, width=24, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(30, 200, (1, height, width)).astype(np.float32))


class Told:
    """A generator that chooses as told, with these factors."""

    def __init__(self, chosen, brightness, sharpness):
        self.chosen, self.factors = chosen, np.array([brightness, sharpness])

    def integers(self, low, high):
        assert (low, high) == (1, 8)
        return self.chosen

    def uniform(self, low, high, size):
        assert (low, high, size) == (*PSI, 2)
        return self.factors


@pytest.mark.parametrize("chosen", range(1, 8))
def test_each_choice_of_views_equals_pillow(chosen):
    expected = Image.fromarray(grey().numpy()[0].astype(np.uint8))
    if chosen & 1:
        expected = ImageOps.autocontrast(expected)
    if chosen & 2:
        expected = ImageEnhance.Brightness(expected).enhance(0.7)
    if chosen & 4:
        expected = ImageEnhance.Sharpness(expected).enhance(1.6)
    found = strong_view(grey(), Told(chosen, 0.7, 1.6))
    assert found.dtype == torch.float32
    # Pillow rounds after every view, and sharpening enlarges what that leaves
    assert np.abs(found.numpy()[0] - np.asarray(expected, dtype=np.float32)).max() <= 3


def test_a_strong_view_is_an_image_and_a_function_of_its_generator():
    seen = set()
    for seed in range(60):
        view = strong_view(grey(), np.random.default_rng(seed))
        assert view.shape == (1, 31, 24)
        assert 0 <= view.min() and view.max() <= 255
        assert torch.equal(view, strong_view(grey(), np.random.default_rng(seed)))
        seen.add(view.sum().item())
    assert len(seen) > 40


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (5, 1, 31, 24), (3, 2, 7, 90), (2, 1, 1, 1)])
def test_cut_mix_puts_a_box_of_one_other_crop_into_image_target_and_known_alike(shape):
    count, _, height, width = shape
    images = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(shape).contiguous()
    targets = 10 + images[:, :1]
    known = images[:, :1] == 0
    before = images.clone(), targets.clone(), known.clone()
    for seed in range(20):
        mixed, labels, where = cut_mix(images, targets, known, np.random.default_rng(seed))
        assert all(torch.equal(*both) for both in zip((images, targets, known), before, strict=True))
        assert torch.equal(labels, 10 + mixed[:, :1])  # the same pixels from the same crop
        assert torch.equal(where, mixed[:, :1] == 0)
        furthers = set()
        for index in range(count):
            other = mixed[index, 0] != index
            rows, columns = torch.nonzero(other.any(1))[:, 0], torch.nonzero(other.any(0))[:, 0]
            assert other[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()  # one box
            (partner,) = mixed[index, 0][other].unique().tolist()
            furthers.add((int(partner) - index) % count)
            area = other.float().mean().item()
            slack = 1 / height + 1 / width
            assert BOX[0] - slack <= area <= BOX[1] + slack
        assert len(furthers) == 1


def test_boxes_lie_everywhere_and_every_other_crop_is_taken():
    images = torch.zeros(4, 1, 20, 30) + torch.arange(4.0).reshape(4, 1, 1, 1)
    covered, partners = torch.zeros(20, 30), set()
    for seed in range(800):
        mixed, *_ = cut_mix(images, images, images > 0, np.random.default_rng(seed))
        covered += (mixed[0, 0] != 0).float()
        partners |= set(mixed[0].unique().tolist())
    assert (covered > 0).all()
    assert partners == {0.0, 1.0, 2.0, 3.0}


def test_a_single_crop_is_not_mixed():
    images = torch.rand(1, 1, 8, 9)
    mixed, labels, known = cut_mix(images, images, images > 0.5, np.random.default_rng(0))
    assert torch.equal(mixed, images)
    assert torch.equal(labels, images)
    assert torch.equal(known, images > 0.5)
