"""results.csv and times.csv: one row for each finished cell of the grid, read and checked."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.json_documents import short

__all__ = [
    "BASELINES",
    "COLUMNS",
    "KEYS",
    "Key",
    "METHODS",
    "Row",
    "Scope",
    "TIME_COLUMNS",
    "WITHOUT_BUDGET",
    "merged_rows",
    "missing_cells",
    "read_rows",
    "read_times",
    "rows_text",
    "table_text",
]

METHODS = (
    "top_k_soft",
    "top_k_hard",
    "coverage",
    "entropy",
    "mc_dropout",
    "random",
    "random_stratified",
    "foreground_random",
    "strided",
    "top_k_kl",
    "top_k_jsd",
    "power",
    "two_thirds",
    "balanced",
    "balanced_2_rounds",
    "balanced_3_rounds",
    "herding",
    "herding_2_rounds",
    "herding_3_rounds",
    "random_then_coverage",
    "random_then_power",
    "random_then_foreground",
    "typical",
    "k_centre",
    "pretext_only",
    "full",
)
BASELINES = ("random", "random_stratified", "foreground_random")
WITHOUT_BUDGET = ("pretext_only", "full")  # no windows are chosen: all labels, or none

_TARGETS = ("TNBC", "EM", "ssTEM", "B5", "B39")  # the paper's order
_PROTOCOLS = ("random", "blocked")
_KINDS = ("shots", "pixels")
_COUNTS = ("windows", "unique_pixels", "images", "objects")


class Scope(NamedTuple):
    """Properties that rows must share to be compared with one another."""

    target: str
    protocol: str
    schedule: str
    variant: str
    budget_kind: str

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: the paper's order of targets, others by name, random splits first, the base variant first."""
        return (
            _place(_TARGETS, self.target),
            _place(_PROTOCOLS, self.protocol),
            self.schedule,
            (self.variant != "base", self.variant),
            _place(_KINDS, self.budget_kind),
        )


@dataclass(frozen=True, order=True)
class Key:
    """Name of a cell; the fields are the first columns of the tables, in their order."""

    target: str
    protocol: str
    split: int
    seed: int
    schedule: str
    variant: str
    method: str
    budget_kind: str
    budget: float


@dataclass(frozen=True)
class Row(Key):
    """A finished cell: one method, at one budget, on one split of one target.

    Intersection over union, Dice and the shares are in [0, 1]; ``budget`` counts the paper's shots or images' worth of
    pixels, as ``budget_kind`` says, and is 0 where it is left empty, as for full supervision.
    """

    mean_iou: float
    pooled_iou: float
    dice: float
    windows: float
    unique_pixels: float
    images: float
    objects: float
    foreground_share: float
    over_prediction: float
    under_prediction: float
    device: str

    @property
    def scope(self) -> Scope:
        """What it shares with the rows that it is compared with."""
        return Scope(self.target, self.protocol, self.schedule, self.variant, self.budget_kind)

    @property
    def pair(self) -> tuple[int, int]:
        """(split, seed): what paired differences are paired by."""
        return self.split, self.seed

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes the cell this one and no other, as a sort key."""
        return (*self.scope.order, _place(METHODS, self.method), self.budget, self.split, self.seed)


COLUMNS = tuple(field.name for field in fields(Row))
KEYS = tuple(field.name for field in fields(Key))
TIME_COLUMNS = (*KEYS, "select_seconds", "train_seconds")


def _place(known: tuple[str, ...], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def _text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _whole(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError(f"must be a whole number from 0, not {short(value)}")
    return number


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"must be a number from 0, not {short(value)}")
    return number


def _share(value: str) -> float:
    number = _number(value)
    if number > 1:
        raise ValueError(f"must be from 0 to 1, not {short(value)}")
    return number


def _method(value: str) -> str:
    if value not in METHODS:
        raise ValueError(f"must be one of {', '.join(METHODS)}, not {short(value)}")
    return value


def _kind(value: str) -> str:
    if value not in _KINDS:
        raise ValueError(f"must be shots or pixels, not {short(value)}")
    return value


_PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("target", "protocol", "schedule", "variant", "device"), _text),
    **dict.fromkeys(("split", "seed"), _whole),
    **dict.fromkeys(("mean_iou", "pooled_iou", "dice", "foreground_share"), _share),
    "method": _method,
    "budget_kind": _kind,
    "budget": lambda value: _number(value or "0"),
}


def _records(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the parsed rows of a CSV file whose header is ``columns``."""
    mend = "give the file that the benchmark wrote"
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            if tuple(next(lines, ())) != columns:
                raise KWTLError(f"{path}: its first line is not {','.join(columns)}; {mend}")
            for values in lines:
                where = f"{path}: line {lines.line_num}"
                if len(values) != len(columns):
                    raise KWTLError(f"{where}: {len(values)} values instead of {len(columns)}; {mend}")
                record = {}
                for name, value in zip(columns, values, strict=True):
                    try:
                        record[name] = _PARSERS.get(name, _number)(value)
                    except ValueError as error:
                        raise KWTLError(f"{where}: {name} {error}; {mend}") from None
                yield record
    except OSError as error:
        raise KWTLError(f"{path}: cannot be read ({error.strerror}); {mend}") from error
    except UnicodeDecodeError as error:
        raise KWTLError(f"{path}: not a text file (byte {error.start}); {mend}") from error
    except csv.Error as error:
        raise KWTLError(f"{path}: no CSV ({error}); {mend}") from error


def read_rows(path: str | Path) -> list[Row]:
    """Read results.csv.

    Args:
        path: of the file; its first line must be :data:`COLUMNS`.

    Returns:
        The cells in one order, whatever the order in the file: by target, protocol, schedule, variant, kind of budget,
        method, budget, split and seed. None where the file has a header only.

    Raises:
        KWTLError: one line, with the number of the line in the file, when it cannot be read, a value is not of its
            kind, or a cell is there twice.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for record in _records(Path(path), COLUMNS):
        row = Row(**record)
        if row.key in rows:
            cell = ", ".join(f"{name} {record[name]}" for name in KEYS)
            raise KWTLError(f"{path}: the cell of {cell} is there twice; remove one of its lines")
        rows[row.key] = row
    return [rows[key] for key in sorted(rows)]


def merged_rows(paths: Sequence[str | Path]) -> list[Row]:
    """Put several results.csv together, as :func:`read_rows` reads each.

    Raises:
        KWTLError: as :func:`read_rows`, and where a cell that two files share has another result in each.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    for path in paths:
        for row in read_rows(path):
            if rows.setdefault(row.key, row) != row:
                cell = ", ".join(f"{name} {getattr(row, name)}" for name in KEYS)
                raise KWTLError(f"{path}: another file has another result of {cell}; give results of one store")
    return [rows[key] for key in sorted(rows)]


def rows_text(rows: Iterable[Row]) -> str:
    """Return rows as the text of results.csv, as :func:`read_rows` reads it."""
    return table_text(COLUMNS, map(vars, rows))


def table_text(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of results.csv or times.csv: a header, then a line a record, by the names of the columns."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_shown(name, record[name]) for name in columns])
    return stream.getvalue()


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if name == "budget":
        return f"{value:g}"
    return f"{value:.0f}" if name in _COUNTS else f"{value:.6f}"


def read_times(*paths: str | Path) -> dict[tuple[str, str, str], list[tuple[float, float]]]:
    """Read times.csv, the durations of the cells of the base variant; of several files each cell once.

    Args:
        paths: of the files; their columns are the first nine of results.csv, select_seconds and train_seconds.

    Returns:
        {(target, schedule, method): [(seconds of choosing, seconds of training), ...]}.

    Raises:
        KWTLError: as :func:`read_rows` does.
    """
    cells = {}
    for path in paths:
        for record in _records(Path(path), TIME_COLUMNS):
            if record["variant"] == "base":
                cells.setdefault(tuple(record[name] for name in KEYS), record)
    times: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for record in cells.values():
        key = (record["target"], record["schedule"], record["method"])
        times.setdefault(key, []).append(tuple(record[name] for name in TIME_COLUMNS[len(KEYS) :]))
    return {key: sorted(values) for key, values in times.items()}


def missing_cells(rows: Iterable[Row]) -> list[tuple[Scope, str, float, tuple[int, int]]]:
    """List the cells that a complete grid would have.

    A grid is complete when, within a scope, every method that any row has was run at every budget that any row has, on
    every (split, seed) that any row has; :data:`WITHOUT_BUDGET` counts at its own budgets only.

    Args:
        rows: as from :func:`read_rows`.

    Returns:
        (scope, method, budget, (split, seed)) of each missing cell, in the order of the rows.
    """
    by_scope: dict[Scope, list[Row]] = {}
    for row in rows:
        by_scope.setdefault(row.scope, []).append(row)
    missing = []
    for scope in sorted(by_scope, key=lambda scope: scope.order):
        found = by_scope[scope]
        pairs = sorted({row.pair for row in found})
        shared = {row.budget for row in found if row.method not in WITHOUT_BUDGET}
        there = {(row.method, row.budget, row.pair) for row in found}
        for method in METHODS:
            own = {row.budget for row in found if row.method == method}
            budgets = own if method in WITHOUT_BUDGET or not own else shared
            wanted = ((method, budget, pair) for budget in sorted(budgets) for pair in pairs)
            missing += [(scope, *cell) for cell in wanted if cell not in there]
    return missing
