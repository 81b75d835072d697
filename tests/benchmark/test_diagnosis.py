"""What windows show compared with the pool: against counts by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_kwtl.benchmark.analysis.diagnosis import (
    COLUMNS,
    by_foreground,
    diagnose,
    draw,
    image_spread,
    spread_of,
    summary,
)
from monai_kwtl.benchmark.analysis.layout import Table
from monai_kwtl.benchmark.plan.case import Case
from monai_kwtl.benchmark.plan.config import make_config
from monai_kwtl.benchmark.runs.run import run_protocol
from monai_kwtl.data.loading import read_label
from monai_kwtl.errors import KWTLError
from monai_kwtl.selection.regions import Region


def region(image):
    return Region(1, image, None, "", 0, 0, 4, 4, 0.0)


def test_windows_of_all_images_alike_are_spread_evenly():
    assert image_spread([region(name) for name in "abab"], 2) == pytest.approx(1.0)
    assert image_spread([region("a")] * 4, 5) == pytest.approx(1 / 4)
    fractions = np.array([0.75, 0.25])
    assert image_spread([region(name) for name in "aaab"], 3) == pytest.approx(
        np.exp(-(fractions * np.log(fractions)).sum()) / 3
    )


def test_spread_of_features_is_by_pairs():
    points = np.array([[0.0], [1.0], [2.0], [10.0]])
    pairs = [1, 2, 10, 1, 9, 8]
    between, missing = spread_of(points, np.array([0, 3]))
    assert between == pytest.approx(10 / np.mean(pairs))
    assert missing == pytest.approx(np.mean([0, 1, 2, 0]) / np.mean(pairs))
    assert spread_of(points, np.array([1]))[0] == 0.0


def test_all_windows_are_like_the_pool():
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert spread_of(points, np.arange(50)) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))


def test_a_finished_grid_is_looked_at(options, tmp_path):
    grid = {**options, "methods": ["random", "typical"], "shots": [], "pixels": [1, 2], "variants": ["dice_bce"]}
    config = make_config(grid)
    with pytest.raises(KWTLError, match="no finished experiment"):
        diagnose(config)
    run_protocol(config, "grid")
    table = diagnose(config)
    rows = table.data.to_dict("records")
    assert {(row["method"], row["images' worth"]) for row in rows} == {
        (method, budget) for method in ("random", "typical") for budget in (1.0, 2.0)
    }
    labels = [read_label(item) for item in Case(config, "ours", "random", 0, 0).parts[0]]
    assert rows[0]["of the pool %"] == pytest.approx(100 * np.mean(labels))
    assert all(0 < row["even images"] <= 1 and 0 <= row["distance to the pool"] < 1 for row in rows)
    means = summary(table)
    assert means.data["splits"].tolist() == [1] * 4
    draw(table, tmp_path / "d.png")
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.width > 800 and len(set(picture.convert("L").tobytes())) > 20


def test_iou_goes_with_foreground_where_it_does():
    """Six sets of a split, the one nearest to the pool's foreground the best; splits differ, which does not count."""
    rows = [
        (
            "TNBC",
            "random",
            "base",
            split,
            "random",
            1.0,
            4,
            4,
            1.0,
            10.0 * ratio,
            10.0,
            1.0,
            0.5,
            level - above,
            0.3,
            0.2,
        )
        for split, level in (("0", 50.0), ("1", 20.0))
        for ratio, above in ((0.5, 4.0), (0.8, 1.0), (1.0, 0.0), (1.2, 1.0), (1.5, 2.0), (2.0, 4.0))
    ]
    data = pd.DataFrame(rows, columns=COLUMNS)
    found = by_foreground(Table("diagnosis", data)).data
    assert [row[4:] for row in found.itertuples(index=False, name=None)] == [
        (0.5, 0.5, 2, -2.0), (0.8, 0.8, 2, 1.0), (1.0, 1.0, 2, 2.0), (1.2, 1.2, 2, 1.0), (1.5, 1.5, 2, 0.0),
        (2.0, 2.0, 2, -2.0),
    ]  # fmt: skip
    assert by_foreground(Table("diagnosis", data[:5])).data.empty, "too few for six parts"


def test_a_grid_without_features_is_refused(options):
    with pytest.raises(KWTLError, match="one of balanced, herding, typical and k_centre is needed"):
        diagnose(make_config(options))
