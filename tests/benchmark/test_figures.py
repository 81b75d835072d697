from __future__ import annotations

import numpy as np
import pytest
from made_up import experiment, grid, write_csv
from PIL import Image
from scipy.ndimage import label

from monai_kwtl.benchmark.analysis.figures import LOOKS, draw_budget_curves, draw_variant_curves
from monai_kwtl.benchmark.analysis.tables import paper_numbers
from monai_kwtl.benchmark.plan.rows import read_rows


@pytest.fixture
def rows_of(tmp_path):
    def make(experiments):
        return read_rows(write_csv(tmp_path / "r.csv", experiments))

    return make


def colours(path) -> set[tuple[int, ...]]:
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}


VERMILION, BLUE, SKY = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x56, 0xB4, 0xE9)


def test_nothing_to_draw_leaves_no_file(rows_of, tmp_path):
    rows = rows_of([experiment(), experiment(method="full", budget=0)])
    assert not draw_budget_curves(rows, "pixels", "budget", tmp_path / "a.png")
    assert not draw_variant_curves(rows, ["source_only"], tmp_path / "b.png")
    assert not list(tmp_path.glob("*.png"))


def test_each_method_is_drawn_in_its_colour(rows_of, tmp_path):
    experiments = grid(
        targets=("TNBC",), splits=2, methods=("top_k_soft", "coverage"), budgets=(1, 3), kinds=("shots",)
    )
    rows = rows_of(experiments)
    assert draw_budget_curves(rows, "shots", "budget", tmp_path / "a.png")
    assert {VERMILION, BLUE} <= colours(tmp_path / "a.png") and SKY not in colours(tmp_path / "a.png")
    assert draw_budget_curves(rows, "shots", "budget", tmp_path / "b.png", paper_numbers())
    assert SKY in colours(tmp_path / "b.png")


def test_the_papers_curves_are_not_drawn_beside_another_protocol(rows_of, tmp_path):
    draw_budget_curves(
        rows_of([experiment(protocol="blocked")]), "shots", "budget", tmp_path / "a.png", paper_numbers()
    )
    assert SKY not in colours(tmp_path / "a.png")


def test_nothing_labelled_has_no_place_among_pixels(rows_of, tmp_path):
    none = experiment(method="coverage", unique_pixels=0)
    assert draw_budget_curves(rows_of([none]), "shots", "unique_pixels", tmp_path / "a.png")
    assert draw_budget_curves(rows_of([none, experiment()]), "shots", "unique_pixels", tmp_path / "b.png")
    assert VERMILION in colours(tmp_path / "b.png")


def test_a_variant_is_drawn_where_there_is_no_base(rows_of, tmp_path):
    assert draw_variant_curves(rows_of([experiment(variant="source_only")]), ["source_only"], tmp_path / "a.png")
    assert VERMILION in colours(tmp_path / "a.png")


def test_methods_stay_apart_without_colour():
    for look in ("marker", "color"):
        assert len({getattr(each, look) for each in LOOKS.values()}) == len(LOOKS)


@pytest.mark.parametrize("targets", [1, 2, 4, 5])
def test_any_number_of_targets_has_its_panels(rows_of, tmp_path, targets):
    rows = rows_of([experiment(target=f"set {n}", mean_iou=0.1 * n) for n in range(targets)])
    draw_budget_curves(rows, "shots", "unique_pixels", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    marks = np.abs(pixels - VERMILION).sum(axis=2) < 30
    # parts of the picture with a mark in them: one a panel, and one in the legend
    assert label(marks, np.ones((3, 3)))[1] == targets + 1
