"""Tables that come out as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

__all__ = ["Table", "markdown_table", "shown"]

MISSING = "-"
_HEADINGS = {"budget_kind": "budget kind", "unique_pixels": "unique pixels"}  # of columns of the rows


def shown(value: Any, form: str = "", missing: str = MISSING) -> str:
    """Return a value as text; None and NaN are missing, and no number shows as -0."""
    if pd.isna(value):
        return missing
    text = value if isinstance(value, str) else format(value, form)
    return text.lstrip("-") if text.startswith("-") and not text.strip("-0.") and text != MISSING else text


def markdown_table(texts: pd.DataFrame, numbers: Collection[str] = ()) -> list[str]:
    """Return the lines of a table in Markdown.

    Args:
        texts: its cells, with the headings as names of the columns.
        numbers: headings of the columns that are set to the right.
    """
    lines = [list(texts.columns), *texts.itertuples(index=False)]
    header, *rows = (
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
    return [header, "|" + "|".join(" ---: " if name in numbers else " --- " for name in texts.columns) + "|", *rows]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its CSV file, without the suffix.
        data: its values; None or NaN is missing.
        forms: how the numbers of a column are formatted; columns without a form hold text.
        hidden: columns that Markdown does not show.
    """

    name: str
    data: pd.DataFrame
    forms: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()

    def parts(self, keys: list[str]) -> dict[tuple[str, ...], Table]:
        """Return the parts of the table whose rows share what they have in the columns ``keys``."""
        return {
            key: replace(self, data=rows.reset_index(drop=True)) for key, rows in self.data.groupby(keys, sort=False)
        }

    def texts(self, columns: Collection[str], missing: str = MISSING) -> pd.DataFrame:
        """Return some columns as text."""
        found = {name: [shown(v, self.forms.get(name, ""), missing) for v in self.data[name]] for name in columns}
        return pd.DataFrame(found, columns=list(columns)).rename(columns=_HEADINGS)

    def markdown(self, without: Collection[str] = ()) -> list[str]:
        """Return lines of Markdown; missing values are a dash.

        Args:
            without: columns to leave out.
        """
        columns = [name for name in self.data if name not in (*self.hidden, *without)]
        return markdown_table(self.texts(columns), {_HEADINGS.get(name, name) for name in self.forms})

    def csv(self) -> str:
        """Return all columns and rows as CSV with a header; missing values are empty."""
        return self.texts(list(self.data), "").to_csv(index=False, lineterminator="\n")
