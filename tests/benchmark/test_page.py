from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from made_up import COLUMNS, experiment, grid, write_csv
from PIL import Image

from monai_kwtl.benchmark.analysis import page
from monai_kwtl.benchmark.analysis.page import write_page
from monai_kwtl.benchmark.plan.rows import read_rows, read_times
from monai_kwtl.errors import KWTLError

ROOT = Path(__file__).resolve().parents[2]
ABOUT = {"machine": {"processor": "a processor", "cores": 2}, "finished": "2026-11-26"}


def small_grid():
    options = {"targets": ("TNBC", "ssTEM"), "splits": 2, "budgets": (1, 3)}
    experiments = grid(methods=("top_k_soft", "random"), **options)
    variants = ("source_only", "affine_views", "quarter_windows", "kmeans")
    return experiments + grid(methods=("top_k_soft",), variants=variants, kinds=("shots",), **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    columns = [*COLUMNS[:9], "select_seconds", "train_seconds"]
    times = [{name: made[name] for name in COLUMNS[:9]} for made in small_grid()]
    write_csv(folder / "times.csv", [{**t, "select_seconds": 1.5, "train_seconds": 30} for t in times], columns)
    return write_page(write_csv(folder / "results.csv", small_grid()), folder / "page", ABOUT)


def test_the_page_says_what_was_measured_on_what(made):
    text = made.read_text()
    assert "| machine processor | a processor |" in text and "| finished | 2026-11-26 |" in text
    assert "| schedules | cpu |" in text
    assert "No results here for: EM, B5, B39." in text
    assert "None: the grid is complete." in text
    assert "| TNBC | cpu | top_k_soft | 1.5 | 30.0 | 8 |" in text


def test_every_file_that_the_page_names_is_there_and_no_other(made):
    named = set(re.findall(r"\]\(([\w.]+)\)", made.read_text()))
    assert named | {"README.md"} == {path.name for path in made.parent.iterdir()}


def test_every_table_says_the_schedule(made):
    without = {p.name for p in made.parent.glob("*.csv") if "schedule" not in p.read_text().splitlines()[0].split(",")}
    assert not without


def test_pictures_are_pictures_with_something_on_them(made):
    pictures = sorted(made.parent.glob("*.png"))
    assert len(pictures) == 6
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 300 and len(image.convert("RGB").getcolors(image.width * image.height)) > 50


def test_the_same_results_give_the_same_bytes(made, tmp_path, rng):
    experiments = small_grid()
    shuffled = [experiments[place] for place in rng.permutation(len(experiments))]
    (tmp_path / "times.csv").write_bytes((made.parent.parent / "times.csv").read_bytes())
    again = write_page(write_csv(tmp_path / "other.csv", shuffled), tmp_path / "page", ABOUT)
    for path in sorted(made.parent.iterdir()):
        assert path.read_bytes() == (again.parent / path.name).read_bytes(), path.name


def test_no_results_make_a_page_that_says_so(tmp_path):
    text = write_page(write_csv(tmp_path / "r.csv", []), tmp_path / "page", {}).read_text()
    assert "there are no results yet" in text and "Not measured here." in text
    assert "No results here for: TNBC, EM, ssTEM, B5, B39." in text
    assert not list((tmp_path / "page").glob("*.png"))
    assert "| EM | random | paper | random, as published | 58.9 | 65.2 |" in text


def test_a_single_experiment_makes_a_page(tmp_path):
    write_page(write_csv(tmp_path / "r.csv", [experiment(method="full", budget="")]), tmp_path / "page", {})
    text = write_page(write_csv(tmp_path / "r.csv", [experiment()]), tmp_path / "page", {}).read_text()
    assert "| top_k_soft | 1 | 1 | 50.0 | - | 47.1 |" in text


def test_variants_have_areas_of_their_own_on_the_page(tmp_path):
    experiments = grid(
        targets=("TNBC",), methods=("balanced", "random"), variants=("dice_bce", "flips"), kinds=("pixels",)
    )
    text = write_page(write_csv(tmp_path / "r.csv", experiments), tmp_path / "page", {}).read_text()
    assert all(f"| {variant} | balanced | log pixels | " in text for variant in ("dice_bce", "flips"))


def test_missing_experiments_are_said_and_counted(tmp_path):
    experiments = grid(targets=("TNBC",), splits=2, methods=("random",), budgets=(1, 3), kinds=("shots",))
    del experiments[0]
    text = write_page(write_csv(tmp_path / "r.csv", experiments), tmp_path / "page", {}).read_text()
    assert "1 of a complete grid" in text and "(1 of 2 runs)" in text


def test_pictures_of_an_earlier_page_do_not_stay(tmp_path):
    write_page(write_csv(tmp_path / "r.csv", small_grid()), tmp_path / "page", {})
    (tmp_path / "page" / "notes.txt").write_text("mine")
    write_page(write_csv(tmp_path / "r.csv", [experiment()]), tmp_path / "page", {})
    assert not (tmp_path / "page" / "figure_6a.png").exists()
    assert (tmp_path / "page" / "notes.txt").read_text() == "mine"


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KWTLError) as caught:
        write_page(write_csv(tmp_path / "r.csv", [experiment()]), tmp_path / "file", {})
    assert "cannot write" in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_takes_what_lies_beside_the_results(tmp_path):
    results = write_csv(tmp_path / "results.csv", [experiment()])
    (tmp_path / "about.json").write_text(json.dumps(ABOUT))
    parser = argparse.ArgumentParser()
    page.add_arguments(parser)
    said = page.run(parser.parse_args([str(results), "--output", str(tmp_path / "page")]))
    assert said == {"page": str(tmp_path / "page" / "README.md")}
    assert "a processor" in (tmp_path / "page" / "README.md").read_text()
    (tmp_path / "about.json").write_text("[]")
    with pytest.raises(KWTLError, match="about.json: must hold an object"):
        page.run(parser.parse_args([str(results), "--output", str(tmp_path / "page")]))


def test_the_published_results_give_the_published_tables(tmp_path):
    published = ROOT / "docs" / "results"
    made = page.tables_of(read_rows(published / "results.csv"), read_times())
    for name in sorted(made.keys() - {"times"}):
        (tmp_path / "made.csv").write_text(made[name].csv())
        found, theirs = pd.read_csv(tmp_path / "made.csv"), pd.read_csv(published / f"{name}.csv")
        # the last digit may differ where a number lies halfway between two
        pd.testing.assert_frame_equal(found, theirs, rtol=1e-5, atol=0.011, obj=name)
