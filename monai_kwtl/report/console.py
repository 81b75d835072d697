"""Words on the console: the table of regions, the cost, and the settings for a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Cost, Region
from monai_kwtl.utils.text import format_table
from monai_kwtl.windows.scores import ImageScores

__all__ = ["image_title", "report_settings", "summary_lines", "window_rows"]


def window_rows(pool: Iterable[ImageScores]) -> Iterator[tuple]:
    """Return the rows of ``scores.csv``: image, page, x, y, width, height, score of every window."""
    for scores in pool:
        height, width = scores.grid.size
        for x, y, score in zip(scores.grid.x, scores.grid.y, scores.window_scores, strict=True):
            yield scores.name, scores.page, int(x), int(y), width, height, float(score)


def image_title(name: str, page: int | None) -> str:
    """Name an image for a reader: its name, and its page, counted from 1; bytes that are no text show so."""
    name = os.fsencode(name).decode("utf-8", "replace")
    return name if page is None else f"{name} page {page + 1}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def summary_lines(
    regions: Sequence[Region],
    cost: Cost,
    items: Sequence[Mapping[str, Any]],
    output_dir: Path,
    report: bool,
    most: int = 10,
) -> list[str]:
    """Return the closing lines of the select stage: the first regions, the cost, where the files are."""
    rows = [
        (r.rank, image_title(r.image, r.page), r.x, r.y, r.width, r.height, float(f"{r.score:.4g}"))
        for r in regions[:most]
    ]
    lines = ["", *format_table(("rank", "image", "x", "y", "width", "height", "score"), rows)]
    if len(regions) > most:
        lines.append(f"... and {len(regions) - most} more in {output_dir / 'selection.csv'}")
    total = sum(item["height"] * item["width"] for item in items)
    fraction = 100.0 * cost.unique_pixels / total
    lines += [
        "",
        f"cost: {_counted(cost.windows, 'window')} in {cost.images} of {_counted(len(items), 'image')}, "
        f"{_counted(cost.unique_pixels, 'distinct pixel')} ({float(f'{fraction:.2g}'):g} % of the pool)",
        f"selection: {output_dir / 'selection.json'}",
    ]
    if report:
        lines.append(f"picture:   {output_dir / 'what_to_label.png'}")
        lines.append(f"report:    {output_dir / 'report.html'}")
    return lines


def report_settings(budget: Budget, strategy: str, created_with: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the report's table shows them."""
    names = {"shots": "images' worth", "windows": "windows", "pixels": "pixels"}
    (kind, value), *_ = budget.as_dict().items()
    shown = f"{value:g}" if kind == "shots" else f"{int(value)}"
    return {"budget": f"{shown} {names[kind]}", "strategy": strategy, **created_with}
