"""Places of training crops drawn so that the labelled pixels in them have a wanted fraction of foreground."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from monai_kwtl.errors import KWTLError, check_number

__all__ = ["CropSampler", "PLACES", "matching_chances"]

PLACES = 4096  # drawn once for a data set
FEWEST = 0.1  # of the places, as an effective number, that crops are still spread over


def matching_chances(foreground: np.ndarray, known: np.ndarray, fraction: float, fewest: float = FEWEST) -> np.ndarray:
    """Return chances of places, as even as possible, that give the foreground a wanted fraction of the known pixels.

    Of all chances q with ``sum q foreground = fraction * sum q known`` these are nearest to even ones (least
    Kullback-Leibler divergence): ``q_i = exp(a d_i) / sum_j exp(a d_j)`` with
    ``d_i = foreground_i - fraction * known_i``, where a solves ``sum_i q_i d_i = 0``; that sum grows with a. a goes
    only so far that the effective number of places, ``1 / sum q^2``, which falls as a departs from 0, is still
    ``fewest`` of them: the fraction is then as near to the wanted one as that allows.

    Args:
        foreground: known foreground pixels at each place, (n,), n at least 1.
        known: known pixels at each place, (n,).
        fraction: wanted fraction, in (0, 1).
        fewest: smallest effective number of places as a part of all, in (0, 1].

    Returns:
        Chances, float64 (n,), which sum up to 1.
    """
    excess = np.asarray(foreground, dtype=np.float64) - fraction * np.asarray(known, dtype=np.float64)
    excess /= max(float(np.abs(excess).max()), 1e-12)

    def chances(a: float) -> np.ndarray:
        tilted = np.exp(a * excess - (a * excess).max())
        return tilted / tilted.sum()

    def missing(a: float) -> float:
        return float(chances(a) @ excess)

    def too_few(a: float) -> float:
        return 1.0 / (float((chances(a) ** 2).sum()) * len(excess)) - fewest

    sign = -float(np.sign(missing(0.0)))
    end = 1.0
    while end < 2**20 and too_few(sign * end) > 0 and sign * missing(sign * end) < 0:
        end *= 2
    if too_few(sign * end) < 0:
        end = brentq(lambda a: too_few(sign * a), 0.0, end)
    if sign * missing(sign * end) > 0:
        end = brentq(lambda a: missing(sign * a), 0.0, end)
    return chances(sign * end)


class CropSampler:
    """Many places drawn once as a data set draws them, from which crops then take theirs by :func:`matching_chances`.

    Args:
        draw: gives a place by a generator: number of the image, top row, left column.
        count: gives known foreground pixels and known pixels of a place.
        fraction: wanted fraction of foreground of the known pixels, in (0, 1).
        rng: for drawing the places.
        places: how many.

    Raises:
        KWTLError: when the fraction is not between 0 and 1.
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator], tuple[int, int, int]],
        count: Callable[[int, int, int], tuple[int, int]],
        fraction: float,
        rng: np.random.Generator,
        places: int = PLACES,
    ) -> None:
        if not 0 < check_number("foreground", fraction, 0, 1) < 1:
            raise KWTLError(f"foreground must be between 0 and 1, got {fraction!r}.")
        self.places = [draw(rng) for _ in range(places)]
        counts = np.array([count(*place) for place in self.places])
        self.chances = matching_chances(counts[:, 0], counts[:, 1], fraction)
        self.fraction = float(self.chances @ counts[:, 0] / (self.chances @ counts[:, 1]))  # that is expected
        self._ends = np.cumsum(self.chances)

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Draw a place."""
        chosen = int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))
        return self.places[min(chosen, len(self.places) - 1)]
