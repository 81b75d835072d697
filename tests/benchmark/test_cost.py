"""The growth of the cost of scoring: a line through medians, a table and a picture."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_kwtl.windows.grid import WindowGrid

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import speed_cost

    return speed_cost


def test_the_line_is_that_of_least_squares(cost, rng):
    values = [1, 2, 4, 8, 9]
    seconds = [0.5 + 0.25 * value + float(noise) for value, noise in zip(values, rng.normal(0, 0.1, 5), strict=True)]
    line = cost.fit(values, seconds)
    slope, start = np.polyfit(values, seconds, 1)
    assert (line.slope, line.start) == pytest.approx((slope, start))
    residual = np.var(np.array(seconds) - start - slope * np.array(values)) / np.var(seconds)
    assert line.determination == pytest.approx(1 - residual)


def test_works_take_turns_after_a_first_call(cost, monkeypatch):
    done, clock = [], [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

    def work(name, durations):
        def run():
            done.append(name)
            clock[0] += durations.pop(0)

        return run

    assert cost.interleaved([work("a", [90, 1, 5, 3]), work("b", [90, 2, 2, 60])], 3) == [3, 2]
    assert "".join(done) == "abababab"


def test_a_tiny_run_writes_a_table_and_a_picture(tmp_path):
    sides, steps, counts = [48, 64, 80], [32, 16, 8], [1, 2]
    options = {"sides": sides, "steps": steps, "counts": counts, "side": [64], "window": [32], "step": [16]}
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "--threads", "1", "cost", "--folder", str(tmp_path)]
    command += ["--repeats", "2"]
    command += [part for name, values in options.items() for part in (f"--{name}", *map(str, values))]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr
    assert "a further megapixel (s)" in ended.stdout and "images: R squared" in ended.stdout
    with open(tmp_path / "cost.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    windows = [len(WindowGrid(64, 64, 32, step)) for step in steps]
    values = {"pixels": [side**2 for side in sides], "windows": windows, "views": [1, 2, 3], "images": counts}
    assert {k: [int(r["value"]) for r in rows if r["varied"] == k] for k in values} == values
    assert all(float(row["seconds"]) > 0 and row["repeats"] == "2" for row in rows)
    for varied in values:  # a line of least squares leaves nothing over on average
        left = [float(row["seconds"]) - float(row["fitted_seconds"]) for row in rows if row["varied"] == varied]
        assert np.mean(left) == pytest.approx(0, abs=2e-5)
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.width > 3 * picture.height
