"""The results page: README.md with its CSV files and pictures, made of results.csv."""

from __future__ import annotations

import argparse
import html
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

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
    Groups,
    budget_table,
    grouped,
    paper_numbers,
    pretext_table,
    pseudo_label_table,
    short_table,
    time_table,
)
from monai_kwtl.benchmark.plan.rows import Row, merged_rows, read_times, rows_text
from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.atomic import written_whole
from monai_kwtl.utils.json_documents import parse_json

__all__ = ["add_arguments", "run", "write_page"]

_HINT = "make room, or choose another --output"
_NONE = "Not measured here."
_ON_PAGE = 30  # missing cells named on the page; the CSV has them all
Drawing = Callable[[Groups, Path], bool]


def _variants(groups: Groups, pattern: str) -> list[str]:
    return sorted({scope.variant for scope, _, _ in groups if re.fullmatch(pattern, scope.variant)})


def _pictures() -> dict[str, tuple[str, Drawing]]:
    """Return the files of the page: title and how to draw it."""

    def variants(pattern: str) -> Drawing:
        return lambda groups, path: draw_variant_curves(groups, _variants(groups, pattern), path)

    paper = paper_numbers()
    return {
        "figure_3.png": (
            "Figure 3: IoU against shots",
            lambda groups, path: draw_budget_curves(groups, "shots", "budget", path, paper),
        ),
        "unique_pixels.png": (
            "IoU against unique labelled pixels, of the same runs",
            lambda groups, path: draw_budget_curves(groups, "shots", "unique_pixels", path),
        ),
        "figures_4_5.png": ("Figures 4 and 5: fewer windows a shot", variants(r".*_windows")),
        "figure_6a.png": ("Figure 6a: selecting with the source-only network", variants("source_only")),
        "figure_6b.png": ("Figure 6b: affine instead of intensity views", variants("affine_views")),
        "equal_pixels.png": (
            "IoU at equal unique labelled pixels",
            lambda groups, path: draw_budget_curves(groups, "pixels", "budget", path),
        ),
    }


def _tables(rows: list[Row], groups: Groups, times: Mapping[Any, Any]) -> dict[str, Table]:
    paper = paper_numbers()
    tables = (
        short_table(groups, paper),
        budget_table(groups, "shots", paper),
        budget_table(groups, "pixels", paper),
        pseudo_label_table(groups, paper),
        pretext_table(groups, paper),
        differences := difference_table(groups),
        both_table(groups),
        window_table(groups),
        verdict_table(differences),
        area_table(groups),
        area_difference_table(groups),
        ablation_table(groups),
        time_table(times),
        missing_table(rows),
    )
    return {table.name: table for table in tables}


def _by_scope(table: Table, lines: Callable[[Table], list[str]]) -> list[str]:
    """Return a table in parts, for each target, protocol, schedule and kind of budget, each folded under its title."""
    names = [column.name for column in table.columns]
    keys = [name for name in ("target", "protocol", "schedule", "budget kind") if name in names]
    found: list[str] = []
    for part in dict.fromkeys(tuple(row[names.index(key)] for key in keys) for row in table.rows):
        rows = table.where(lambda row, part=part: tuple(row[key] for key in keys) == part)
        title = f"{part[0]}, {part[1]} splits" + (f", {part[2]} schedule" if part[2] != "-" else "")
        title += f", budget in {part[3]}" if len(part) > 3 else ""
        found += ["", f"<details><summary>{html.escape(title)}</summary>", "", *lines(rows), "", "</details>"]
    return found[1:] or [_NONE]


def _about(about: Mapping[str, Any], rows: list[Row]) -> list[str]:
    """Describe what the results were measured on: what is given, and what the rows say."""
    facts: dict[str, Any] = {}
    for key, value in about.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        facts |= {f"{key} {name}".strip(): found for name, found in inner.items()}
    for name, key in (("schedules", "schedule"), ("devices", "device"), ("protocols", "protocol")):
        facts[name] = ", ".join(sorted({getattr(row, key) for row in rows})) or None
    facts["finished cells"] = str(len(rows))
    cells = [[str(key), shown(value if value is None else str(value))] for key, value in facts.items()]
    return markdown_table(["", ""], cells, [False, False])


def _missing(table: Table, rows: list[Row]) -> list[str]:
    """Describe the missing cells."""
    if not rows:
        return ["Every cell: there are no results yet."]
    if not table.rows:
        return ["None: the grid is complete."]
    first = Table(table.name, table.columns, table.rows[:_ON_PAGE])
    return [f"{len(table.rows)} of a complete grid; [missing.csv](missing.csv) has all:", "", *first.markdown()]


def _text(tables: dict[str, Table], drawn: set[str], rows: list[Row], about: Mapping[str, Any]) -> str:
    """Write the page in Markdown."""

    def table(name: str) -> str:
        return "\n".join(tables[name].markdown()) if tables[name].rows else _NONE

    def parts(name: str, *without: str) -> str:
        shared = ("target", "protocol", "schedule", "budget kind", *without)
        return "\n".join(_by_scope(tables[name], lambda part: part.markdown(shared)))

    def comparisons(name: str, keys: tuple[str, ...]) -> str:
        return "\n".join(_by_scope(tables[name], lambda part: comparison_matrix(part, keys)))

    def picture(name: str) -> str:
        title = _pictures()[name][0]
        return f"### {title}\n\n" + (f"![{title}]({name})" if name in drawn else _NONE)

    environment = jinja2.Environment(  # Markdown, which autoescape is not for
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = resources.files(__package__).joinpath("page.md").read_text(encoding="utf-8")
    run = {row.target for row in rows}
    return environment.from_string(template).render(
        about="\n".join(_about(about, rows)),
        without=", ".join(target for target in paper_numbers()["table_4"] if target not in run),
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
        results_csv: one row for each finished cell; any number of cells may be missing. Several files are put
            together; cells that they share must have the same row.
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
    groups, times = grouped(rows), read_times(*(path for path in beside if path.is_file()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawn = set()
        for name, (_, draw) in _pictures().items():
            if draw(groups, folder / name):
                drawn.add(name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise KWTLError(f"cannot write {folder} ({error.strerror or error}): {_HINT}") from error
    tables = _tables(rows, groups, times)
    texts = {f"{name}.csv": table.csv() for name, table in tables.items()} | {"results.csv": rows_text(rows)}
    for name, text in {**texts, "README.md": _text(tables, drawn, rows, about)}.items():
        with written_whole(folder / name, _HINT) as unfinished:
            unfinished.write_text(text, encoding="utf-8", newline="\n")
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
