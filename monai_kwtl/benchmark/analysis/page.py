"""The results page: README.md with its CSV files and pictures, made of results.csv."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from monai_kwtl.benchmark.analysis.differences import (
    ablation_table,
    area_difference_table,
    area_table,
    both_table,
    comparison_matrix,
    difference_table,
    missing_table,
    verdict_table,
    window_table,
)
from monai_kwtl.benchmark.analysis.figures import draw_budget_curves, draw_variant_curves
from monai_kwtl.benchmark.analysis.layout import Table, markdown_table, shown
from monai_kwtl.benchmark.analysis.tables import (
    budget_table,
    paper_numbers,
    pretext_table,
    pseudo_label_table,
    short_table,
    time_table,
)
from monai_kwtl.benchmark.plan.rows import merged_rows, read_times, rows_text
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.atomic import write_text
from monai_kwtl.utils.json_documents import parse_json

__all__ = ["add_arguments", "run", "tables_of", "write_page"]

_HINT = "make room, or choose another --output"
_NONE = "Not measured here."
_TITLE = ("target", "protocol", "schedule", "budget_kind")  # of a part of a table
_ON_PAGE = 30  # missing cells named on the page; the CSV has them all
Drawing = Callable[[pd.DataFrame, Path], bool]


def _pictures() -> dict[str, tuple[str, Drawing]]:
    """Return the files of the page: title and how to draw it."""

    def variants(pattern: str) -> Drawing:
        return lambda rows, path: draw_variant_curves(
            rows, sorted(v for v in set(rows["variant"]) if re.fullmatch(pattern, v)), path
        )

    paper = paper_numbers()
    return {
        "figure_3.png": (
            "Figure 3: IoU against shots",
            lambda rows, path: draw_budget_curves(rows, "shots", "budget", path, paper),
        ),
        "unique_pixels.png": (
            "IoU against unique labelled pixels, of the same runs",
            lambda rows, path: draw_budget_curves(rows, "shots", "unique_pixels", path),
        ),
        "figures_4_5.png": ("Figures 4 and 5: fewer windows a shot", variants(r".*_windows")),
        "figure_6a.png": ("Figure 6a: selecting with the source-only network", variants("source_only")),
        "figure_6b.png": ("Figure 6b: affine instead of intensity views", variants("affine_views")),
        "equal_pixels.png": (
            "IoU at equal unique labelled pixels",
            lambda rows, path: draw_budget_curves(rows, "pixels", "budget", path),
        ),
    }


def tables_of(rows: pd.DataFrame, times: pd.DataFrame) -> dict[str, Table]:
    """Return the tables of the page, by name, in their order there.

    Args:
        rows: as from :func:`monai_kwtl.benchmark.plan.rows.read_rows`.
        times: as from :func:`monai_kwtl.benchmark.plan.rows.read_times`.
    """
    paper = paper_numbers()
    tables = (
        short_table(rows, paper),
        budget_table(rows, "shots", paper),
        budget_table(rows, "pixels", paper),
        pseudo_label_table(rows, paper),
        pretext_table(rows, paper),
        differences := difference_table(rows),
        both_table(rows),
        window_table(rows),
        verdict_table(differences),
        area_table(rows),
        area_difference_table(rows),
        ablation_table(rows),
        time_table(times),
        missing_table(rows),
    )
    return {table.name: table for table in tables}


def _by_scope(table: Table, lines: Callable[[Table], list[str]]) -> list[str]:
    """Return a table in parts, for each target, protocol, schedule and kind of budget, each folded under its title."""
    keys = [name for name in _TITLE if name in table.data]
    found: list[str] = []
    for (target, protocol, schedule, *kind), rows in table.parts(keys).items():
        title = f"{target}, {protocol} splits" + (f", {schedule} schedule" if schedule != "-" else "")
        title += f", budget in {kind[0]}" if kind else ""
        found += ["", f"<details><summary>{html.escape(title)}</summary>", "", *lines(rows), "", "</details>"]
    return found[1:] or [_NONE]


def _about(about: Mapping[str, Any], rows: pd.DataFrame) -> list[str]:
    """Describe what the results were measured on: what is given, and what the rows say."""
    facts: dict[str, Any] = {}
    for key, value in about.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        facts |= {f"{key} {name}".strip(): found for name, found in inner.items()}
    for name, key in (("schedules", "schedule"), ("devices", "device"), ("protocols", "protocol")):
        facts[name] = ", ".join(sorted(set(rows[key]))) or None
    facts["finished cells"] = str(len(rows))
    cells = [[str(key), shown(value if value is None else str(value))] for key, value in facts.items()]
    return markdown_table(pd.DataFrame(cells, columns=["", ""]))


def _missing(table: Table, rows: pd.DataFrame) -> list[str]:
    """Describe the missing cells."""
    if rows.empty:
        return ["Every cell: there are no results yet."]
    if table.data.empty:
        return ["None: the grid is complete."]
    first = replace(table, data=table.data[:_ON_PAGE])
    return [f"{len(table.data)} of a complete grid; [missing.csv](missing.csv) has all:", "", *first.markdown()]


def _text(tables: dict[str, Table], drawn: set[str], rows: pd.DataFrame, about: Mapping[str, Any]) -> str:
    """Write the page in Markdown."""

    def table(name: str) -> str:
        return _NONE if tables[name].data.empty else "\n".join(tables[name].markdown())

    def parts(name: str, *without: str) -> str:
        return "\n".join(_by_scope(tables[name], lambda part: part.markdown((*_TITLE, *without))))

    def comparisons(name: str, keys: tuple[str, ...]) -> str:
        return "\n".join(_by_scope(tables[name], lambda part: comparison_matrix(part, keys)))

    def picture(name: str) -> str:
        title = _pictures()[name][0]
        return f"### {title}\n\n" + (f"![{title}]({name})" if name in drawn else _NONE)

    environment = jinja2.Environment(  # Markdown, which autoescape is not for
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = resources.files(__package__).joinpath("page.md").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        about="\n".join(_about(about, rows)),
        without=", ".join(target for target in paper_numbers()["table_4"] if target not in set(rows["target"])),
        missing="\n".join(_missing(tables["missing"], rows)),
        tables=tables,
        table=table,
        parts=parts,
        comparisons=comparisons,
        picture=picture,
    )


def write_page(results_csv: str | Path | Sequence[str | Path], folder: str | Path, about: Mapping[str, Any]) -> Path:
    """Write the results page: README.md, a CSV for each of its tables, and PNG pictures.

    The files depend on the arguments alone (and pictures on the version of matplotlib). A ``times.csv`` beside a file
    of results adds the times. All rows are written to ``results.csv`` of the page. Files of an earlier page that this
    one does not have are removed; others are left alone.

    Args:
        results_csv: one row for each finished experiment; any number of experiments may be missing. Several files are
            put together; experiments that they share must have the same row.
        folder: made if absent.
        about: what the results were measured on, to be shown: machine, versions, dates; values may be mappings.

    Returns:
        Path of README.md.

    Raises:
        KWTLError: when the results cannot be read or the page cannot be written.
    """
    given = [results_csv] if isinstance(results_csv, (str, Path)) else list(results_csv)
    sources, folder = [Path(path) for path in given], Path(folder)
    rows = merged_rows(sources)
    beside = [path.with_name("times.csv") for path in sources]
    times = read_times(*(path for path in beside if path.is_file()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = set()
        for name, (_, draw) in _pictures().items():
            if draw(rows, folder / name):
                drawn.add(name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise KWTLError(f"cannot write {folder} ({error.strerror or error}): {_HINT}") from error
    tables = tables_of(rows, times)
    texts = {f"{name}.csv": table.csv() for name, table in tables.items()} | {"results.csv": rows_text(rows)}
    for name, text in {**texts, "README.md": _text(tables, drawn, rows, about)}.items():
        write_text(folder / name, text, _HINT)
    return folder / "README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``scripts/benchmark.py page``."""
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULTS.csv", help="what the grid wrote, or several did"
    )
    parser.add_argument("--output", dest="folder", type=Path, required=True, help="folder of the page")
    parser.add_argument(
        "--about", type=Path, help="JSON of machine, versions and dates; default: about.json beside the results"
    )


def run(options: argparse.Namespace) -> dict[str, str]:
    """Write the page that the arguments ask for; returns where it is."""
    beside = options.results[0].with_name("about.json")
    about = parse_json(options.about or beside) if options.about or beside.is_file() else {}
    if not isinstance(about, dict):
        raise KWTLError(f"{options.about or beside}: must hold an object; give machine, versions and dates")
    return {"page": str(write_page(options.results, options.folder, about))}
