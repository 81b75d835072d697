"""The select stage as a user runs it: the same command gives the same bytes, wherever, on any kind of image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from stage_here import random_weights, run

from monai_kwtl.benchmark.experiments.bench import Bench
from monai_kwtl.data import loading
from monai_kwtl.data import pool as pool_module
from monai_kwtl.networks import choice
from monai_kwtl.networks.choice import make_network, network_note
from monai_kwtl.pipeline import scoring
from monai_kwtl.selection.budget import Budget
from monai_kwtl.synthetic import make_pool
from monai_kwtl.utils.hashing import file_sha256

QUICK = {"pretext": "skip", "window": 64, "step": 20, "report": "false", "tensorboard": "false"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pool of 3 images, 100 rows and 130 columns, and weights."""
    folder = tmp_path_factory.mktemp("pipeline")
    make_pool(folder / "pool", "fluorescence", count=3, height=100, width=130, seed=1)
    random_weights(folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def chosen(place):
    """Bytes of the selection that the pool gives."""
    return select(place / "pool", place / "first", place)


def select(dataset, output, place, **options):
    """Run select and return the bytes of its selection.json."""
    ended = run(
        "select", **{"dataset_dir": dataset, "output_dir": output, "ckpt": place / "model.pt"} | QUICK | options
    )
    assert ended.status == 0, ended.err
    return (output / "selection.json").read_bytes()


def regions(selection):
    return [(r["image"], r.get("page"), r["x"], r["y"]) for r in json.loads(selection)["regions"]]


def test_the_same_command_twice_gives_the_same_bytes(place, chosen, tmp_path):
    assert select(place / "pool", tmp_path / "out", place) == chosen
    assert len(json.loads(chosen)["regions"]) == 3


def test_loader_workers_change_nothing(place, chosen, tmp_path):
    assert select(place / "pool", tmp_path / "out", place, num_workers=2) == chosen


def test_names_of_the_folders_change_nothing(place, chosen, tmp_path):
    shutil.copytree(place / "pool", tmp_path / "Zellen von früher")
    assert select(tmp_path / "Zellen von früher", tmp_path / "a folder" / "below", place) == chosen


def _random_masks(labels, rng):
    for path in labels.iterdir():
        mask = (rng.random(np.asarray(Image.open(path)).shape) < 0.5) * np.uint8(255)
        Image.fromarray(mask).save(path)


def _unreadable(labels, rng):
    for path in labels.iterdir():
        path.write_bytes(rng.bytes(300))


def _other_sizes(labels, rng):
    for path in labels.iterdir():
        Image.fromarray(np.zeros((3, 4), dtype=np.uint8)).save(path)


def _other_names(labels, rng):
    for number, path in enumerate(sorted(labels.iterdir())):
        path.rename(labels / f"mask {number}.png")


def _two_of_one(labels, rng):
    path = sorted(labels.iterdir())[0]
    shutil.copy(path, path.with_suffix(".bmp"))


def _none(labels, rng):
    shutil.rmtree(labels)


@pytest.mark.parametrize("poison", [_random_masks, _unreadable, _other_sizes, _other_names, _two_of_one, _none])
def test_labels_of_the_pool_change_nothing(poison, place, chosen, tmp_path, rng):
    shutil.copytree(place / "pool", tmp_path / "pool")
    poison(tmp_path / "pool" / "labels", rng)
    assert select(tmp_path / "pool", tmp_path / "out", place) == chosen


def test_training_from_scratch_knows_no_weights(place, tmp_path):
    options = {"dataset_dir": place / "pool", "steps": 1, "crop": 32, "batch_size": 1, "tensorboard": "false"}
    notes = []
    for number, ckpt in enumerate(("random", "random", place / "model.pt")):
        ended = run("train", output_dir=tmp_path / str(number), ckpt=ckpt, adapt_norm="false", **options)
        assert ended.status == 0, ended.err
        notes.append(json.loads((tmp_path / str(number) / "model.json").read_text()))
    assert notes[0] == notes[1]
    assert [note["start"] for note in notes] == [None, None, file_sha256(place / "model.pt")]
    assert notes[2]["sha256"] == notes[0]["sha256"]  # those of the file are random ones of the same seed


# --- the same through Python and the benchmark ------------------------------------------------------------------------


def in_python(place, output, strategy=None, **options):
    """Score, select and write by the functions of the pipeline, as the bundle is asked to by QUICK."""
    pool = pool_module.load_pool(place / "pool", with_labels=False)
    network = scoring.adapt(choice.load_network(place / "model.pt"), pool).ready()
    scorer = scoring.window_scorer(64, 20, features=True, **options)
    scores = scoring.score(pool, network, scorer)
    found = scoring.select_regions(scores, strategy)
    scoring.write_selection(output, found, pool, scores)
    return pool, scores, found


@pytest.mark.parametrize("strategy", [None, "top_k"])
def test_python_chooses_what_the_bundle_chooses(place, tmp_path, strategy, one_thread):
    given = {} if strategy is None else {"strategy": strategy}
    of_bundle = select(place / "pool", tmp_path / "bundle", place, **given)
    in_python(place, tmp_path / "python", strategy)
    document = json.loads((tmp_path / "python" / "selection.json").read_text())
    assert document["regions"] == json.loads(of_bundle)["regions"]
    tables = [(tmp_path / name / "scores.csv").read_bytes() for name in ("bundle", "python")]
    assert tables[0] == tables[1]


def test_the_benchmark_scores_as_the_bundle_does(place, tmp_path, one_thread):
    pool, scores, _ = in_python(place, tmp_path / "python")
    bench = SimpleNamespace(case=SimpleNamespace(pool=pool), plan=SimpleNamespace(norm_images=32), amp=None)
    settings = {"measure": "soft", "views": None, "psi": None, "weighted": False, "seed": None, "exact": False}
    network = Bench.adapted(bench, choice.load_network(place / "model.pt"), "reestimated")
    found = Bench.score_with(bench, network, settings | {"window": 64, "step": 20})
    for one, other in zip(found, scores, strict=True):
        assert np.array_equal(one.window_scores, other.window_scores) and np.array_equal(one.blocks, other.blocks)
    budget = Budget(windows=4)
    chosen = [scoring.select_regions(each, "coverage", budget) for each in (found, scores)]
    assert chosen[0] == chosen[1]


def test_python_segments_and_measures_as_the_bundle_does(place, tmp_path, one_thread):
    shared = {"dataset_dir": place / "pool", "ckpt": place / "model.pt"}
    assert run("inference", output_dir=tmp_path / "masks", **shared).status == 0
    assert run("evaluate", output_dir=tmp_path / "measured", tensorboard="false", **shared).status == 0
    pool = pool_module.load_pool(place / "pool")
    network = scoring.adapt(choice.load_network(place / "model.pt"), pool).ready()
    for item, mask in scoring.segment(pool, network):
        written = np.asarray(Image.open(tmp_path / "masks" / Path(item["name"]).name))
        assert np.array_equal(mask, written == 255)
    summary = json.loads((tmp_path / "measured" / "evaluation.json").read_text())["summary"]
    ious = [found.iou for found in scoring.evaluate(pool, network)]
    assert np.mean(ious) == pytest.approx(summary["mean_iou"])


def test_another_network_is_scored_and_segmented_by_the_note_beside_its_weights(place, tmp_path):
    unet = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "features": [4, 4, 8, 8, 8, 4], "norm": "instance"}
    network = make_network("monai.networks.nets.BasicUNet", **unet)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    note = {"network": network_note(network), "sha256": file_sha256(tmp_path / "model.pt")}
    (tmp_path / "model.json").write_text(json.dumps(note))
    document = json.loads(select(place / "pool", tmp_path / "out", place, ckpt=tmp_path / "model.pt"))
    made = document["created_with"]
    assert (made["network"], made["strategy"]) == ("BasicUNet", "stratified_random")
    ended = run("inference", dataset_dir=place / "pool", output_dir=tmp_path / "masks", ckpt=tmp_path / "model.pt")
    assert ended.status == 0, ended.err
    pool = pool_module.load_pool(place / "pool", with_labels=False)
    for item, mask in scoring.segment(pool, network.eval(), inferer=scoring.tiles(amp=False)):
        inputs = torch.from_numpy(loading.read_image(item))[None].float() / 127.5 - 1
        with torch.no_grad():
            whole = network(torch.nn.functional.pad(inputs, (7, 7, 6, 6), mode="reflect"))[0, 0, 6:-6, 7:-7].numpy()
        wrong = mask != (whole >= 0)
        assert np.abs(whole[wrong]).max(initial=0.0) < 1e-3
