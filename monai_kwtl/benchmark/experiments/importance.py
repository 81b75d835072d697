"""Weights of labelled windows with which they stand for the pool, where they are not quite like it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import lsq_linear

from monai_kwtl.errors import KWTLError, check_number

__all__ = ["importance_weights"]


def importance_weights(
    values: np.ndarray, chosen: Sequence[int], largest: float = 4.0, even: float = 0.1
) -> np.ndarray:
    """Weigh windows so that their weighted mean is as near as it gets to that of all windows.

    Kernel mean matching (Huang, Gretton, Borgwardt, Schoelkopf and Smola 2007) with the linear kernel: minimise
    ``|sum_i w_i x_i / n - mean x|^2 + even sum_i (w_i - 1)^2 / n`` over weights in [0, ``largest``], which are then
    scaled to have the mean 1. The second term keeps few windows from bearing all of the weight.

    Args:
        values: of all windows of the pool, shape (windows, D), each column of about the same spread, such as
            :func:`monai_kwtl.selection.balanced.covariates`.
        chosen: numbers of the n windows to weigh, at least one.
        largest: weight before they are scaled, at least 1.
        even: how much it counts that the weights are alike, above 0.

    Returns:
        float64, shape (n,), not negative, of mean 1; the same window twice has the same weight twice.

    Raises:
        KWTLError: when nothing is chosen, or a number is out of range.
    """
    check_number("largest", largest, 1)
    check_number("even", even, 0, above=True)
    count = len(chosen)
    if not count:
        raise KWTLError("there is no window to weigh; choose at least one.")
    x = np.asarray(values, dtype=np.float64)
    own = np.asarray(chosen, dtype=np.int64)
    ridge = np.sqrt(even / count)
    matrix = np.concatenate([x[own].T / count, ridge * np.eye(count)])
    wanted = np.concatenate([x.mean(0), np.full(count, ridge)])
    weights = lsq_linear(matrix, wanted, (0.0, largest)).x.clip(0.0, largest)
    return weights / weights.mean() if weights.any() else np.ones(count)
