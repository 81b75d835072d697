"""What stages say: durations and tables that people read, and numbers that are all there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from monai_kwtl.report.console import image_title, report_settings, summary_lines, window_rows
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Cost, Region
from monai_kwtl.utils.text import format_seconds, format_table
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (99.4, "99 s"),
        (100, "1 min 40 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_durations_are_told_as_people_do(seconds, words):
    assert format_seconds(seconds) == words


def test_text_stands_left_and_numbers_right():
    rows = [("a", 5, 0.25, "x"), ("a longer name", 12345, 10.0, "")]
    assert format_table(("name", "count", "share", "note"), rows) == [
        "name           count  share  note",
        "a                  5   0.25  x",
        "a longer name  12345   10.0",
    ]


def test_a_column_of_both_is_one_of_numbers():
    assert format_table(("", "n"), [("a", 10), ("b", "none")]) == ["      n", "a    10", "b  none"]


def test_rows_may_be_a_generator_or_none():
    assert format_table(("a", "b"), ((value, value) for value in "xy")) == ["a  b", "x  x", "y  y"]
    assert format_table(("one", "two"), []) == ["one  two"]


def test_every_window_has_a_row():
    grids = [WindowGrid(40, 70, 32, 19), WindowGrid(20, 31, 32, 19)]
    scores = [np.arange(len(grid)) / 7 for grid in grids]
    pool = [
        ImageScores(name, page, "", grid, values)
        for name, page, grid, values in zip(["images/a.png", "b.tif"], [None, 3], grids, scores, strict=True)
    ]
    rows = list(window_rows(pool))
    expected = [("images/a.png", None, x, y, 32, 32) for y in (0, 8) for x in (0, 19, 38)]
    assert [row[:6] for row in rows] == [*expected, ("b.tif", 3, 0, 0, 31, 20)]
    assert [row[6] for row in rows] == [*scores[0], *scores[1]]
    assert {type(value) for row in rows for value in row[2:6]} == {int} and type(rows[0][6]) is float


def test_an_image_is_called_by_its_name_and_its_page_from_one():
    assert image_title("images/03.png", None) == "images/03.png"
    assert image_title("stack.tif", 0) == "stack.tif page 1"
    assert image_title("images/früh 細胞.png", None) == "images/früh 細胞.png"
    assert image_title(os.fsdecode(b"fr\xfch.png"), None) == "fr\ufffdh.png"


def make_regions(count):
    names = ["images/a.png", "images/stack.tif", "images/stack.tif"]
    pages = [None, 0, 1]
    return [
        Region(rank, names[rank % 3], pages[rank % 3], "", 10 * rank, 7, 64, 48, 0.123456 / rank)
        for rank in range(1, count + 1)
    ]


ITEMS = [{"height": 100, "width": 130}] * 3


def test_the_closing_lines_are_regions_cost_and_files():
    lines = summary_lines(make_regions(2), Cost(2, 2, 6144), ITEMS, Path("out"), report=True)
    assert lines == [
        "",
        "rank  image                     x  y  width  height    score",
        "   1  images/stack.tif page 1  10  7     64      48   0.1235",
        "   2  images/stack.tif page 2  20  7     64      48  0.06173",
        "",
        "cost: 2 windows in 2 of 3 images, 6144 distinct pixels (16 % of the pool)",
        f"selection: {Path('out/selection.json')}",
        f"picture:   {Path('out/what_to_label.png')}",
        f"report:    {Path('out/report.html')}",
    ]


def test_without_a_report_none_is_named():
    lines = summary_lines(make_regions(2), Cost(2, 2, 6144), ITEMS, Path("out"), report=False)
    assert lines[-1] == f"selection: {Path('out/selection.json')}"


def test_ten_regions_are_told_and_the_rest_counted():
    lines = summary_lines(make_regions(13), Cost(13, 3, 999), ITEMS, Path("out"), report=False)
    assert [line.split()[0] for line in lines[2:12]] == [str(rank) for rank in range(1, 11)]
    assert lines[12] == f"... and 3 more in {Path('out/selection.csv')}"
    assert not any("more in" in line for line in summary_lines(make_regions(10), Cost(10, 3, 9), ITEMS, Path(), False))


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(shots=3), "3 images' worth"),
        (Budget(shots=0.25), "0.25 images' worth"),
        (Budget(windows=7), "7 windows"),
        (Budget(windows=1_234_567), "1234567 windows"),
        (Budget(pixels=65_536_001), "65536001 pixels"),
    ],
)
def test_the_settings_of_the_report_name_the_budget_in_full(budget, words):
    settings = report_settings(budget, "coverage", {"psi": 1.3})
    assert settings == {"budget": words, "strategy": "coverage", "psi": 1.3}
