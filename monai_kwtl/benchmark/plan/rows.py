"""results.csv and times.csv: one row for each finished experiment of the grid, read and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from monai_kwtl.benchmark.plan.methods import METHODS
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.json_documents import short

__all__ = [
    "BASELINES",
    "COLUMNS",
    "KEYS",
    "Key",
    "RUN",
    "SCOPE",
    "TIME_COLUMNS",
    "WITHOUT_BUDGET",
    "in_order",
    "merged_rows",
    "missing_experiments",
    "places",
    "read_rows",
    "read_times",
    "rows_text",
]

BASELINES = ("random", "random_stratified", "foreground_random")
WITHOUT_BUDGET = ("pretext_only", "full")  # no windows are chosen: all labels, or none


@dataclass(frozen=True, order=True)
class Key:
    """Name of an experiment; the fields are the first columns of the tables, in their order."""

    target: str
    protocol: str
    split: int
    seed: int
    schedule: str
    variant: str
    method: str
    budget_kind: str
    budget: float


KEYS = [field.name for field in fields(Key)]
COLUMNS = [
    *KEYS,
    *("mean_iou", "pooled_iou", "dice", "windows", "unique_pixels", "images", "objects"),
    *("foreground_share", "over_prediction", "under_prediction", "device"),
]
TIME_COLUMNS = [*KEYS, "select_seconds", "train_seconds"]
SCOPE = ["target", "protocol", "schedule", "variant", "budget_kind"]  # what rows must share to be compared
RUN = ["split", "seed"]  # what paired differences are paired by

_ORDER = {  # names that come first, in the paper's order; others follow by name
    "target": ("TNBC", "EM", "ssTEM", "B5", "B39"),
    "protocol": ("random", "blocked"),
    "variant": ("base",),
    "budget_kind": ("shots", "pixels"),
    "method": tuple(METHODS),
}
_NAMES = {name: _ORDER[name] for name in ("method", "budget_kind")}
_WORDS = ("target", "protocol", "schedule", "variant", "device")
_SHARES = ("mean_iou", "pooled_iou", "dice", "foreground_share")
_FORMS = {  # how columns are written; other numbers have six digits
    **dict.fromkeys((*_WORDS, *_NAMES), ""),
    **dict.fromkeys((*RUN, "windows", "unique_pixels", "images", "objects"), ".0f"),
    "budget": "g",
}
_FIX = "give the file that the benchmark wrote"


def places(column: pd.Series) -> pd.Series:
    """Return the place of each value in the order of its column, as a key to sort by."""
    known = _ORDER.get(column.name)
    if known is None:
        return column
    names = [*known, *sorted(set(column) - set(known))]
    return column.map({name: place for place, name in enumerate(names)})


def in_order(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Sort by columns: the paper's order of targets, others by name, random splits first, the base variant first."""
    return frame.sort_values(list(columns), key=places, kind="stable", ignore_index=True)


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a CSV file whose header is ``columns``, and check its values."""
    try:
        frame = pd.read_csv(path, dtype=str, na_filter=False, skip_blank_lines=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise KWTLError(f"{path}: cannot be read as CSV ({reason}); {_FIX}") from error
    if list(frame.columns) != list(columns) or not isinstance(frame.index, pd.RangeIndex):
        raise KWTLError(f"{path}: its first line is not {','.join(columns)}, or a line is longer; {_FIX}")
    for name in columns:
        text = frame[name]
        if name in _NAMES:
            good, must = text.isin(_NAMES[name]), f"be one of {', '.join(_NAMES[name])}"
        elif name in _WORDS:
            good, must = text != "", "have a value"
        else:
            frame[name] = pd.to_numeric(text.replace("", "0") if name == "budget" else text, errors="coerce")
            good, must = frame[name].between(0, math.inf, inclusive="left"), "be a number from 0"
            if name in RUN:
                good, must = good & (frame[name] % 1 == 0), "be a whole number from 0"
            elif name in _SHARES:
                good, must = good & (frame[name] <= 1), "be a number from 0 to 1"
        if not good.all():
            line = int(good.argmin())
            raise KWTLError(f"{path}: line {line + 2}: {name} must {must}, not {short(text[line])}; {_FIX}")
    numbers = {name: int if name in RUN else float for name in columns if name not in (*_NAMES, *_WORDS)}
    return frame.astype(numbers)


def _check_single(rows: pd.DataFrame, path: str | Path, problem: str) -> None:
    """Refuse rows that name one experiment twice."""
    twice = rows[rows.duplicated(KEYS)]
    if len(twice):
        experiment = ", ".join(f"{name} {twice.iloc[0][name]}" for name in KEYS)
        raise KWTLError(f"{path}: the experiment of {experiment} {problem}")


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read results.csv.

    Intersection over union, Dice and the shares are in [0, 1]; ``budget`` counts the paper's shots or images' worth of
    pixels, as ``budget_kind`` says, and is 0 where it is left empty, as for full supervision.

    Args:
        path: of the file; its first line must be :data:`COLUMNS`.

    Returns:
        A row for each experiment: one method, at one budget, on one split of one target. They are in one order,
        whatever the order in the file: by :data:`SCOPE`, method, budget, split and seed. None where the file has a
        header only.

    Raises:
        KWTLError: one line, with the number of the line in the file, when it cannot be read, a value is not of its
            kind, or an experiment is there twice.
    """
    rows = _read(Path(path), COLUMNS)
    _check_single(rows, path, "is there twice; remove one of its lines")
    return in_order(rows, [*SCOPE, "method", "budget", *RUN])


def merged_rows(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Put several results.csv together, as :func:`read_rows` reads each.

    Raises:
        KWTLError: as :func:`read_rows`, and where an experiment that two files share has another result in each.
    """
    rows = pd.concat([read_rows(path) for path in paths]).drop_duplicates()
    _check_single(rows, ", ".join(map(str, paths)), "has another result in each; give results of one store")
    return in_order(rows, [*SCOPE, "method", "budget", *RUN])


def rows_text(rows: pd.DataFrame) -> str:
    """Return rows as the text of results.csv or times.csv, as :func:`read_rows` and :func:`read_times` read it."""
    texts = {name: [format(value, _FORMS.get(name, ".6f")) for value in rows[name]] for name in rows}
    return pd.DataFrame(texts, columns=rows.columns).to_csv(index=False, lineterminator="\n")


def read_times(*paths: str | Path) -> pd.DataFrame:
    """Read times.csv, the durations of the experiments; of several files each experiment once.

    Args:
        paths: of the files; their first line must be :data:`TIME_COLUMNS`.

    Raises:
        KWTLError: as :func:`read_rows` does.
    """
    none = pd.DataFrame(columns=TIME_COLUMNS)
    return pd.concat([_read(Path(path), TIME_COLUMNS) for path in paths] or [none]).drop_duplicates(KEYS)


def missing_experiments(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the experiments that a complete grid would have and this one has not.

    A grid is complete when, within a scope, every method that any row has was run at every budget that any row has, on
    every (split, seed) that any row has; :data:`WITHOUT_BUDGET` counts at its own budgets only.

    Args:
        rows: as from :func:`read_rows`.

    Returns:
        Columns :data:`SCOPE`, method, budget, split and seed, in the order of the rows.
    """
    columns = [*SCOPE, "method", "budget", *RUN]
    rows = rows[columns]
    free = rows["method"].isin(WITHOUT_BUDGET)
    methods, budgets = (rows.loc[~free, [*SCOPE, name]].drop_duplicates() for name in ("method", "budget"))
    wanted = pd.concat([methods.merge(budgets), rows.loc[free, [*SCOPE, "method", "budget"]]]).drop_duplicates()
    wanted = wanted.merge(rows[[*SCOPE, *RUN]].drop_duplicates())
    found = wanted.merge(rows, how="left", indicator="where")
    return in_order(found.loc[found["where"] == "left_only", columns], columns)
