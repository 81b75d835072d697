"""Strategies that choose windows which look different from each other, by features of the network's latent."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.linalg import eigh
from scipy.spatial.distance import pdist

from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.greedy import TIE, first_of_best, take_apart
from monai_kwtl.utils.sampling import evenly_spaced_indices
from monai_kwtl.windows.scores import ImageScores, flat_windows

__all__ = [
    "features_of",
    "herding",
    "k_centre",
    "mostly_covered",
    "nearest_of",
    "pixels_covered",
    "principal_components",
    "typical",
    "weight_of_scores",
    "window_area",
]

DIMENSIONS = 128  # of the features after the principal component analysis
MOST_POINTS = 4096  # windows that stand for the pool where it has more
_BLOCK = 256  # windows whose gain is computed at once


def features_of(pool: Sequence[ImageScores], strategy: str) -> list[np.ndarray]:
    """Return the features of the windows of each image.

    Raises:
        KWTLError: where an image has none.
    """
    if any(image.features is None for image in pool):
        raise KWTLError(
            f"strategy {strategy!r} needs features of the windows, which a network with a latent gives, such as FCRN."
        )
    return [image.features for image in pool]


def principal_components(features: Sequence[np.ndarray], dimensions: int = DIMENSIONS) -> np.ndarray:
    """Project features on the directions in which they vary most (principal component analysis).

    Args:
        features: of the windows of each image, shape (windows, D), any real type; D is the same for all.
        dimensions: at most so many are kept, and no more than vary at all.

    Returns:
        float32, shape (all windows, at most ``dimensions``), centred; one column of zeros where all are alike.
    """
    count, columns = sum(len(part) for part in features), features[0].shape[1]
    total, scatter = np.zeros(columns), np.zeros((columns, columns))
    for part in features:  # each is widened once: its values are near to 1 at most, and the sums far from rounding
        wide = part.astype(np.float64)
        total += wide.sum(0)
        scatter += wide.T @ wide
    mean = total / count
    scatter -= count * np.outer(mean, mean)
    values, vectors = eigh(scatter, subset_by_index=[max(0, columns - dimensions), columns - 1])
    # what is left by rounding where all features are alike is no direction
    least = max(values[-1] * 1e-9, 1e-12 * count * float(mean @ mean))
    kept = np.flatnonzero(values > least)[::-1] if values[-1] > least else np.array([-1])
    axes = vectors[:, kept]
    # an axis may point either way: let its largest part be positive
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return np.concatenate([((part.astype(np.float64) - mean) @ axes).astype(np.float32) for part in features])


def _points(pool: Sequence[ImageScores], strategy: str) -> np.ndarray:
    return principal_components(features_of(pool, strategy))


def mostly_covered(pool: Sequence[ImageScores]) -> np.ndarray:
    """Return the windows more than half covered already, bool, in the order of ``flat_windows``."""
    fractions = [
        np.zeros(len(image.grid))
        if image.covered is None
        else image.grid.window_sums(image.covered).reshape(-1) / (image.grid.size[0] * image.grid.size[1])
        for image in pool
    ]
    return np.concatenate(fractions) > 0.5


def pixels_covered(pool: Sequence[ImageScores]) -> float:
    """Count the pixels of the pool that are labelled or assigned already."""
    return sum(float(image.covered.sum()) for image in pool if image.covered is not None)


def nearest_of(numbers: np.ndarray, distances: np.ndarray) -> int:
    """Return the number with the smallest distance, of equal ones (on the scale of all distances) the first."""
    return int(numbers[first_of_best(-distances, float(distances.max()))])


def window_area(pool: Sequence[ImageScores]) -> float:
    """Return the pixels of a window, the mean over images: small images have smaller windows."""
    return float(np.mean([image.grid.size[0] * image.grid.size[1] for image in pool]))


def _kernel(points: np.ndarray, others: np.ndarray, width: float) -> np.ndarray:
    """Compute the Gaussian kernel ``exp(-d^2 / (2 width^2))``, shape (len(points), len(others)); 1 for equal points."""
    squared = (points**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2.0 * points @ others.T
    return np.exp(np.maximum(squared, 0.0) * (-0.5 / width**2))


def weight_of_scores(windows: int, pixels: float, pool: Sequence[ImageScores]) -> float:
    """Return the exponent of the scores in :func:`herding`: 0 up to one image's worth, 1 from ten, logarithmic between.

    What is labelled or assigned already counts as well.

    Args:
        windows: largest number of windows.
        pixels: largest number of distinct pixels.
        pool: images.
    """
    area = np.mean([image.grid.height * image.grid.width for image in pool])
    spent = pixels_covered(pool) + min(windows * window_area(pool), pixels)
    return float(np.clip(np.log10(max(spent / area, 1e-9)), 0.0, 1.0))


def herding(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Greedily the window with which the windows chosen resemble the pool best, the uncertain ones above all.

    Uncertainty herding (Bae, Oliveira and Sutherland 2024): maximise ``sum_n u_n^beta max_{s in S} k(n, s)``, with the
    windows' scores rescaled to [0, 1] as ``u``, and ``k`` a Gaussian kernel as wide as the median distance. ``beta`` is
    0 at small budgets, where what is typical counts, and 1 at large ones, where doubts do (:func:`weight_of_scores`).
    What is labelled or assigned already is in S from the start. Of more than 4096 windows, as many, evenly spread,
    stand for the pool; each window may still be taken.
    """
    points = _points(pool, "herding")
    scores = np.concatenate([image.window_scores for image in pool])
    spread = np.ptp(scores)
    uncertainty = (scores - scores.min()) / spread if spread > 0 else np.ones(len(scores))
    sample = evenly_spaced_indices(len(points), MOST_POINTS)
    others = points[sample]
    weights = (uncertainty[sample] ** weight_of_scores(windows, pixels, pool)).astype(np.float32)
    distances = pdist(points[evenly_spaced_indices(len(points), 1024)])
    width = float(np.median(distances)) if len(distances) else 0.0
    width = width or 1.0
    nearest = np.zeros(len(others), dtype=np.float32)  # to the windows chosen: the largest k
    labelled = points[mostly_covered(pool)]
    for known in np.array_split(labelled, max(1, -(-len(labelled) // _BLOCK))):
        if len(known):
            np.maximum(nearest, _kernel(known, others, width).max(0), out=nearest)

    def gains(numbers: np.ndarray) -> np.ndarray:
        return np.maximum(_kernel(points[numbers], others, width) - nearest, 0.0) @ weights

    # a gain only falls as windows are taken: an old one is an upper bound, and few have to be computed anew
    bounds = np.concatenate([gains(part) for part in np.array_split(np.arange(len(points)), -(-len(points) // _BLOCK))])

    def best(wanted: np.ndarray) -> int:
        numbers = np.flatnonzero(wanted)
        fresh = np.zeros(len(bounds), dtype=bool)
        while True:
            left = bounds[numbers]
            equal = numbers[left >= (1.0 - TIE) * left.max()]
            top = equal[0]
            if fresh[top]:
                break
            stale = numbers[~fresh[numbers]]
            part = stale[np.argsort(-bounds[stale], kind="stable")[:_BLOCK]]
            bounds[part] = gains(part)
            fresh[part] = True
        np.maximum(nearest, _kernel(points[[top]], others, width)[0], out=nearest)
        return int(top)

    return take_apart(pool, windows, pixels, best)


def _clusters(pool: Sequence[ImageScores], windows: float, pixels: float, least: int = 1) -> int:
    """Return the number of windows of the pool's usual size that a budget holds."""
    return max(least, int(min(windows, pixels / window_area(pool))))


def _distant(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw points to begin k-means with, one by one with the squared distance to those before (k-means++)."""
    chosen = [int(rng.integers(len(points)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < count:
        total = distance.sum()
        drawn = rng.random() * total
        chosen.append(int(min(np.searchsorted(np.cumsum(distance), drawn, side="right"), len(points) - 1)))
        np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1), out=distance)
    return points[chosen]


def typical(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Choose the windows in the middle of clusters (TypiClust, Hacohen, Dekel and Weinshall 2022, by k-means).

    There is a cluster for each window that the budget holds, and for each that would hold what is labelled or assigned
    already; clusters with a labelled window are passed over. Larger clusters come first; where the window nearest
    to a centre may not be taken, the next nearest is.
    """
    points = _points(pool, "typical")
    labelled = mostly_covered(pool)
    sample = evenly_spaced_indices(len(points), MOST_POINTS)
    seen = points[sample].astype(np.float64)
    spent = _clusters(pool, np.inf, pixels_covered(pool), 0)
    count = min(_clusters(pool, windows, pixels) + spent, len(np.unique(seen, axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cluster that has run empty, which is left out below
        centres, members = kmeans2(seen, _distant(seen, count, rng), minit="matrix")
    sizes = np.bincount(members, minlength=count)
    if labelled.any():
        owners = ((points[labelled].astype(np.float64)[:, None] - centres) ** 2).sum(-1).argmin(1)
        if np.count_nonzero(np.delete(sizes, np.unique(owners))):
            sizes[owners] = 0
    centres = centres[np.argsort(-sizes, kind="stable")][: np.count_nonzero(sizes)]
    turn = 0

    def best(wanted: np.ndarray) -> int:
        nonlocal turn
        numbers = np.flatnonzero(wanted)
        centre = centres[turn % len(centres)].astype(np.float32)
        turn += 1
        return nearest_of(numbers, ((points[numbers] - centre) ** 2).sum(1))

    return take_apart(pool, windows, pixels, best)


def k_centre(pool: Sequence[ImageScores], windows: int, pixels: float, rng: np.random.Generator) -> list[int]:
    """Choose the window least like any chosen before (core-set by greedy k-centre, Sener and Savarese 2018).

    It begins with the window nearest to the mean of the pool, or with what is labelled or assigned already.
    """
    points = _points(pool, "k_centre")
    images, _ = flat_windows(pool)
    distance = np.full(len(images), np.inf, dtype=np.float32)
    for number in np.flatnonzero(mostly_covered(pool)):
        np.minimum(distance, ((points - points[number]) ** 2).sum(1), out=distance)

    def best(wanted: np.ndarray) -> int:
        numbers = np.flatnonzero(wanted)
        if np.isinf(distance[numbers[0]]):
            chosen = nearest_of(numbers, (points[numbers] ** 2).sum(1))
        else:
            chosen = int(numbers[first_of_best(distance[numbers])])
        np.minimum(distance, ((points - points[chosen]) ** 2).sum(1), out=distance)
        return chosen

    return take_apart(pool, windows, pixels, best)
