"""The dictionary twins do what the array transforms do, to the keys they are given and to no others."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, MapTransform
from torch.utils.data import DataLoader

from monai_kwtl import transforms
from monai_kwtl.errors import KWTLError

NAMES = ["AutoContrast", "Brightness", "EqualizeHistogram", "PseudoLabel", "Sharpness"]
SETTINGS = {
    "AutoContrast": {},
    "Brightness": {"factor": 1.6},
    "EqualizeHistogram": {},
    "PseudoLabel": {"fraction": 0.4, "polarity": "bright", "iterations": 2},
    "Sharpness": {"factor": 0.5},
}
IN_PLACE = [name for name in NAMES if name != "PseudoLabel"]


def twin(name, keys="image", **more):
    return getattr(transforms, f"{name}d")(keys, **SETTINGS[name], **more)


def array(name):
    return getattr(transforms, name)(**SETTINGS[name])


@pytest.fixture
def sample(rng):
    shapes = {"image": (1, 20, 51), "second": (3, 9, 7)}
    return {key: rng.integers(0, 256, shape).astype(np.uint8) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_three_names_are_one_class_and_all_are_public(name):
    kinds = {getattr(transforms, f"{name}{ending}") for ending in ("d", "D", "Dict")}
    assert len(kinds) == 1 and issubclass(kinds.pop(), MapTransform)
    assert {name, *(f"{name}{ending}" for ending in ("d", "D", "Dict"))} <= set(transforms.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_settings_and_defaults_are_those_of_the_array_transform(name):
    mine = inspect.signature(getattr(transforms, name)).parameters
    twins = inspect.signature(getattr(transforms, f"{name}d")).parameters
    assert list(twins) == ["keys", *(["label_key"] if name == "PseudoLabel" else []), *mine, "allow_missing_keys"]
    assert all(twins[key].default == mine[key].default for key in mine)
    assert getattr(transforms, f"{name}d").backend == getattr(transforms, name).backend


@pytest.mark.parametrize("name", IN_PLACE)
def test_keys_are_replaced_and_the_rest_stays(sample, name):
    given = {**sample, "name": "a.png"}
    before = {key: value.copy() for key, value in sample.items()}
    result = twin(name, "image")(given)
    assert np.array_equal(result["image"], array(name)(sample["image"]))
    assert result["second"] is sample["second"] and result["name"] == "a.png" and list(result) == list(given)
    assert result is not given and all(np.array_equal(given[key], before[key]) for key in before)
    both = twin(name, ("image", "second"))(given)
    assert all(np.array_equal(both[key], array(name)(sample[key])) for key in sample)


def test_pseudo_labels_are_added_and_the_image_stays(sample):
    label = array("PseudoLabel")
    result = twin("PseudoLabel")(sample)
    assert list(result) == ["image", "second", "label"] and "label" not in sample
    assert result["image"] is sample["image"]
    assert np.array_equal(result["label"], label(sample["image"]))
    assert np.array_equal(twin("PseudoLabel", "image", label_key="rough")(sample)["rough"], label(sample["image"]))
    both = twin("PseudoLabel", ("image", "second"))(sample)
    assert list(both) == ["image", "second", "image_label", "second_label"]
    assert all(np.array_equal(both[f"{key}_label"], label(sample[key])) for key in sample)


@pytest.mark.parametrize("name", NAMES)
def test_missing_keys_are_an_error_unless_allowed(sample, name):
    with pytest.raises(KeyError, match="elsewhere"):
        twin(name, ("image", "elsewhere"))(sample)
    assert list(twin(name, "elsewhere", allow_missing_keys=True)(sample)) == list(sample)
    result = twin(name, ("image", "elsewhere"), allow_missing_keys=True)(sample)
    alone = twin(name, "image")(sample)
    made = "image_label" if name == "PseudoLabel" else "image"
    assert np.array_equal(result[made], alone["label" if name == "PseudoLabel" else "image"])


@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_arrays_and_meta_data_are_kept(sample, name):
    made = "label" if name == "PseudoLabel" else "image"
    expected = array(name)(sample["image"])
    tensor = torch.from_numpy(sample["image"])
    for image in (sample["image"], tensor, MetaTensor(tensor, meta={"filename_or_obj": "a.png"})):
        result = twin(name)({"image": image})[made]
        assert type(result) is type(image) and np.array_equal(np.asarray(result), expected)
    assert result.meta["filename_or_obj"] == "a.png"


@pytest.mark.parametrize(
    ("name", "settings"), [("Brightness", {"factor": -1}), ("Sharpness", {"factor": "x"}), ("PseudoLabel", {})]
)
def test_bad_settings_are_refused_as_by_the_array_transform(name, settings):
    with pytest.raises(KWTLError) as error:
        getattr(transforms, f"{name}d")("image", **settings)
    with pytest.raises(KWTLError) as same:
        getattr(transforms, name)(**settings)
    assert str(error.value) == str(same.value)


def test_twins_work_in_pipelines_configs_and_loader_workers(sample):
    described = [
        {"_target_": "monai_kwtl.transforms.PseudoLabeld", "keys": "image", "threshold": 99},
        {"_target_": "monai_kwtl.transforms.Sharpnessd", "keys": ["image"], "factor": 1.3},
        {"_target_": "monai_kwtl.transforms.AutoContrastd", "keys": ["image"]},
    ]
    parsed = ConfigParser({"t": {"_target_": "Compose", "transforms": described}}).get_parsed_content("t")
    expected = transforms.AutoContrast()(transforms.Sharpness(1.3)(sample["image"]))
    label = transforms.PseudoLabel(99)(sample["image"])
    for result in (parsed(sample), Compose(list(parsed.transforms))(sample)):
        assert np.array_equal(result["image"], expected) and np.array_equal(result["label"], label)
    with_workers = DataLoader(Dataset([{"image": sample["image"]}] * 3, parsed), batch_size=3, num_workers=1)
    batch = next(iter(with_workers))
    assert batch["image"].shape == (3, 1, 20, 51) and batch["label"].dtype == torch.uint8
    assert np.array_equal(np.asarray(batch["image"][2]), expected)
