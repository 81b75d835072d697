"""Crops are drawn so that the foreground has the wanted fraction of their known pixels.

No less evenly than that needs.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from monai_kwtl.data.crop_sampler import FEWEST, PLACES, matching_chances
from monai_kwtl.data.crops import CropDataset
from monai_kwtl.errors import KWTLError


def expected_fraction(chances, foreground, known):
    """Foreground over known pixels, place by place."""
    top = bottom = 0.0
    for q, f, k in zip(chances, foreground, known, strict=True):
        top, bottom = top + q * f, bottom + q * k
    return top / bottom


def counts(seed, number=400, size=256):
    rng = np.random.default_rng(seed)
    known = rng.integers(1, size + 1, number)
    return rng.binomial(known, rng.beta(0.7, 2.0, number)), known


@pytest.mark.parametrize("fraction", [0.15, 0.25, 0.4, 0.6])
def test_the_expected_fraction_is_the_wanted_one(fraction):
    foreground, known = counts(1)
    chances = matching_chances(foreground, known, fraction)
    assert chances.sum() == pytest.approx(1)
    assert (chances >= 0).all()
    assert expected_fraction(chances, foreground, known) == pytest.approx(fraction, abs=1e-9)


def test_chances_are_the_nearest_to_even_ones_that_have_the_fraction():
    foreground, known = counts(2, number=7)
    excess = foreground - 0.4 * known
    found = minimize(  # of the divergence itself, without knowing what its solution looks like
        lambda q: float((q * np.log(q * 7)).sum()),
        np.full(7, 1 / 7),
        bounds=[(1e-9, 1)] * 7,
        constraints=[{"type": "eq", "fun": lambda q: q.sum() - 1}, {"type": "eq", "fun": lambda q: q @ excess / 99}],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    np.testing.assert_allclose(matching_chances(foreground, known, 0.4), found.x, atol=1e-3)


def test_a_fraction_that_is_there_already_leaves_even_chances():
    foreground, known = counts(3)
    fraction = foreground.sum() / known.sum()
    np.testing.assert_allclose(matching_chances(foreground, known, fraction), 1 / 400, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.floats(1e-6, 1 - 1e-6))
def test_any_fraction_gives_chances_that_come_nearer_to_it_and_are_not_of_few_places(seed, number, fraction):
    foreground, known = counts(seed, number)
    chances = matching_chances(foreground, known, fraction)
    assert chances.sum() == pytest.approx(1)
    assert 1 / (chances**2).sum() >= FEWEST * number * (1 - 1e-6)
    even = foreground.sum() - fraction * known.sum()
    assert abs(chances @ (foreground - fraction * known)) <= abs(even / number) + 1e-9


@pytest.mark.parametrize(("foreground", "known"), [([0, 0, 0], [9, 9, 9]), ([5, 5], [9, 9]), ([9], [9])])
def test_places_that_are_all_the_same_keep_even_chances(foreground, known):
    chances = matching_chances(np.array(foreground), np.array(known), 0.3)
    np.testing.assert_allclose(chances, 1 / len(known))


# --- in crops ---------------------------------------------------------------------------------------------------------


def item(seed, known=False):
    """An image whose left part is crowded, 60 %, and whose right part is nearly empty, 5 %."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([rng.random((1, 90, 70)) < 0.6, rng.random((1, 90, 110)) < 0.05], axis=2).astype(np.uint8)
    image = rng.integers(0, 256, label.shape, dtype=np.uint8)
    more = {"known": np.arange(180)[None, None] % 60 + np.zeros((1, 90, 1)) < 45} if known else {}
    return {"name": f"{seed}.png", "image": image, "label": label, **more}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.45])
def test_known_pixels_of_many_crops_have_the_fraction(fraction, known):
    dataset = CropDataset([item(1, known), item(2)], size=24, batch_size=400, seed=3, foreground=fraction)
    top = bottom = 0.0
    for q, (number, y, x) in zip(dataset.sampler.chances, dataset.sampler.places, strict=True):  # brute force
        source = dataset.images[number]
        inside = np.s_[y : y + 24, x : x + 24]
        mask = np.ones((24, 24), dtype=bool) if source.known is None else source.known[inside]
        top, bottom = top + q * source.label[inside][mask].sum(), bottom + q * mask.sum()
    assert top / bottom == pytest.approx(fraction, abs=1e-9)
    assert dataset.sampler.fraction == pytest.approx(fraction, abs=1e-9)
    batches = [dataset.crop_batch(step) for step in range(4)]
    seen = [float((b["label"] * b["known"]).sum()) for b in batches], [float(b["known"].sum()) for b in batches]
    assert sum(seen[0]) / sum(seen[1]) == pytest.approx(fraction, abs=0.03)


def test_a_fraction_out_of_reach_is_come_near_to():
    dataset = CropDataset([item(1)], size=24, foreground=0.99)
    plain = np.mean(dataset.images[0].label)
    assert plain + 0.1 < dataset.sampler.fraction < 0.99
    assert 1 / (dataset.sampler.chances**2).sum() == pytest.approx(FEWEST * PLACES, rel=1e-3)


def test_crops_are_a_function_of_seed_and_step():
    one, same, other = (CropDataset([item(1)], size=24, seed=s, foreground=0.3) for s in (1, 1, 2))
    assert one.sampler.places == same.sampler.places != other.sampler.places
    late = same.crop_batch(7)
    for step in range(3):
        one.crop_batch(step)
    assert all((one.crop_batch(7)[key] == late[key]).all() for key in late)
    assert (other.crop_batch(7)["image"] != late["image"]).any()


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, float("nan"), "half", True])
def test_other_fractions_are_refused(fraction):
    with pytest.raises(KWTLError, match="foreground must be"):
        CropDataset([item(1)], size=24, foreground=fraction)
