"""Times and tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["format_seconds", "format_table"]


def format_seconds(seconds: float) -> str:
    """Format a duration for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lay out a table as lines of text: text to the left, numbers to the right."""
    rows = [list(row) for row in rows]
    cells = [list(header)] + [[value if isinstance(value, str) else str(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    text = [all(isinstance(row[column], str) for row in rows) for column in range(len(header))]
    aligned = [
        [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, text, strict=True)] for row in cells
    ]
    return ["  ".join(row).rstrip() for row in aligned]
