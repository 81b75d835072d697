"""Finished cells as tables: ``results.csv``, the same bytes for the same cells, and their times in another file."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_kwtl.benchmark.rows import COLUMNS, KEYS, TIME_COLUMNS, Key
from monai_kwtl.benchmark.store import Store
from monai_kwtl.whole_files import written_whole

__all__ = ["write_results"]


def _text(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _table(columns: tuple[str, ...], rows: list[tuple[Key, Mapping[str, Any]]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for key, values in sorted(rows, key=lambda row: row[0]):
        named = [f"{value:g}" if isinstance(value, float) else str(value) for value in dataclasses.astuple(key)]
        writer.writerow([*named, *(_text(values[name]) for name in columns[len(KEYS) :])])
    return stream.getvalue()


def write_results(folder: Path, store: Store, results: Mapping[Key, str]) -> int:
    """Write ``results.csv`` and ``times.csv``: a row for each finished cell, sorted by the columns that name it.

    Shares and IoUs are fractions in [0, 1] with six digits. Seconds have a file of their own, because they are never
    the same twice; those of a cell that shares its scores with others include the scoring.

    Args:
        folder: made if absent.
        store: has the finished cells.
        results: key in the store of each cell of the grid.

    Returns:
        The number of rows.

    Raises:
        KWTLError: when the tables cannot be written.
    """
    finished = [(key, store.cell(name)) for key, name in results.items() if store.has("cell", name)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, part in (("results.csv", COLUMNS, "result"), ("times.csv", TIME_COLUMNS, "times")):
        with written_whole(folder / name, "make room, or choose another output_dir") as unfinished:
            rows = [(key, document[part]) for key, document in finished]
            unfinished.write_text(_table(columns, rows), encoding="utf-8", newline="")
    return len(finished)
