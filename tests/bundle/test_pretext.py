"""Rough masks are those of OpenCV, the sheet shows how they come about, and tuning is done again only where it must."""

from __future__ import annotations

import json
import logging
import os
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from read_log import Log
from skimage.filters import threshold_otsu
from stage_here import as_before, command, random_weights, run
from stage_process import CONFIGS

from monai_kwtl.bundle.pretext import auto_pretext
from monai_kwtl.data.pool import load_pool
from monai_kwtl.data.pseudo_labels import choose_pseudo_label, pseudo_labelled
from monai_kwtl.errors import KWTLError
from monai_kwtl.report.pseudo_labels import preview_sheet, show_preview
from monai_kwtl.transforms import PseudoLabel
from monai_kwtl.utils.sampling import evenly_spaced


@pytest.fixture(autouse=True)
def level(caplog):
    caplog.set_level(logging.INFO, logger="monai_kwtl")


def blobs(rng, height, width, dark):
    """A noisy image with a few round cells, darker or brighter than the rest."""
    rows, columns = np.mgrid[:height, :width]
    image = rng.normal(130, 12, (height, width))
    for y, x in rng.uniform([0, 0], [height, width], (4, 2)):
        image += np.where(np.hypot(rows - y, columns - x) < 6, -70 if dark else 70, 0)
    return image.clip(0, 255).astype(np.uint8)


def save_pool(folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / name)
    return load_pool(folder)


@pytest.fixture
def pool(tmp_path, rng):
    """Dark cells in three images of other sizes, one of them in a row of pixels only."""
    sizes = {"a.png": (37, 52), "b.png": (60, 41), "c.png": (1, 30)}
    return save_pool(tmp_path / "pool", {name: blobs(rng, *size, dark=True) for name, size in sizes.items()})


def grey_of(item):
    return np.array(Image.open(item["image"]))


# --- some of many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 17])
@pytest.mark.parametrize("most", [1, 2, 4, 17, 100])
def test_some_of_many_are_spread_evenly(count, most):
    chosen = evenly_spaced(list(range(count)), most)
    assert len(chosen) == min(count, most) and chosen == sorted(set(chosen))
    assert chosen[0] == 0 and (most == 1 or chosen[-1] == count - 1)
    gaps = np.diff(chosen)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("most", [0, -3, 1.5, "all", None, True])
def test_some_are_at_least_one(most):
    with pytest.raises(KWTLError, match="most_images must be a whole number, at least 1"):
        evenly_spaced([1, 2], most)


# --- which pseudo-label -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("polarity", ["dark", "bright"])
def test_polarity_is_guessed_from_the_smaller_side(tmp_path, rng, polarity, caplog):
    images = {f"{number}.png": blobs(rng, 50, 70, polarity == "dark") for number in range(3)}
    images["odd.png"] = blobs(rng, 50, 70, polarity != "dark")  # the median does not care
    label = choose_pseudo_label(save_pool(tmp_path / "pool", images))
    assert (label.polarity, label.method, label.iterations) == (polarity, "otsu", 1)
    assert caplog.messages == [
        f"the cells are taken to be {polarity}; say --polarity dark or bright where that is wrong"
    ]


def test_polarity_that_is_told_needs_no_image(caplog):
    label = choose_pseudo_label([], polarity="bright", iterations=0)
    assert (label.polarity, label.iterations) == ("bright", 0)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("otsu", None)),
        ({"threshold": 140}, ("equalize", 140)),
        ({"fraction": 0.2}, ("equalize", 51.0)),
        ({"fraction": 0.2, "polarity": "bright"}, ("equalize", 204.0)),
        ({"method": "kmeans"}, ("kmeans", None)),
        ({"method": "equalize", "threshold": 0}, ("equalize", 0)),
    ],
)
def test_a_threshold_or_a_fraction_asks_for_equalisation(options, expected):
    label = choose_pseudo_label([], **{"polarity": "dark"} | options)
    assert (label.method, label.threshold) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 20, "fraction": 0.1},
        {"method": "equalize"},
        {"method": "otsu", "threshold": 20},
        {"method": "watershed"},
        {"polarity": "grey"},
        {"threshold": 300},
        {"fraction": 1.5},
        {"iterations": -1},
    ],
)
def test_settings_that_contradict_each_other_are_refused(options):
    with pytest.raises(KWTLError):
        choose_pseudo_label([], **{"polarity": "dark"} | options)


def opencv_steps(grey, threshold, iterations):
    equalized = cv2.equalizeHist(grey)
    mask = (equalized <= threshold).astype(np.uint8)
    return equalized, mask, cv2.dilate(mask, np.ones((2, 2), np.uint8), iterations=iterations)


def test_images_are_labelled_as_opencv_does(pool, caplog):
    found = pseudo_labelled(pool, PseudoLabel(threshold=60, polarity="dark", iterations=2))
    assert [entry["name"] for entry in found] == [item["name"] for item in pool]
    fractions = []
    for entry, item in zip(found, pool, strict=True):
        assert np.array_equal(entry["image"][0], grey_of(item))
        label = opencv_steps(grey_of(item), 60, 2)[2]
        assert entry["label"].dtype == np.uint8 and np.array_equal(entry["label"][0], label)
        fractions.append(100 * label.mean())
    assert caplog.messages == [f"pseudo-labels of 3 images: {sum(fractions) / 3:.1f} % foreground"]
    assert 5 < sum(fractions) / 3 < 60


def test_at_most_so_many_images_are_labelled(pool):
    found = pseudo_labelled(pool, PseudoLabel(fraction=0.2), most=2)
    assert [entry["name"] for entry in found] == ["a.png", "c.png"]


def test_a_grey_range_holds_for_all_images(tmp_path):
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30)
    pool = save_pool(tmp_path / "deep", {"a.png": pixels, "b.png": pixels // 2})
    found = pseudo_labelled(pool, PseudoLabel(fraction=0.5), rescale=(0, 1200))
    for entry, top in zip(found, (599, 299), strict=True):
        assert entry["image"].max() == round(255 * top / 1200)


# --- the sheet --------------------------------------------------------------------------------------------------------


def places(sheet, picture):
    """Where a picture stands in a sheet: row and column of its top left pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, picture.shape)
    return [tuple(place) for place in np.argwhere((windows == picture).all((2, 3))).tolist()]


def displayed(pixels):
    low, high = np.percentile(pixels, [0.1, 99.9])
    return np.rint(np.clip((pixels - low) * min(255 / max(high - low, 1), 8), 0, 255)).astype(np.uint8)


def test_the_sheet_shows_every_step_of_every_image(pool):
    sheet = preview_sheet(pool[:2], PseudoLabel(threshold=60, iterations=1))
    assert sheet.dtype == np.uint8 and sheet.ndim == 2
    rows = []
    for item in pool[:2]:
        grey = grey_of(item)
        equalized, mask, dilated = opencv_steps(grey, 60, 1)
        found = [places(sheet, picture) for picture in (displayed(grey), equalized, mask * 255, dilated * 255)]
        assert [len(where) for where in found] == [1] * 4
        rows.append([where[0] for where in found])
    for row in rows:
        assert len({top for top, _ in row}) == 1, "a row an image"
    for column in range(4):
        assert len({row[column][1] for row in rows}) == 1, "a column a step"
    assert [left for _, left in rows[0]] == sorted(left for _, left in rows[0])
    (top, first), (below, _) = rows[0][0], rows[1][0]
    assert below >= top + 37
    for _, left in rows[0]:
        assert (sheet[:top, left : left + 30] < 100).any(), "over each column stands its name"
    for start, end in ((top + 37, below), (below + 60, sheet.shape[0])):
        assert (sheet[start:end, first : first + 52] < 150).any(), "under each row stands the image's"


def test_without_equalisation_there_is_no_column_for_it(pool):
    item = pool[0]
    sheet = preview_sheet([item], PseudoLabel(method="otsu", polarity="bright", iterations=0))
    mask = (grey_of(item) > threshold_otsu(grey_of(item))).astype(np.uint8) * 255
    found = places(sheet, mask)
    assert len(found) == 2 and found[0][0] == found[1][0], "without dilation it is the same before and after"
    assert sheet.shape[1] < 4 * 52


def test_large_images_are_shown_small_and_some_of_many(tmp_path, rng):
    names = [f"{number}.png" for number in range(9)]
    pool = save_pool(tmp_path / "many", {name: blobs(rng, 90, 200, dark=True) for name in names})
    pair = preview_sheet(pool, PseudoLabel(fraction=0.1), most=2, side=50)
    assert pair.shape[1] <= 4 * (50 + 8) + 8
    assert np.array_equal(pair, preview_sheet([pool[0], pool[8]], PseudoLabel(fraction=0.1), side=50))
    assert preview_sheet(pool, PseudoLabel(fraction=0.1), side=50).shape[0] > 1.5 * pair.shape[0], "four by default"


def test_images_without_contrast_are_shown_as_they_are(tmp_path):
    grey = np.full((20, 33), 80, dtype=np.uint8)
    sheet = preview_sheet(save_pool(tmp_path / "flat", {"a.png": grey}), PseudoLabel(fraction=0.3))
    assert len(places(sheet, grey)) == 1 and len(places(sheet, np.zeros_like(grey))) >= 2


def test_pages_are_told_apart(tmp_path, rng):
    (tmp_path / "stack").mkdir()
    page = blobs(rng, 40, 60, dark=True)
    tifffile.imwrite(tmp_path / "stack" / "a.tif", np.stack([page, page]), photometric="minisblack")
    pool = load_pool(tmp_path / "stack")
    sheet = preview_sheet(pool, PseudoLabel(fraction=0.1))
    first, second = places(sheet, displayed(page))
    below = [sheet[top + 40 : top + 66, 8:240] for top, _ in (first, second)]
    assert not np.array_equal(*below), "page 1 and page 2 stand under them"


def test_the_sheet_is_written_and_logged_once(tmp_path, caplog):
    for value in (7, 9):
        sheet = np.full((30, 50), value, dtype=np.uint8)
        sheet[3, 5] = 200
        path = show_preview(sheet, tmp_path / "out")
    assert path == tmp_path / "out" / "pseudo_labels.png"
    assert np.array_equal(np.array(Image.open(path)), sheet)
    log = Log(tmp_path / "out" / "tensorboard")
    assert log.tags("images") == ["pseudo-labels"]
    assert (log.picture("pseudo-labels") == sheet[..., None]).all(), "the last one"
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["pseudo_labels.png", "tensorboard"]
    assert caplog.messages[-1] == f"pseudo-labels are drawn in {path}"
    show_preview(sheet, tmp_path / "other", tensorboard=False)
    assert [entry.name for entry in (tmp_path / "other").iterdir()] == ["pseudo_labels.png"]


# --- the stages -------------------------------------------------------------------------------------------------------

OPTIONS = {"steps": 2, "crop": 24, "batch_size": 2, "polarity": "dark", "device": "cpu", "amp": "false"}


@pytest.fixture
def home(tmp_path, rng):
    """A bundle with weights of its own, and images."""
    root = tmp_path / "bundle"
    shutil.copytree(CONFIGS, root / "configs")
    (root / "models").mkdir()
    ckpt = random_weights(root / "models" / "model.pt")
    images = {f"{number}.png": blobs(rng, 60, 70, dark=True) for number in range(3)}
    save_pool(tmp_path / "pool", images)
    return SimpleNamespace(root=root, ckpt=ckpt, pool=tmp_path / "pool", out=tmp_path / "out", other=tmp_path / "other")


def tune(home, choice="always", output=None, ckpt=None, **options):
    """Call auto_pretext as the select stage does."""
    with as_before():
        return auto_pretext(choice, ckpt or home.ckpt, home.root, home.pool, output or home.out, **OPTIONS | options)


def test_a_preview_stops_before_training(home):
    ended = run("pretext", dataset_dir=home.pool, output_dir=home.out, ckpt=home.ckpt, preview="true", **OPTIONS)
    assert ended.status == 0, ended.err
    assert sorted(entry.name for entry in home.out.iterdir()) == ["pseudo_labels.png", "tensorboard"]
    log = Log(home.out / "tensorboard")
    assert log.tags("scalars") == [] and log.tags("images") == ["pseudo-labels"]
    assert (log.picture("pseudo-labels") == np.array(Image.open(home.out / "pseudo_labels.png"))[..., None]).all()
    assert "pretext tuning" not in ended.out


def test_a_preview_leaves_weights_that_are_there_and_their_curve(home):
    shared = {"dataset_dir": home.pool, "output_dir": home.out, "ckpt": home.ckpt}
    assert run("pretext", **shared, **OPTIONS).status == 0
    before = {name: (home.out / name).read_bytes() for name in ("model.pt", "model.json", "pseudo_labels.png")}
    ended = run("pretext", **shared, **OPTIONS | {"preview": "true", "fraction": 0.4})
    assert ended.status == 0, ended.err
    after = {name: (home.out / name).read_bytes() for name in before}
    assert [name for name in before if after[name] != before[name]] == ["pseudo_labels.png"]
    log = Log(home.out / "tensorboard")
    assert [step for step, _ in log.curve("loss/train")] == [1, 2]
    assert (log.picture("pseudo-labels") == np.array(Image.open(home.out / "pseudo_labels.png"))[..., None]).all()


def _image(home):
    image = np.array(Image.open(home.pool / "1.png"))
    image[5, 7] = 255 - image[5, 7]
    Image.fromarray(image).save(home.pool / "1.png")


def _one_more_image(home):
    shutil.copy(home.pool / "1.png", home.pool / "copy.png")


def _weights(home):
    random_weights(home.ckpt, seed=1)


def _note(home):
    (home.out / "pretext" / "model.json").unlink()


def _tuned_weights(home):
    random_weights(home.out / "pretext" / "model.pt", seed=2)


def _nothing(home):
    """For changes of a setting."""


CHANGES = [
    (_image, {}),
    (_one_more_image, {}),
    (_weights, {}),
    (_note, {}),
    (_tuned_weights, {}),
    (_nothing, {"steps": 3}),
    (_nothing, {"fraction": 0.3}),
]


@pytest.mark.parametrize(("change", "options"), CHANGES, ids=lambda value: value.__name__ if callable(value) else None)
def test_tuning_is_done_again_where_anything_has_changed(home, change, options, capsys):
    weights = tune(home)
    before = json.loads((home.out / "pretext" / "model.json").read_text())
    change(home)
    capsys.readouterr()
    assert tune(home, **options) == weights
    said = capsys.readouterr().out  # as logging.conf has it
    assert "pretext tuning: " in said and "used again" not in said
    after = json.loads((home.out / "pretext" / "model.json").read_text())
    same = change in (_note, _tuned_weights)  # the result is damaged, not what it is made of
    assert (after["fingerprint"] == before["fingerprint"]) is same and (after["sha256"] == before["sha256"]) is same
    assert [step for step, _ in Log(home.out / "pretext" / "tensorboard").curve("loss/train")] == list(
        range(1, 1 + options.get("steps", 2))
    )


def test_tuned_weights_are_used_again_while_nothing_has_changed(home, capsys):
    weights = tune(home)
    assert weights == str(home.out / "pretext" / "model.pt")
    before = {path: path.stat().st_mtime_ns for path in (home.out / "pretext").rglob("*")}
    os.rename(home.pool / "0.png", home.pool / "renamed.png")
    capsys.readouterr()
    assert tune(home) == weights
    said = capsys.readouterr().out.splitlines()
    assert said == [f"the pretext weights in {weights} are of these images and settings: used again"]
    assert {path: path.stat().st_mtime_ns for path in (home.out / "pretext").rglob("*")} == before


def test_it_leaves_what_the_pretext_stage_leaves(home):
    tune(home)
    ended = run("pretext", dataset_dir=home.pool, output_dir=home.other, ckpt=home.ckpt, **OPTIONS)
    assert ended.status == 0, ended.err
    own, alone = (torch.load(folder / "model.pt", weights_only=True) for folder in (home.out / "pretext", home.other))
    assert all(torch.equal(own[name], alone[name]) for name in own)
    names = ["model.json", "model.pt", "pseudo_labels.png", "tensorboard"]
    assert sorted(path.name for path in (home.out / "pretext").iterdir()) == names


def test_auto_tunes_the_bundles_own_weights_only(home, tmp_path):
    foreign = random_weights(tmp_path / "mine.pt", seed=3)
    assert tune(home, "auto", ckpt=foreign) == str(foreign)
    assert not home.out.exists()
    os.symlink(home.ckpt, tmp_path / "link.pt")
    assert tune(home, "auto", ckpt=tmp_path / "link.pt") == str(home.out / "pretext" / "model.pt")


def test_weights_may_be_taken_as_they_are(home, tmp_path):
    assert tune(home, "skip") == str(home.ckpt)
    tuned = random_weights(tmp_path / "tuned.pt", seed=3)
    assert tune(home, str(tuned)) == str(tuned)
    assert not home.out.exists()


@pytest.mark.parametrize("choice", ["allways", "none/model.pt", 3])
def test_another_choice_is_refused(home, choice):
    with pytest.raises(KWTLError, match="pretext is auto, always, skip or the path of weights; there is no file"):
        tune(home, choice)


def test_select_tunes_once_and_scores_with_what_it_tuned(home):
    shared = {"dataset_dir": home.pool, "output_dir": home.out, "pretext_steps": 1, "window": 32, "step": 16}
    shared |= {"report": "false", "tensorboard": "false", "device": "cpu", "amp": "false", "polarity": "dark"}
    said = []
    for budget in (1, 2):
        config = home.root / "configs" / "select.json"
        ended = command("--config_file", config, budget_windows=budget, overwrite="true", **shared)
        assert ended.status == 0, ended.err
        document = json.loads((home.out / "selection.json").read_text())
        assert len(document["regions"]) == budget
        note = json.loads((home.out / "pretext" / "model.json").read_text())
        assert document["created_with"]["model_sha256"] == note["sha256"]
        said.append(ended.out)
    assert "pretext tuning: 1 in" in said[0] and "used again" not in said[0]
    assert "pretext tuning" not in said[1] and "used again" in said[1] and "scoring images" not in said[1]
