"""The budget of a selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.windows.grid import WindowGrid

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """Amount to label: exactly one of the three.

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
        """Return the budget as ``selection.json`` holds it."""
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
