"""Options are checked by name and value before anything is computed; schedules and the shipped files hold together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from monai_kwtl.benchmark.plan.config import Config, make_config, read_config
from monai_kwtl.benchmark.plan.schedules import schedule_named
from monai_kwtl.errors import KWTLError

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "kwtl" / "configs"
CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "benchmark").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_flat_and_accepted(path):
    content = json.loads(path.read_text())
    assert content["_desc_"] and not any(isinstance(value, dict) for value in content.values())
    assert read_config(path).targets == tuple(content["targets"])


def test_the_configurations_that_the_documentation_names_are_there():
    expected = {"smoke", "cpu_sstem", "cpu_tnbc", "cpu_b39", "cpu_b5", "ablations", "paper"}
    assert expected <= {path.stem for path in CONFIGS}


def test_every_option_says_what_it_is():
    assert all(option.metadata["doc"] for option in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methds": ["random"]}, "unknown option 'methds'; did you mean methods?"),
        ({"methods": ["top_k_sof"]}, "methods: there is no 'top_k_sof'; did you mean top_k_soft?"),
        ({"variants": ["kmean"]}, "variants: there is no 'kmean'; did you mean kmeans?"),
        ({"protocols": "shuffled"}, "protocols: there is no 'shuffled'; use random, blocked."),
        ({"schedule": "fast"}, "unknown schedule 'fast'; use one of paper, cpu, bundle, tiny."),
        ({"splits": 0}, "splits must be a whole number, at least 1, got 0."),
        ({"seeds": [0, -1]}, "seeds must be a whole number, at least 0, got -1."),
        ({"shots": [1, "two"]}, "shots must be a number above 0, got 'two'."),
        ({"shots": [0]}, "shots must be a number above 0, got 0."),
        ({"test_fraction": 1}, "test_fraction must be between 0 and 1, got 1."),
        ({"targets": ["../ssTEM"]}, "targets are names of folders in data_dir"),
        ({"targets": []}, "targets is empty"),
        ({"methods": []}, "methods is empty"),
        ({"shots": [], "pixels": []}, "shots and pixels are both empty"),
        ({"splits": None}, "splits must be a whole number"),
        ({"amp": "yes"}, "amp must be auto, true or false, got 'yes'."),
        ({"runner": "dask"}, "runner: there is no 'dask'; use auto, loop, ray."),
        ({"support_steps": 0}, "support_steps must be a whole number, at least 1, got 0."),
        ({"support_epochs": 3}, "the schedule cpu counts steps: give support_steps instead of support_epochs."),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(KWTLError) as refused:
        make_config({"targets": ["ssTEM"], **options})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_file_is_named_in_what_is_said_of_it(tmp_path):
    (tmp_path / "mine.json").write_text('{"targets": ["ssTEM"], "spilts": 3}')
    with pytest.raises(KWTLError, match="mine.json: unknown option 'spilts'; did you mean splits?"):
        read_config(tmp_path / "mine.json")
    with pytest.raises(KWTLError, match="there is no configuration at .*none.json; choose one of configs/benchmark"):
        read_config(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(KWTLError, match="list.json: must hold an object of options"):
        read_config(tmp_path / "list.json")


def test_what_is_given_counts_more_than_the_file(tmp_path):
    (tmp_path / "mine.json").write_text('{"_desc_": "a remark", "targets": ["ssTEM"], "splits": 3}')
    config = read_config(tmp_path / "mine.json", {"splits": 5, "shots": 2})
    assert config.splits == 5 and config.shots == (2,) and config.targets == ("ssTEM",)


def test_the_papers_schedule_has_the_papers_numbers():
    plan = schedule_named("paper")
    assert (plan.meta_epochs, plan.inner_steps, plan.meta_crops) == (300, 30, 5)
    assert (plan.pretext_epochs, plan.support_epochs, plan.crop, plan.batch_size) == (100, 20, 256, 64)
    assert plan.pretext_steps is None and plan.support_steps is None and plan.exact


def test_the_schedule_of_the_bundle_trains_as_its_configs_do():
    plan = schedule_named("bundle")
    names = ("train", "pretext", "select")
    train, pretext, select = (json.loads((BUNDLE / f"{name}.json").read_text()) for name in names)
    assert (plan.support_steps, plan.batch_size) == (train["steps"], 8) and "else 8" in train["batch_size"]
    assert plan.crop == 128 and "else 128" in train["crop"]
    assert plan.learning_rate == pretext["learning_rate"] == 1e-4
    assert plan.pretext_steps == select["pretext_steps"]


def test_another_budget_shows_in_the_name_of_the_schedule():
    assert schedule_named("cpu", support_steps=None).name == "cpu"
    changed = schedule_named("cpu", support_steps=123, meta_epochs=5)
    assert (changed.support_steps, changed.meta_epochs) == (123, 5)
    assert changed.name == "cpu+support_steps=123+meta_epochs=5"
