"""Finished experiments as tables.

``results.csv``, the same bytes for the same experiments, and their times in another file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from monai_kwtl.benchmark.plan.rows import COLUMNS, TIME_COLUMNS, Key, rows_text
from monai_kwtl.benchmark.plan.store import Store
from monai_kwtl.utils.atomic import atomic_write

__all__ = ["write_results"]


def write_results(folder: Path, store: Store, results: Mapping[Key, str]) -> int:
    """Write ``results.csv`` and ``times.csv``: a row for each finished experiment, sorted by the columns that name it.

    Shares and IoUs are fractions in [0, 1] with six digits. Seconds have a file of their own, because they are never
    the same twice; those of an experiment that shares its scores with others include the scoring.

    Args:
        folder: made if absent.
        store: has the finished experiments.
        results: key in the store of each experiment of the grid.

    Returns:
        The number of rows.

    Raises:
        KWTLError: when the tables cannot be written.
    """
    finished = [(key, store.experiment(name)) for key, name in sorted(results.items()) if store.has("cell", name)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns, part in (("results.csv", COLUMNS, "result"), ("times.csv", TIME_COLUMNS, "times")):
        rows = pd.DataFrame([{**vars(key), **document[part]} for key, document in finished], columns=columns)
        with atomic_write(folder / name, "make room, or choose another output_dir") as unfinished:
            unfinished.write_text(rows_text(rows), encoding="utf-8", newline="")
    return len(finished)
