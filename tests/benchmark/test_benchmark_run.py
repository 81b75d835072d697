"""A grid that is stopped goes on where it was, to the same bytes; the tables; progress; a stand-in for EM."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_kwtl.benchmark.plan.case import forget_data
from monai_kwtl.benchmark.plan.config import make_config
from monai_kwtl.benchmark.plan.rows import COLUMNS, TIME_COLUMNS
from monai_kwtl.benchmark.runs import run as run_module
from monai_kwtl.benchmark.runs.jobs import Job, experiments_of, jobs_of
from monai_kwtl.benchmark.runs.run import Progress, run_protocol
from monai_kwtl.errors import KWTLError

ROOT = Path(__file__).resolve().parents[2]


def table(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_columns_are_those_that_statistics_and_figures_read():
    assert ",".join(COLUMNS) == (
        "target,protocol,split,seed,schedule,variant,method,budget_kind,budget,mean_iou,pooled_iou,dice,windows,"
        "unique_pixels,images,objects,foreground_share,over_prediction,under_prediction,device"
    )
    assert TIME_COLUMNS == [*COLUMNS[:9], "select_seconds", "train_seconds"]


def test_a_grid_has_a_row_an_experiment_sorted_with_fractions(options, tmp_path):
    changes = {"splits": 2, "shots": [2, 1, 10], "pixels": [1], "windows_per_shot": 1, "methods": ["random", "full"]}
    done = run_protocol(make_config({**options, **changes}), "grid")
    rows = table(done["results"])
    assert done["cells"] == len(rows) == 2 * (4 + 1)
    assert [(r["split"], r["method"], r["budget_kind"], r["budget"]) for r in rows[:5]] == [
        ("0", "full", "shots", "6"), ("0", "random", "pixels", "1"), ("0", "random", "shots", "1"),
        ("0", "random", "shots", "2"), ("0", "random", "shots", "10"),
    ]  # fmt: skip
    for row in rows:
        assert (row["target"], row["schedule"], row["variant"], row["device"]) == ("ours", "tiny", "base", "cpu")
        for name in ("mean_iou", "pooled_iou", "dice", "foreground_share", "over_prediction", "under_prediction"):
            assert 0 <= float(row[name]) <= 1 and re.fullmatch(r"\d\.\d{6}", row[name])
    by_budget = {row["budget"]: int(row["windows"]) for row in rows[2:5]}
    assert by_budget == {"1": 1, "2": 2, "10": 10}
    assert 0 < int(rows[1]["unique_pixels"]) <= 72 * 88
    times = table(tmp_path / "output" / "grid" / "times.csv")
    assert len(times) == len(rows) and all(float(row["train_seconds"]) > 0 for row in times)


def test_what_a_grid_was_made_with_is_written_beside_it(config, tmp_path):
    run_protocol(config, "grid", {"machine": {"cores": 2}})
    about = json.loads((tmp_path / "output" / "grid" / "grid.json").read_text())
    assert about["schedule"]["support_steps"] == 3 and about["machine"] == {"cores": 2}
    assert about["targets"]["ours"]["windows_per_shot"] == 3 and set(about["versions"]) >= {"torch", "monai"}


def test_nothing_of_this_machines_folders_is_in_the_tables(config, tmp_path):
    run_protocol(config, "grid")
    for path in (tmp_path / "output" / "grid").iterdir():
        assert str(tmp_path) not in path.read_text() and config.data_dir not in path.read_text()


def test_what_goes_wrong_says_in_which_experiment(config, monkeypatch):
    def diverge(self, support, variant):
        raise KWTLError("the loss is nan at step 7")

    monkeypatch.setattr("monai_kwtl.benchmark.experiments.bench.Bench.train_support", diverge)
    with pytest.raises(
        KWTLError, match=r"^ours random split 0, random at 1 shots \(base\): the loss is nan at step 7$"
    ):
        run_protocol(replace(config, methods=("random",)), "grid")


def test_a_finished_grid_is_not_computed_again(config, monkeypatch):
    first = run_protocol(config, "grid")
    before = Path(first["results"]).read_bytes()
    monkeypatch.setattr(Job, "run", lambda self, store: pytest.fail("computed again"))
    again = run_protocol(config, "grid")
    assert again["computed"] == 0 and Path(again["results"]).read_bytes() == before


def test_a_wider_grid_keeps_the_experiments_of_the_narrower_one(options):
    run_protocol(make_config(options), "grid")
    done = run_protocol(make_config({**options, "shots": [1, 2], "splits": 2}), "wider")
    # of the second split pretext network, scores and five experiments, of the first two experiments at the new budget
    assert done["computed"] == 7 + 2


def stopped_after(count):
    """A runner that is interrupted after some jobs."""

    def run(jobs, store, config):
        for number, job in enumerate(run_module.run_in_loop(jobs, store, config)):
            yield job
            if number + 1 == count:
                raise KeyboardInterrupt

    return run


def test_a_grid_that_is_stopped_again_and_again_ends_in_the_same_table(options, tmp_path, monkeypatch):
    whole = run_protocol(make_config({**options, "output_dir": str(tmp_path / "whole")}), "grid")
    for count in (1, 2, 1):
        monkeypatch.setattr(
            "monai_kwtl.benchmark.runs.run.choose_runner", lambda name, count=count: stopped_after(count)
        )
        with pytest.raises(KeyboardInterrupt):
            run_protocol(make_config(options), "grid")
    monkeypatch.undo()
    done = run_protocol(make_config(options), "grid")
    assert done["computed"] == whole["computed"] - 4
    assert Path(done["results"]).read_bytes() == Path(whole["results"]).read_bytes()


def test_finished_experiments_alone_are_enough_for_the_tables(config, tmp_path):
    before = Path(run_protocol(config, "grid")["results"]).read_bytes()
    for kind in ("meta", "pretext", "scores"):
        shutil.rmtree(tmp_path / "output" / "store" / kind)
    done = run_protocol(config, "grid")
    assert done["computed"] == 0 and Path(done["results"]).read_bytes() == before


def test_experiments_in_another_order_have_the_same_results(options, tmp_path, monkeypatch):
    one = run_protocol(make_config({**options, "shots": [1, 2]}), "grid")

    def backwards(jobs, store, config):
        experiments = [job for job in jobs if job.kind == "cell"]
        yield from run_module.run_in_loop(
            [job for job in jobs if job.kind != "cell"] + experiments[::-1], store, config
        )

    monkeypatch.setattr("monai_kwtl.benchmark.runs.run.choose_runner", lambda name: backwards)
    other = run_protocol(make_config({**options, "shots": [1, 2], "output_dir": str(tmp_path / "other")}), "grid")
    assert Path(one["results"]).read_bytes() == Path(other["results"]).read_bytes()


def test_a_stack_of_many_pages_stands_in_for_em(options, data, tmp_path):
    """EM is one TIFF of 165 slices with one of as many masks; windows, threshold and blocks are those of EM."""
    shutil.copytree(data, tmp_path / "data")
    pages = {
        kind: [np.array(Image.open(data / "ours" / kind / f"{n}.png")) for n in range(8)]
        for kind in ("images", "labels")
    }
    for kind, planes in pages.items():
        (tmp_path / "data" / "EM" / kind).mkdir(parents=True)
        stack = np.stack(planes)
        tifffile.imwrite(tmp_path / "data" / "EM" / kind / "stack.tif", stack, photometric="minisblack")
    changes = {"targets": "EM", "data_dir": str(tmp_path / "data"), "protocols": ["random", "blocked"], "shots": [1]}
    done = run_protocol(make_config({**options, **changes, "windows_per_shot": 4}), "em")
    rows = table(done["results"])
    assert len(rows) == 6 and {row["protocol"] for row in rows} == {"random", "blocked"}
    assert {row["windows"] for row in rows if row["method"] == "random"} == {"4"}
    jobs, _ = jobs_of(experiments_of(make_config({**options, **changes})))
    pretext = next(job for job in jobs if job.kind == "pretext")
    assert pretext.case.pretext_settings("base")["pseudo_label"]["threshold"] == 140


def test_progress_says_how_long_the_rest_takes(config, caplog, monkeypatch):
    jobs, results = jobs_of(experiments_of(config))
    clock = iter([100.0, 110.0, *[130.0] * len(jobs)])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="monai_kwtl.benchmark"):
        progress = Progress(jobs, (0, len(results)))
        progress.finished(jobs[0])
    share = jobs[0].size / sum(job.size for job in jobs)
    seconds = 10 / share - 10
    (line,) = caplog.messages
    assert line.startswith(f"0 of 3 experiments, {100 * share:.0f} % of the work; last: meta-training for ours; about ")
    assert float(re.search(r"about ([\d.]+) s left", line)[1]) == pytest.approx(seconds, rel=0.05)


def test_a_long_job_is_named_while_it_runs(config, caplog):
    jobs, results = jobs_of(experiments_of(config))
    with caplog.at_level(logging.INFO, logger="monai_kwtl.benchmark"):
        with Progress(jobs, (0, len(results)), patience=0.02):
            until = time.monotonic() + 5
            while not caplog.messages and time.monotonic() < until:
                time.sleep(0.005)
    assert caplog.messages[0].startswith(
        "0 of 3 experiments, 0 % of the work; at: meta-training for ours; 0.0 s so far"
    )


def test_a_store_that_nothing_reaches_is_said(config, monkeypatch):
    monkeypatch.setattr(
        "monai_kwtl.benchmark.runs.run.choose_runner", lambda name: lambda jobs, store, config: iter(())
    )
    with pytest.raises(KWTLError, match="only 0 of 3 experiments are in .*store: is it shared by all workers"):
        run_protocol(config, "grid")


# --- the command ------------------------------------------------------------------------------------------------------


def command(options, tmp_path, *more):
    (tmp_path / "mine.json").write_text(json.dumps(options))
    return [
        sys.executable,
        str(ROOT / "scripts/benchmark.py"),
        "protocol",
        "--config",
        str(tmp_path / "mine.json"),
        *more,
    ]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_command_refuses_a_misspelt_option(options, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for module in (sys, threading):  # the command sets it for its process
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    import benchmark

    with pytest.raises(KWTLError, match="unknown option 'methds'; did you mean methods"):
        benchmark.main(command({**options, "methds": ["random"]}, tmp_path)[2:])


@pytest.mark.slow
def test_the_command_killed_twice_goes_on_to_the_same_table(options, tmp_path):
    options = {**options, "shots": [1, 2, 3, 4], "splits": 2}
    whole = run_protocol(make_config({**options, "output_dir": str(tmp_path / "whole")}), "mine")
    store = tmp_path / "output" / "store" / "cell"
    for experiments in (2, 7):
        process = subprocess.Popen(command(options, tmp_path), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list(store.glob("*.json"))) < experiments:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert len(table(tmp_path / "output" / "mine" / "results.csv")) < 18
    ended = subprocess.run(command(options, tmp_path, "--cores", "1"), env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "output" / "mine" / "results.csv").read_bytes() == Path(whole["results"]).read_bytes()
    assert "18 of 18" not in ended.stdout.splitlines()[0] and "experiments are finished" in ended.stdout
    forget_data()
