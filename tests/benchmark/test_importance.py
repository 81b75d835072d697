"""Weights with which labelled windows stand for the pool."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from monai_kwtl.benchmark.experiments.importance import importance_weights
from monai_kwtl.errors import KWTLError


def objective(weights, values, chosen, even=0.1):
    gap = (weights[:, None] * values[chosen]).mean(0) - values.mean(0)
    return (gap**2).sum() + even * ((weights - 1) ** 2).mean()


def pool_of(seed, count=200, columns=4):
    values = np.random.default_rng(seed).normal(size=(count, columns))
    return values - values.mean(0)


@pytest.mark.parametrize("seed", range(5))
def test_weights_minimise_what_they_are_said_to(seed):
    values = pool_of(seed)
    chosen = np.random.default_rng(seed + 100).choice(200, 7, replace=False)
    found = importance_weights(values, chosen)
    assert found.mean() == pytest.approx(1)
    bounds = [(0, 4)] * 7
    oracle = minimize(objective, np.ones(7), (values, chosen), method="L-BFGS-B", bounds=bounds, tol=1e-14).x
    np.testing.assert_allclose(found, oracle / oracle.mean(), atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_windows_are_nearer_to_the_pool(seed):
    values = pool_of(seed)
    chosen = np.flatnonzero(values[:, 0] > 0.5)[:12]
    weights = importance_weights(values, chosen)
    plain, weighed = values[chosen].mean(0), (weights[:, None] * values[chosen]).mean(0)
    assert np.linalg.norm(weighed) < np.linalg.norm(plain)


def test_of_two_kinds_the_rare_one_among_the_chosen_counts_for_more():
    values = np.repeat([[-1.0], [1.0]], 50, axis=0)
    weights = importance_weights(values, [0, 1, 2, 60])
    np.testing.assert_allclose(weights[:3], weights[0], atol=1e-6)
    assert weights[3] > 2 * weights[0] > 0


def test_windows_that_are_like_the_pool_count_alike():
    values = np.repeat([[-1.0], [1.0]], 50, axis=0)
    np.testing.assert_allclose(importance_weights(values, [0, 60]), 1)
    np.testing.assert_allclose(importance_weights(np.zeros((9, 3)), [4, 4, 8]), 1)
    np.testing.assert_allclose(importance_weights(pool_of(1), [3]), 1)


def test_no_weight_is_beyond_its_bounds():
    values = pool_of(3)
    chosen = np.flatnonzero(values[:, 0] > 1)[:10]
    weights = importance_weights(values, chosen, largest=1.5, even=1e-4)
    assert weights.min() >= 0
    assert weights.max() > 2, "they are scaled after they are bound"
    assert np.ptp(importance_weights(values, chosen, largest=1.0, even=10.0)) < np.ptp(weights)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"chosen": []}, "no window"), ({"largest": 0.5}, "largest"), ({"even": 0.0}, "even"), ({"even": -1}, "even")],
)
def test_bad_numbers_are_refused(arguments, match):
    with pytest.raises(KWTLError, match=match):
        importance_weights(**{"values": pool_of(0), "chosen": [1, 2], **arguments})
