"""Which windows to label: budgets and strategies, as pure functions of window scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from monai_kwtl.box import Box
from monai_kwtl.errors import KWTLError
from monai_kwtl.strategies import STRATEGIES, ImageScores, flat_windows
from monai_kwtl.windows import WindowGrid

__all__ = [
    "Budget",
    "Cost",
    "ImageScores",
    "Region",
    "STRATEGIES",
    "check_free",
    "cost_of",
    "cover",
    "select_regions",
    "select_windows",
]

NOTHING_LEFT = (
    "every window overlaps a region that is labelled or handed out already: add images, use a smaller --window, or "
    "--strategy coverage, which takes what is left between them"
)


@dataclass(frozen=True)
class Region:
    """One region to label; ``x`` is the column, ``y`` the row of its top-left pixel, from the image's top left."""

    rank: int
    image: str
    page: int | None
    image_sha256: str
    x: int
    y: int
    width: int
    height: int
    score: float

    @property
    def box(self) -> Box:
        """Where it lies in its image."""
        return Box(self.x, self.y, self.width, self.height)

    @property
    def key(self) -> tuple[str, int | None, int, int, int, int]:
        """What tells regions apart, whatever their ranks and scores: image, page and box."""
        return (self.image, self.page, *self.box)


@dataclass(frozen=True)
class Cost:
    """What labelling a selection costs: windows, images touched, pixels (each counted once)."""

    windows: int
    images: int
    unique_pixels: int

    def as_dict(self) -> dict[str, int]:
        """The cost as ``selection.json`` holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """How much to label: exactly one of the three.

    Args:
        shots: images' worth of window area: as many windows as have together the area of so many mean images,
            rounded, at least one.
        windows: number of windows.
        pixels: number of distinct pixels; windows are taken while the next one still fits.

    Raises:
        KWTLError: when not exactly one is given, or it is not positive.
    """

    shots: float | None = None
    windows: int | None = None
    pixels: int | None = None
    _names: dict[str, str] = field(
        default_factory=lambda: {"shots": "budget", "windows": "budget_windows", "pixels": "budget_pixels"},
        repr=False,
        compare=False,
    )

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in self._names if getattr(self, name) is not None}
        if len(given) != 1:
            raise KWTLError(f"give one of budget, budget_windows and budget_pixels, got {len(given)} of them.")
        (name, value), *_ = given.items()
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):  # also refuses NaN, and takes integers of any size
            raise KWTLError(f"{self._names[name]} must be a number above 0, got {value!r}.")
        if name != "shots" and value != int(value):
            raise KWTLError(f"{self._names[name]} must be a whole number, got {value!r}.")

    def as_dict(self) -> dict[str, float | int]:
        """The budget as ``selection.json`` holds it."""
        return {k: getattr(self, k) for k in ("shots", "windows", "pixels") if getattr(self, k) is not None}

    def limits(self, grids: Sequence[WindowGrid]) -> tuple[int, float]:
        """Return the largest number of windows and of distinct pixels that the budget allows on a pool.

        Args:
            grids: the windows of each image of the pool.

        Raises:
            KWTLError: when the pool does not hold so much.
        """
        areas = np.array([grid.height * grid.width for grid in grids], dtype=np.float64)
        sizes = np.array([grid.size[0] * grid.size[1] for grid in grids], dtype=np.float64)
        total = sum(len(grid) for grid in grids)
        if self.pixels is not None:
            if self.pixels > areas.sum():
                asked = f"budget_pixels is {int(self.pixels)}"
                raise KWTLError(f"{asked}, but the pool has only {int(areas.sum())} pixels; ask for less.")
            smallest = int(sizes.min())
            if self.pixels < smallest:
                raise KWTLError(
                    f"budget_pixels is {int(self.pixels)}, less than one window of {smallest} pixels; "
                    "ask for more, or use a smaller --window."
                )
            return total, float(self.pixels)
        if self.windows is not None:
            windows, asked = int(self.windows), f"budget_windows is {int(self.windows)}"
        else:
            if self.shots > len(grids):
                raise KWTLError(
                    f"budget is {self.shots:g} images' worth, but the pool has only {len(grids)} images; ask for less."
                )
            windows = max(1, round(float(self.shots) * areas.mean() / sizes.mean()))
            windows, asked = min(windows, total), f"budget is {self.shots:g} images' worth"
        if windows > total:
            raise KWTLError(f"{asked}, but the pool has only {total} windows; ask for less, or use a smaller --step.")
        return windows, float("inf")


def select_windows(pool: Sequence[ImageScores], strategy: str, budget: Budget, seed: int = 0) -> list[tuple[int, int]]:
    """Choose windows of a pool.

    Args:
        pool: scores of each image; the result does not depend on their order.
        strategy: a name in :data:`STRATEGIES`; what each does is said there.
        budget: how much to take.
        seed: of the random strategies.

    Returns:
        (index into ``pool``, index into its windows) of each window, best first. Ties are broken by image name, page,
        then row, then column; what differs by less than a millionth of the largest counts as tied. May hold less than
        the budget where nothing more fits or everything is covered.

    Raises:
        KWTLError: for an unknown strategy, an empty pool, a budget larger than the pool, or where every window is
            labelled or handed out already.
    """
    if strategy not in STRATEGIES:
        raise KWTLError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}.")
    if not pool:
        raise KWTLError("the pool is empty: there is nothing to select from.")
    order = sorted(range(len(pool)), key=lambda index: pool[index].key)
    ordered = [pool[index] for index in order]
    windows, pixels = budget.limits([image.grid for image in ordered])
    images, indices = flat_windows(ordered)
    chosen = STRATEGIES[strategy](ordered, windows, pixels, np.random.default_rng(seed))
    if not chosen and any(image.covered is not None for image in pool):
        raise KWTLError(NOTHING_LEFT)
    return [(order[images[flat]], int(indices[flat])) for flat in chosen]


def select_regions(pool: Sequence[ImageScores], strategy: str, budget: Budget, seed: int = 0) -> list[Region]:
    """Choose windows as :func:`select_windows` does and return them as ranked regions, rank 1 first."""
    regions = []
    for rank, (image, window) in enumerate(select_windows(pool, strategy, budget, seed), start=1):
        scores = pool[image]
        height, width = scores.grid.size
        x, y = int(scores.grid.x[window]), int(scores.grid.y[window])
        score = float(scores.window_scores[window])
        regions.append(Region(rank, scores.name, scores.page, scores.sha256, x, y, width, height, score))
    return regions


def cover(scores: ImageScores, regions: Iterable[Region]) -> ImageScores:
    """Tell the scores of an image which of its pixels are labelled or handed out already.

    Args:
        scores: of the image.
        regions: of any images and sizes; those of this image and page count, as far as they lie inside.

    Returns:
        The scores with ``covered``; the same where no region is of this image.
    """
    mine = [r for r in regions if (r.image, r.page) == (scores.name, scores.page)]
    if not mine:
        return scores
    covered = np.zeros((scores.grid.height, scores.grid.width), dtype=np.uint8)
    for r in mine:
        covered[r.box.slices] = 1
    return replace(scores, covered=scores.grid.cell_sums(covered)) if covered.any() else scores


def check_free(items: Iterable[Mapping[str, Any]], window: int, step: int, regions: Sequence[Region]) -> None:
    """Raise a :class:`KWTLError` where no window of a pool is free of the regions.

    Args:
        items: the pool, dicts with "name", "page", "sha256", "height" and "width".
        window: side of a window, in pixels.
        step: pixels between windows.
        regions: that are labelled or handed out already.
    """
    for item in items:
        grid = WindowGrid(item["height"], item["width"], window, step)
        if cover(ImageScores(item["name"], item["page"], item["sha256"], grid, np.empty(0)), regions).free.any():
            return
    raise KWTLError(NOTHING_LEFT)


def cost_of(regions: Sequence[Region]) -> Cost:
    """Count windows, images and pixels of a selection, a pixel in several regions once."""
    pixels = 0
    images = {(region.image, region.page) for region in regions}
    for image in images:
        mine = [r for r in regions if (r.image, r.page) == image]
        rows = np.unique([edge for r in mine for edge in (r.y, r.y + r.height)])
        columns = np.unique([edge for r in mine for edge in (r.x, r.x + r.width)])
        covered = np.zeros((len(rows) - 1, len(columns) - 1), dtype=bool)
        for r in mine:
            top, bottom = np.searchsorted(rows, [r.y, r.y + r.height])
            left, right = np.searchsorted(columns, [r.x, r.x + r.width])
            covered[top:bottom, left:right] = True
        pixels += int((np.outer(np.diff(rows), np.diff(columns)) * covered).sum())
    return Cost(windows=len(regions), images=len(images), unique_pixels=pixels)
