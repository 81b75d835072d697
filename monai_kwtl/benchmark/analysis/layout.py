"""Tables that come out as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Column", "Table", "markdown_table", "shown"]

MISSING = "-"


class Column(NamedTuple):
    """A column: its heading, how its numbers are formatted, and whether Markdown shows it."""

    name: str
    form: str = ""
    on_page: bool = True


def shown(value: Any, form: str = "", missing: str = MISSING) -> str:
    """Return a value as text; None and NaN are missing, and no number shows as -0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return missing
    text = value if isinstance(value, str) else format(value, form)
    return text.lstrip("-") if text.startswith("-") and not text.strip("-0.") and text != MISSING else text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[bool]) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        header: of each column.
        rows: their cells, as text.
        numbers: whether each column is set to the right.
    """

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join(" ---: " if right else " --- " for right in numbers) + "|"
    return [line(header), rule, *map(line, rows)]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its CSV file, without the suffix.
        columns: one for each value of a row.
        rows: values; None or NaN is missing.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    def where(self, keep: Callable[[dict[str, Any]], bool]) -> Table:
        """Return the rows of which ``keep`` says so; it gets {heading: value}."""
        names = [column.name for column in self.columns]
        return Table(self.name, self.columns, tuple(r for r in self.rows if keep(dict(zip(names, r, strict=True)))))

    def markdown(self, without: Iterable[str] = ()) -> list[str]:
        """Return lines of Markdown; missing values are a dash.

        Args:
            without: headings of columns to leave out.
        """
        left_out = set(without)
        places = [n for n, column in enumerate(self.columns) if column.on_page and column.name not in left_out]
        columns = [self.columns[n] for n in places]
        rows = [[shown(row[n], self.columns[n].form) for n in places] for row in self.rows]
        return markdown_table([column.name for column in columns], rows, [bool(column.form) for column in columns])

    def csv(self) -> str:
        """Return all columns and rows as CSV with a header; missing values are empty."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.name for column in self.columns])
        for row in self.rows:
            writer.writerow([shown(v, c.form, "") for v, c in zip(row, self.columns, strict=True)])
        return stream.getvalue()
