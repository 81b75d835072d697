"""Figures, tables and pictures of the evaluate stage are those of loops over the pixels of the masks on disk."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from ignite.engine import Engine
from PIL import Image
from read_log import Log
from stage_here import random_weights, run

from monai_kwtl.data.pool import labelled
from monai_kwtl.errors import KWTLError
from monai_kwtl.handlers.evaluation_saver import EvaluationSaver, error_overlay
from monai_kwtl.metrics import overlap
from monai_kwtl.networks.fcrn import FCRN

QUICK = {"device": "cpu", "amp": "false"}
# name in the tables, page, file of the mask that inference.json writes; all but the last have a label
IMAGES = [
    ("images/colour.png", None, "colour.png"),
    ("images/deep.tif", None, "deep.png"),
    ("images/empty.png", None, "empty.png"),
    ("images/grey.png", None, "grey.png"),
    ("images/stack.tif", 0, "stack_p0.png"),
    ("images/stack.tif", 1, "stack_p1.png"),
    ("images/unlabelled.png", None, "unlabelled.png"),
]
LABELLED = IMAGES[:-1]


def texture(rng, *shape):
    """Grey values of blobs a few pixels wide, 0 to 255, of which an untrained network also makes blobs."""
    rough = rng.integers(0, 256, shape[:-2] + tuple(-(-side // 6) for side in shape[-2:]))
    return np.kron(rough, np.ones((6, 6), dtype=int))[..., : shape[-2], : shape[-1]]


def make_data_set(folder):
    """Odd and non-square images, grey, colour, 16 bit and two pages, with masks of several kinds."""
    rng = np.random.default_rng(20230109)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    images, labels = folder / "images", folder / "labels"
    masks = {}
    for name, shape in (("grey", (33, 47)), ("colour", (40, 25)), ("deep", (31, 64)), ("empty", (26, 35))):
        masks[name] = texture(rng, *shape) < 100
        grey = texture(rng, *shape)
        if name == "deep":
            tifffile.imwrite(images / "deep.tif", (100 * grey + 7).astype(np.uint16))
        elif name == "colour":
            channels = np.stack([grey, 255 - grey, texture(rng, *shape)], axis=2)
            Image.fromarray(channels.astype(np.uint8)).save(images / "colour.png")
        else:
            Image.fromarray(grey.astype(np.uint8)).save(images / f"{name}.png")
    masks["empty"][:] = False
    Image.fromarray(masks["grey"].astype(np.uint8)).save(labels / "grey.png")  # 0 and 1
    Image.fromarray(masks["colour"] * np.uint8(255)).save(labels / "colour.png")
    tifffile.imwrite(labels / "deep.tif", (masks["deep"] * (1 + np.arange(64) // 9)).astype(np.uint16))  # instances
    Image.fromarray(masks["empty"].astype(np.uint8)).save(labels / "empty.png")
    tifffile.imwrite(images / "stack.tif", texture(rng, 2, 29, 37).astype(np.uint8), photometric="minisblack")
    masks["stack"] = texture(rng, 2, 29, 37) < 100
    tifffile.imwrite(labels / "stack.tif", masks["stack"].astype(np.uint8) * 255, photometric="minisblack")
    Image.fromarray(texture(rng, 28, 28).astype(np.uint8)).save(images / "unlabelled.png")
    return {
        (name, page): masks[name.split("/")[1].split(".")[0]][() if page is None else page]
        for name, page, _ in LABELLED
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    truth = make_data_set(folder / "data")
    random_weights(folder / "model.pt", seed=3)
    options = QUICK | {"dataset_dir": folder / "data", "ckpt": folder / "model.pt"}
    ended = run("inference", output_dir=folder / "masks", **options)
    assert ended.status == 0, ended.err
    predicted = {(name, page): np.array(Image.open(folder / "masks" / file)) > 0 for name, page, file in IMAGES}
    return SimpleNamespace(folder=folder, truth=truth, predicted=predicted)


def evaluate(place, output, **stage_options):
    options = QUICK | {"dataset_dir": place.folder / "data", "ckpt": place.folder / "model.pt"} | stage_options
    return run("evaluate", output_dir=output, **options)


@pytest.fixture(scope="module")
def done(place):
    """Folder and words of an evaluation by the network that wrote the masks: its statistics fit the same images."""
    output = place.folder / "evaluation"
    ended = evaluate(place, output, norm_dir=place.folder / "data")
    assert ended.status == 0, ended.err
    return SimpleNamespace(folder=output, out=ended.out)


def counts(place):
    """Pixels by pixel, {(name, page): (true positive, false positive, false negative, pixels)}."""
    found = {}
    for key, truth in place.truth.items():
        predicted = place.predicted[key]
        assert predicted.shape == truth.shape
        both = only_predicted = only_true = 0
        for row in range(truth.shape[0]):
            for column in range(truth.shape[1]):
                p, t = bool(predicted[row, column]), bool(truth[row, column])
                both += p and t
                only_predicted += p and not t
                only_true += t and not p
        found[key] = (both, only_predicted, only_true, truth.size)
    return found


def iou(count):
    return (count[0] + 1e-4) / (sum(count[:3]) + 1e-4)


def dice(count):
    return (2 * count[0] + 1e-4) / (count[0] + sum(count[:3]) + 1e-4)


def test_the_data_set_tests_something(place):
    total = np.sum(list(counts(place).values()), axis=0)
    assert (total > 500).all(), "there are enough pixels right and wrong of every kind"
    assert len({iou(count) for count in counts(place).values()}) == len(LABELLED)


def test_the_summary_is_that_of_loops_over_pixels(place, done):
    found = counts(place)
    ious, dices = [iou(c) for c in found.values()], [dice(c) for c in found.values()]
    pooled = [sum(c[k] for c in found.values()) for k in range(3)]
    mean = sum(ious) / len(ious)
    assert json.loads((done.folder / "evaluation.json").read_text())["summary"] == {
        "images": len(LABELLED),
        "mean_iou": pytest.approx(mean, rel=1e-12),
        "std_iou": pytest.approx((sum((value - mean) ** 2 for value in ious) / len(ious)) ** 0.5, rel=1e-12),
        "pooled_iou": pytest.approx(iou(pooled), rel=1e-12),
        "mean_dice": pytest.approx(sum(dices) / len(dices), rel=1e-12),
        "pooled_dice": pytest.approx(dice(pooled), rel=1e-12),
    }


def test_the_table_has_a_row_an_image(place, done):
    with open(done.folder / "evaluation.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["image", "page", "iou", "dice", "true_positive", "false_positive", "false_negative", "pixels"]
    assert list(rows[0]) == columns
    expected = []
    for (name, page), count in counts(place).items():
        figures = [f"{iou(count):.6f}", f"{dice(count):.6f}", *map(str, count)]
        expected.append(dict(zip(columns, [name, "" if page is None else str(page), *figures], strict=True)))
    assert rows == expected


def test_the_pictures_are_white_where_right_red_where_too_much_and_green_where_too_little(place, done):
    assert {path.name for path in (done.folder / "errors").iterdir()} == {file for _, _, file in LABELLED}
    for name, page, file in LABELLED:
        picture = np.array(Image.open(done.folder / "errors" / file))
        predicted, truth = place.predicted[name, page], place.truth[name, page]
        assert picture.shape == (*truth.shape, 3) and picture.dtype == np.uint8
        for row in range(truth.shape[0]):
            for column in range(truth.shape[1]):
                red, green, blue = map(int, picture[row, column])
                if predicted[row, column] and truth[row, column]:
                    assert (red, green, blue) == (255, 255, 255)
                elif predicted[row, column]:
                    assert red > 200 and max(green, blue) < 60
                elif truth[row, column]:
                    assert green > 150 and max(red, blue) < 100
                else:
                    assert (red, green, blue) == (0, 0, 0)


def test_tensorboard_shows_the_summary_the_spread_and_the_errors(place, done):
    log = Log(done.folder / "tensorboard")
    summary = json.loads((done.folder / "evaluation.json").read_text())["summary"]
    assert log.scalars() == {f"evaluation/{k.replace('_', ' ')}": pytest.approx(v) for k, v in summary.items()}
    found = counts(place)
    histogram = log.histogram("evaluation/IoU per image")
    assert histogram.num == len(LABELLED)
    assert histogram.min == pytest.approx(min(map(iou, found.values())))
    assert histogram.sum == pytest.approx(sum(map(iou, found.values())))
    expected = {}
    for (name, page), count in sorted(found.items(), key=lambda entry: iou(entry[1])):
        page = "" if page is None else f" page {page + 1}"  # as a reader counts
        expected[f"errors/IoU {100 * iou(count):04.1f} {name}{page}"] = name, page
    assert log.tags("images") == list(expected), "the worst come first"
    files = {(name, "" if page is None else f" page {page + 1}"): file for name, page, file in LABELLED}
    for tag, key in expected.items():
        assert np.array_equal(log.picture(tag), np.array(Image.open(done.folder / "errors" / files[key])))


def test_the_closing_lines_say_it_all(place, done):
    summary = json.loads((done.folder / "evaluation.json").read_text())["summary"]
    lines = done.out.splitlines()
    assert "1 of 7 images have no label and are left out" in lines
    (note,) = (line for line in lines if "masks hold other values than 0 and 255" in line)
    assert "all but 0 is taken for foreground" in note
    assert "evaluated 6 images" in lines
    percent = {key: f"{100 * value:.1f}" for key, value in summary.items()}
    words = [" ".join(line.split()) for line in lines]
    assert f"mean IoU {percent['mean_iou']} % (std {percent['std_iou']})" in words
    for name in ("pooled IoU", "mean Dice", "pooled Dice"):
        assert f"{name} {percent[name.lower().replace(' ', '_')]} %" in words
    key, worst = min(((key, iou(count)) for key, count in counts(place).items()), key=lambda entry: entry[1])
    assert f"lowest IoU: {100 * worst:.1f} % in {key[0]}" in words
    assert f"tables and error pictures: {done.folder}" in words


def test_the_summary_says_what_it_was_made_with(place, done):
    made_with = json.loads((done.folder / "evaluation.json").read_text())["created_with"]
    assert {"monai_kwtl", "monai", "torch", "numpy", "model_sha256"} <= made_with.keys()
    assert made_with["probability"] == 0.5 and made_with["adapt_norm"] is True


def test_an_evaluation_that_is_there_stays(place, done):
    before = {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()}
    ended = evaluate(place, done.folder, probability=0.1)
    assert ended.status == 1
    assert "evaluation.json already exists: choose another --output_dir or add --overwrite true" in ended.error
    assert {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()} == before


# --- options ----------------------------------------------------------------------------------------------------------


def figures(output):
    with open(output / "evaluation.csv", newline="", encoding="utf-8") as file:
        return {(r["image"], r["page"]): (r["true_positive"], r["false_positive"]) for r in csv.DictReader(file)}


def assert_predicted(output, place, logits):
    """The figures are those of masks that are predicted image by image, but for pixels at the very threshold."""
    found = figures(output)
    for (name, page), truth in place.truth.items():
        z = logits(name, page)
        predicted, doubtful = z >= 0, np.count_nonzero(abs(z) < 1e-4)
        right, wrong = map(int, found[name, "" if page is None else str(page)])
        assert abs(np.count_nonzero(predicted & truth) - right) <= doubtful
        assert abs(np.count_nonzero(predicted & ~truth) - wrong) <= doubtful
        assert doubtful < 5


def network(place):
    net = FCRN(spatial_dims=2, in_channels=1, out_channels=1)
    net.load_state_dict(torch.load(place.folder / "model.pt", weights_only=True))
    return net


def pixels(place, name, page):
    """Grey values as float tensors, read without the package."""
    path = place.folder / "data" / name
    if name.endswith(".tif"):
        values = tifffile.imread(path).astype(np.float64)
        values = values if page is None else values[page]
        if "deep" in name:
            values = np.rint(255 * (values - values.min()) / (values.max() - values.min()))
    else:
        values = np.array(Image.open(path).convert("L"), dtype=np.float64)
    return torch.from_numpy((values / 255 - 0.5) / 0.5).float()[None, None]


@pytest.mark.parametrize("adapt_norm", ["false", "transductive"])
def test_statistics_of_the_weights_or_of_each_image(place, tmp_path, adapt_norm):
    ended = evaluate(place, tmp_path / "out", adapt_norm=adapt_norm, tensorboard="false")
    assert ended.status == 0, ended.err

    @torch.no_grad()
    def logits(name, page):
        net = network(place).train(adapt_norm == "transductive")
        return net(pixels(place, name, page))[0, 0].numpy()

    assert_predicted(tmp_path / "out", place, logits)


def test_without_norm_dir_the_statistics_fit_the_labelled_images_alone(place, done, tmp_path):
    labelled_only = tmp_path / "labelled"
    shutil.copytree(place.folder / "data", labelled_only)
    (labelled_only / "images" / "unlabelled.png").unlink()
    for output, stage_options in (("a", {}), ("b", {"norm_dir": labelled_only})):
        ended = evaluate(place, tmp_path / output, tensorboard="false", overlays="false", **stage_options)
        assert ended.status == 0, ended.err
    assert figures(tmp_path / "a") == figures(tmp_path / "b") != figures(done.folder)
    assert not list((tmp_path / "a").rglob("*.png")) and not (tmp_path / "a" / "tensorboard").exists()


def test_with_a_threshold_of_zero_all_is_foreground(place, tmp_path):
    labels = tmp_path / "elsewhere"
    shutil.copytree(place.folder / "data" / "labels", labels)
    (labels / "stack.tif").unlink()
    ended = evaluate(place, tmp_path / "out", probability=0.0, labels=labels, tensorboard="false", overlays="false")
    assert ended.status == 0, ended.err
    assert figures(tmp_path / "out") == {
        (name, ""): (str(truth.sum()), str((~truth).sum()))
        for (name, page), truth in place.truth.items()
        if page is None
    }


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_ends_it_in_one_line(place, tmp_path):
    labels = tmp_path / "labels"
    shutil.copytree(place.folder / "data" / "labels", labels)
    Image.fromarray(np.zeros((47, 33), dtype=np.uint8)).save(labels / "grey.png")
    ended = evaluate(place, tmp_path / "out", labels=labels)
    assert ended.status == 1
    assert "grey.png is 33 wide and 47 high" in ended.error and "Traceback" not in ended.err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_data_set_without_labels_is_refused(place, tmp_path):
    shutil.copytree(place.folder / "data" / "images", tmp_path / "flat")
    ended = evaluate(place, tmp_path / "out", dataset_dir=tmp_path / "flat")
    assert ended.status == 1
    assert f"no image of {tmp_path / 'flat'} has a label" in ended.error and "--labels" in ended.error
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_said_at_once(place, tmp_path):
    (tmp_path / "out").write_text("in the way")
    ended = evaluate(place, tmp_path / "out")
    assert ended.status == 1
    assert f"cannot write to {tmp_path / 'out'}" in ended.error
    assert "fitting" not in ended.out and (tmp_path / "out").read_text() == "in the way"


def test_items_with_a_label_are_kept_in_order():
    items = [{"name": "a", "label": "a.png"}, {"name": "b"}, {"name": "c", "label": None}, {"name": "d", "label": "d"}]
    assert labelled(items, "here") == [items[0], items[3]]
    with pytest.raises(KWTLError, match="no image of here has a label"):
        labelled(items[1:3], "here")


# --- the saver by itself ----------------------------------------------------------------------------------------------


def evaluation(folder, masks, **options):
    """Run a saver over {name: (prediction, label)} as an evaluator would."""
    items = []
    for name, (_, label) in masks.items():
        folder.mkdir(exist_ok=True)
        path = folder / f"label_{len(items)}.png"
        Image.fromarray(label).save(path)
        items.append({"name": name, "page": None, "label": str(path)})

    def predict(engine, item):
        prediction, label = masks[item["name"]]
        engine.state.batch = item | {"label": torch.from_numpy(label)[None]}
        return {"pred": torch.from_numpy(prediction)[None, None]}

    saver = EvaluationSaver(items, folder / "out", **options)
    engine = Engine(predict)
    engine.logger.disabled = True
    saver.attach(engine)
    engine.run(items)
    return engine.state.metrics


def test_an_evaluation_that_fails_leaves_the_one_before_whole(tmp_path):
    evaluation(tmp_path, random_masks(3))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    masks = random_masks(4, shape=(6, 6))
    masks["images/3.png"] = masks["images/3.png"][0], np.zeros((3, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="shape"):
        evaluation(tmp_path, masks, overwrite=True)
    assert {path: path.read_bytes() for path in before} == before
    evaluation(tmp_path, random_masks(2), overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "errors", "evaluation.csv", "evaluation.json", "tensorboard"
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "out" / "errors").iterdir()} == {"0.png", "1.png"}


def random_masks(count, shape=(5, 9)):
    rng = np.random.default_rng(1)
    masks = {}
    for number in range(count):
        label = (rng.random(shape) < 0.5).astype(np.uint8)
        wrong = rng.permutation(label.size) < 2 * number
        masks[f"images/{number}.png"] = (label ^ wrong.reshape(shape), label)
    return masks


def test_the_twelve_worst_are_drawn(tmp_path):
    masks = random_masks(15)
    evaluation(tmp_path, masks)
    ious = {name: overlap(*pair).iou for name, pair in masks.items()}
    worst = sorted(ious, key=lambda name: (ious[name], name))[:12]
    tags = Log(tmp_path / "out" / "tensorboard").tags("images")
    assert [tag.split(" ")[-1] for tag in tags] == worst
    assert len(list((tmp_path / "out" / "errors").iterdir())) == 15


def test_the_figures_are_the_metrics_of_the_engine(tmp_path):
    (prediction, label), *_ = random_masks(4).values()
    metrics = evaluation(tmp_path, {"a.png": (prediction, label)}, tensorboard=False)
    assert metrics["mean_iou"] == metrics["pooled_iou"] == overlap(prediction, label).iou
    assert metrics["images"] == 1 and metrics["std_iou"] == 0


def test_a_new_evaluation_leaves_nothing_of_the_one_before(tmp_path):
    evaluation(tmp_path, random_masks(3))
    (tmp_path / "out" / "errors" / "mine.txt").write_text("a note")
    (tmp_path / "out" / "tensorboard" / "events.out.tfevents.1.other.1.0").write_bytes(b"")
    evaluation(tmp_path, dict(list(random_masks(3).items())[:2]), overwrite=True)
    assert {path.name for path in (tmp_path / "out" / "errors").iterdir()} == {"0.png", "1.png", "mine.txt"}
    log = Log(tmp_path / "out" / "tensorboard")
    assert sorted(tag.split(" ")[-1] for tag in log.tags("images")) == ["images/0.png", "images/1.png"]
    assert log.curve("evaluation/images") == [(0, 2.0)]
    assert (tmp_path / "out" / "tensorboard" / "events.out.tfevents.1.other.1.0").exists(), "is of another stage"
    evaluation(tmp_path, random_masks(1), overwrite=True, overlays=False, tensorboard=False)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {
        "evaluation.csv", "evaluation.json", "mine.txt", "events.out.tfevents.1.other.1.0",
    }  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_name_that_is_no_utf_8_is_evaluated_like_any_other(tmp_path, caplog):
    name = os.fsdecode(b"images/Zellen f\xfcr A.png")  # Latin-1
    caplog.set_level(logging.INFO, logger="monai_kwtl")
    evaluation(tmp_path, {name: random_masks(4)["images/3.png"]})
    with open(tmp_path / "out" / "evaluation.csv", "rb") as file:
        assert file.read().splitlines()[1].startswith(b"images/Zellen f\xfcr A.png,"), "its bytes are kept"
    (tag,) = Log(tmp_path / "out" / "tensorboard").tags("images")
    assert tag.endswith("images/Zellen f\ufffdr A.png")
    assert any(message.endswith("in images/Zellen f\ufffdr A.png") for message in caplog.messages)


def test_an_overlay_has_the_four_colours_of_the_figure():
    prediction, label = np.array([[9, 255, 0, 0]]), np.array([[1.0, 0.0, 0.5, 0.0]])
    assert error_overlay(prediction, label).tolist() == [[[255, 255, 255], [220, 50, 47], [60, 180, 75], [0, 0, 0]]]
