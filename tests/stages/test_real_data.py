"""The paper's data sets: read right, ranked the same however they are loaded, and never by their labels."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass

import jsonschema
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.stats import spearmanr
from stage_here import command, random_weights
from stage_process import CONFIGS, ROOT

from monai_kwtl.data.folders import find_images
from monai_kwtl.data.loading import describe_label_values, read_image, read_label
from monai_kwtl.data.pool import scan_images
from monai_kwtl.data.pseudo_labels import choose_pseudo_label
from monai_kwtl.networks.batch_norm import estimate_batch_norm_statistics
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import load_weights
from monai_kwtl.scoring.score_map import ScoreMapInferer
from monai_kwtl.scoring.window_scores import WindowScoreInferer
from monai_kwtl.transforms.functional import normalize

SCHEMA = json.loads((ROOT / "monai_kwtl" / "project" / "selection.schema.json").read_text())


@dataclass(frozen=True)
class RealSet:
    """What is known of a data set: number of images, their shape, number and type of the values in the files."""

    count: int
    shape: tuple[int, ...]
    dtype: str
    # fractions of the pixels that pseudo-labels of the overlay call foreground
    least: float
    most: float


SETS = {
    "ssTEM": RealSet(20, (1024, 1024), "uint8", 0.5, 0.7),
    "TNBC": RealSet(50, (512, 512, 3), "uint8", 0.05, 0.2),
    "B39": RealSet(200, (520, 696), "uint16", 0.15, 0.4),
    "B5": RealSet(400, (520, 696), "uint8", 0.15, 0.5),
}
EMPTY = ("F13_s7_w13C1B1D8C", "L01_s2_w1E5038251", "L10_s6_w12D12D64C")  # of B39: fields without a nucleus
NAMES = pytest.mark.parametrize("name", SETS)


def overlay(name):
    return ROOT / "configs" / f"{name.lower()}.json"


def pixels_of(path):
    """The values in a file, without the package."""
    return tifffile.imread(path) if path.endswith(".tif") else np.array(Image.open(path))


@pytest.fixture(scope="module")
def sets(kwtl_data):
    """All items of each data set; no file is opened."""
    return {name: find_images(kwtl_data / name) for name in SETS}


@pytest.fixture(scope="module")
def some(sets):
    """The first, a middle and the last image of each data set."""
    return {name: scan_images([items[0], items[len(items) // 2 - 1], items[-1]]) for name, items in sets.items()}


@NAMES
def test_every_image_has_the_label_of_its_name(name, sets):
    items = sets[name]
    assert len(items) == SETS[name].count
    for item in items:
        stem = item["image"].rsplit("/", 1)[1].rsplit(".", 1)[0]
        assert item["label"].rsplit("/", 1)[1] == f"{stem}.png"


@NAMES
def test_images_are_read_as_the_luminance_in_the_file(name, some):
    for item in some[name]:
        pixels = pixels_of(item["image"])
        assert (pixels.shape, pixels.dtype) == (SETS[name].shape, SETS[name].dtype)
        assert (item["height"], item["width"], item["page"]) == (*SETS[name].shape[:2], None)
        if name == "TNBC":
            expected = np.asarray(Image.open(item["image"]).convert("L"))
        elif name == "B39":  # by its own range: no nucleus is lost in 16 bits, of which the camera fills 12
            low, high = int(pixels.min()), int(pixels.max())
            expected = np.rint((pixels.astype(np.float64) - low) * 255 / (high - low))
            assert (expected.min(), expected.max()) == (0, 255) and high > 255
        else:
            expected = pixels
        image = read_image(item)
        assert (image.shape, image.dtype) == ((1, *SETS[name].shape[:2]), np.uint8)
        assert np.array_equal(image[0], expected)


@NAMES
def test_labels_are_0_and_1_and_lie_on_the_cells(name, some):
    bright = json.loads(overlay(name).read_text())["polarity"] == "bright"
    for item in some[name]:
        label, image = read_label(item), read_image(item)
        assert (label.shape, label.dtype, set(np.unique(label))) == (image.shape, np.uint8, {0, 1})
        assert np.array_equal(label[0] > 0, np.array(Image.open(item["label"])) == 255)
        assert (image[label == 1].mean() > image[label == 0].mean()) == bright
    assert describe_label_values(some[name]) is None


def test_fields_without_a_nucleus_have_an_empty_label(sets):
    found = [item for item in sets["B39"] if any(part in item["name"] for part in EMPTY)]
    assert len(found) == len(EMPTY)
    assert not any(read_label(item).any() for item in found)


@NAMES
def test_pseudo_labels_of_the_overlay_find_cells_more_often_than_chance(name, some):
    options = json.loads(overlay(name).read_text())
    options = {key: options[key] for key in ("threshold", "fraction", "polarity") if key in options}
    pseudo_label = choose_pseudo_label(some[name], **options)
    found = np.concatenate([np.asarray(pseudo_label(read_image(item))).ravel() for item in some[name]])
    label = np.concatenate([read_label(item).ravel() for item in some[name]])
    assert set(np.unique(found)) == {0, 1}
    assert SETS[name].least <= found.mean() <= SETS[name].most
    assert label[found == 1].mean() > 1.2 * label.mean()


# --- selection --------------------------------------------------------------------------------------------------------


def _save(path, pixels):
    """In the format and type that the file has."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, compression="zlib", predictor=True)
    else:
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module", params=SETS)
def place(request, some, tmp_path_factory):
    """A KWTL_DATA with crops, 150 rows and 210 columns, of three images of one set; weights that were never trained."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    for kind in ("images", "labels"):
        (folder / "data" / name / kind).mkdir(parents=True)
        for item in some[name]:
            source = item["image" if kind == "images" else "label"]
            pixels = pixels_of(source)
            top, left = (pixels.shape[0] - 150) // 2, (pixels.shape[1] - 210) // 2
            crop = np.ascontiguousarray(pixels[top : top + 150, left : left + 210])
            _save(folder / "data" / name / kind / source.rsplit("/", 1)[1], crop)
    random_weights(folder / "weights.pt")
    return name, folder


@pytest.fixture(scope="module")
def select(place):
    """Select on the data set with its overlay; gives the bytes of selection.json."""
    name, folder = place
    options = {"ckpt": folder / "weights.pt", "pretext": "skip", "window": 64, "budget_windows": 5, "device": "cpu"}
    options |= {"report": "false", "tensorboard": "false"}

    def run(data, output, **others):
        arguments = ["--config_file", CONFIGS / "select.json", "--args_file", overlay(name)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KWTL_DATA", str(data))  # the overlay names the folder of the set in it
            ended = command(*arguments, output_dir=output, **options | others)
        assert (ended.status, ended.err) == (0, "")
        return (output / "selection.json").read_bytes()

    return run


@pytest.fixture(scope="module")
def chosen(place, select):
    """The selection, and the folder of the images that it was made on."""
    name, folder = place
    return select(folder / "data", folder / "out"), folder / "data" / name


def test_the_papers_choice_goes_by_score(place, select):
    folder = place[1]
    document = json.loads(select(folder / "data", folder / "paper", preset="paper"))
    assert document["created_with"]["strategy"] == "top_k"
    scores = [region["score"] for region in document["regions"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]


def test_a_selection_is_valid_and_lies_inside_the_images(place, chosen):
    selection, dataset = chosen
    document = json.loads(selection)
    jsonschema.validate(document, SCHEMA)
    options = json.loads(overlay(place[0]).read_text())
    made = document["created_with"]
    assert (made["psi"], made["step"], made["window"]) == (options.get("psi", 1.3), options["step"], 64)
    assert [region["rank"] for region in document["regions"]] == [1, 2, 3, 4, 5]
    assert made["strategy"] == "balanced"
    covered = {path.name: np.zeros((150, 210), dtype=bool) for path in (dataset / "images").iterdir()}
    for region in document["regions"]:
        path = dataset / region["image"]
        assert region["image_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (region["width"], region["height"]) == (64, 64)
        inside = covered[path.name][region["y"] : region["y"] + 64, region["x"] : region["x"] + 64]
        assert inside.shape == (64, 64)
        inside[...] = True
    touched = [plane for plane in covered.values() if plane.any()]
    pixels = sum(int(plane.sum()) for plane in touched)
    assert document["cost"] == {"windows": 5, "images": len(touched), "unique_pixels": pixels}


def test_loader_workers_change_nothing(place, select, chosen, tmp_path):
    assert select(place[1] / "data", tmp_path / "out", num_workers=2) == chosen[0]


def test_labels_change_nothing(place, select, chosen, tmp_path, rng):
    name, folder = place
    shutil.copytree(folder / "data", tmp_path / "data")
    for path in (tmp_path / "data" / name / "labels").iterdir():
        Image.fromarray((rng.random((150, 210)) < 0.5) * np.uint8(255)).save(path)
    assert select(tmp_path / "data", tmp_path / "out") == chosen[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["ssTEM", "TNBC"])
def test_statistics_in_bfloat16_rank_windows_as_those_in_float32(name, threads, some):
    (crop, *_) = (read_image(item)[:, 100:357, 50:353].copy() for item in some[name][1:2])
    image = torch.from_numpy(crop)[None]
    scores = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for amp in (False, True):
            network = load_weights(FCRN(), ROOT / "bundles" / "kwtl" / "models" / "model.pt")
            estimate_batch_norm_statistics(network, [normalize(image)], amp=amp)
            scores.append(WindowScoreInferer(ScoreMapInferer(), window=64, step=16)(image, network.eval()))
    finally:
        torch.set_num_threads(before)
    plain, fast = (found["window_scores"] for found in scores)
    assert len(plain) == 195 and spearmanr(plain, fast).statistic > 0.999
