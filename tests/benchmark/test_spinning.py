"""The benchmark of threads that wait compares the same work with and without a setting, alone and beside others."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import speed_stages

    return speed_stages


def test_ratios_are_of_medians_with_and_without_the_setting(stages, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # of the shell: no run may have it
    (tmp_path / "a.png").write_bytes(b"")
    busy, seen = [], []

    @contextmanager
    def busy_loop():
        busy.append(1)
        yield
        busy.pop()

    monkeypatch.setattr(stages, "_busy_loop", busy_loop)

    def run_stage(folder, threads, processes, stage, variables, **stage_options):
        seen.append((stage, threads, variables["OMP_WAIT_POLICY"], len(busy), stage_options["steps"]))
        return {"stage": (44.0 if len(busy) else 4.0) if variables["OMP_WAIT_POLICY"] is None else 8.0}

    monkeypatch.setattr(stages, "run_stage", run_stage)
    options = argparse.Namespace(
        dataset_dir=tmp_path, images=1, steps=3, stage_threads=2, repeats=1, settings=["OMP_WAIT_POLICY=PASSIVE"]
    )
    found = stages.benchmark_spinning(options)
    assert sorted(seen, key=str) == sorted(
        [("pretext", 2, policy, load, 3) for policy in (None, "PASSIVE") for load in (0, 1)], key=str
    )
    assert found["alone, nothing set over OMP_WAIT_POLICY=PASSIVE"] == 0.5
    assert found["beside a busy loop, nothing set over OMP_WAIT_POLICY=PASSIVE"] == 5.5
    assert found["nothing set, beside a busy loop over alone"] == 11


def test_only_settings_of_waiting_are_taken(stages):
    assert stages._variable("GOMP_SPINCOUNT=1000") == "GOMP_SPINCOUNT=1000"
    for text in ("OMP_WAIT_POLICY", "OMP_WAIT_POLICY=", "PATH=x"):
        with pytest.raises(argparse.ArgumentTypeError):
            stages._variable(text)
