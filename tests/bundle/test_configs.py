"""The training configs read from top to bottom: few expressions, MONAI's ids, and one expression that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from stage_here import run
from stage_process import CONFIGS

from monai_kwtl.synthetic import make_pool

TRAININGS = ("pretext.json", "train.json", "meta_train.json")
FILES = [*TRAININGS, "semi_supervised_train.json", *sorted(path.name for path in CONFIGS.glob("multi_gpu_*train.json"))]
FILES += ["multi_gpu_pretext.json"]


def load(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def expressions(part: Any) -> Iterator[str]:
    """All texts of a config that MONAI evaluates as Python."""
    if isinstance(part, str) and part.startswith("$"):
        yield part
    elif isinstance(part, (dict, list)):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from expressions(inner)


@pytest.mark.parametrize("name", FILES)
def test_a_config_has_few_and_short_expressions(name):
    found = list(expressions(load(name)))
    assert len(found) <= 20
    assert sum(map(len, found)) <= 900


def test_expressions_are_found_wherever_they_stand():
    assert list(expressions({"a": ["$1", {"b": "$2"}], "c": "@a", "$d": "x"})) == ["$1", "$2"]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_the_run_of_its_trainer_and_handlers_have_names(name):
    config = load(name)
    assert config["run"] == ["$@train::trainer.run()"]
    assert {"dataset", "inferer", "handlers", "trainer"} <= config["train"].keys()
    assert {"network_def", "network", "loss_function", "optimizer", "checkpoint", "log", "saver"} <= config.keys()
    assert "handlers::" not in json.dumps([load(file) for file in FILES])


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_is_saved_and_resumed_whatever_handlers_a_user_gives(name):
    config = load(name)
    life = config["train"]["trainer"]["train_handlers"]
    assert all(f"@{part}" in life for part in ("log", "saver", "checkpoint", "train::handlers"))
    targets = [handler["_target_"] for handler in config["train"]["handlers"]]  # MONAI asks each for it
    own = {
        "LrScheduleHandler",
        "monai_kwtl.handlers.HeldOutValidation",
        "monai_kwtl.handlers.ProgressLog",
    }
    assert set(targets) <= own


def test_other_handlers_leave_the_model_as_well(tmp_path):
    make_pool(tmp_path / "cells", "fluorescence", count=2, height=65, width=90, seed=1)
    options = {"dataset_dir": tmp_path / "cells", "ckpt": "random", "steps": 2, "crop": 24, "batch_size": 2}
    options |= {"output_dir": tmp_path / "out", "device": "cpu", "amp": "false", "tensorboard": "false"}
    handlers = [{"_target_": "StatsHandler", "name": "stats", "output_transform": "$lambda x: x['loss']"}]
    ended = run("train", **options, **{"train::handlers": handlers})
    assert ended.status == 0, ended.err
    assert "Iter: 2/2" in ended.out
    assert {"model.pt", "model.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
