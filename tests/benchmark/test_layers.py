"""The benchmark of single layers counts what the network does."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from monai_kwtl.networks.fcrn import FCRN

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import speed

    return speed


def test_the_floors_of_all_layers_are_that_of_the_network(script, monkeypatch):
    monkeypatch.setattr(script, "convolution_rate", lambda dtype: 1e9)
    found = script.benchmark_layers(argparse.Namespace(side=64, repeats=1, ckpt=ROOT / "bundles/kwtl/models/model.pt"))
    assert found["all, floor (ms)"] == pytest.approx(script.operations(FCRN(), 64, 64) / 1e6, rel=1e-3)
    parts = [found[f"all, {name} (ms)"] for name in ("convolutions", "pooling")]
    assert found["whole pass over floor"] == pytest.approx(sum(parts) / found["all, floor (ms)"], abs=0.02)
    assert sum(name.endswith("(ms)") and name[0].isdigit() for name in found) == 11
