"""Export and import as a user runs them: what is written, kept, refused, and what training makes of it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from stage_here import random_weights, run

from monai_kwtl.cli.main import main
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Annotation, resolve
from monai_kwtl.exchange.handout import TOOLS, export_regions, import_regions
from monai_kwtl.project.mask_index import read_record
from monai_kwtl.project.support_set import read_support

SPOTS = [(8, 8, 9), (10, 30, 9), (20, 20, 9)]  # row, column, side of a square in each region, not those of the truth


@pytest.fixture
def work(trip, tmp_path):
    """Gives an exported folder for a tool."""

    def make(tool, predictions=None):
        export_regions(trip.selection, tool, tmp_path / "work", trip.dataset, predictions)
        return tmp_path / "work"

    return make


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def save_masks(trip, folder, true_mask, ranks=(1, 2, 3)):
    for region, name in zip(trip.regions, trip.names, strict=True):
        if region.rank in ranks:
            Image.fromarray(true_mask(region).astype(np.uint8) * 255).save(folder / name)


def test_png_crops_have_an_index(trip, work):
    folder = work("png")
    rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == trip.names
    for row, region in zip(rows, trip.regions, strict=True):
        assert (row["image"], int(row["x"]), int(row["y"])) == (region.image, region.x, region.y)
        whole = np.array(Image.open(trip.dataset / region.image))
        box = whole[region.y : region.y + region.height, region.x : region.x + region.width]
        assert np.array_equal(np.array(Image.open(folder / "images" / row["file"])), box)
    assert not list((folder / "masks").iterdir()) and not (folder / "start").exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_crops_are_taken_from_the_selection_where_no_images_are_given(trip, tool, tmp_path, work):
    export_regions(trip.selection.parent, tool, tmp_path / "other")
    given = files(work(tool))
    assert {k: v for k, v in files(tmp_path / "other").items() if k != "export.json"} == {
        k: v for k, v in given.items() if k != "export.json"
    }


def test_masks_that_are_there_are_finished_and_the_rest_stays_unknown(trip, work, true_mask, tmp_path):
    folder = work("png")
    save_masks(trip, folder / "masks", true_mask, ranks=(1, 3))
    done = import_regions(folder, "png", tmp_path / "masks")
    assert done.finished == [1, 3] and done.written == 2 and done.replaced == 0
    support = read_support(trip.pool, tmp_path / "masks")
    assert [entry["name"] for entry in support] == [trip.regions[0].image, trip.regions[2].image]
    for entry, region in zip(support, (trip.regions[0], trip.regions[2]), strict=True):
        known = np.zeros(entry["label"].shape[1:], dtype=bool)
        known[region.y : region.y + region.height, region.x : region.x + region.width] = True
        assert np.array_equal(entry["known"][0], known)
        assert np.array_equal(entry["label"][0] > 0, trip.truth[region.image] & known)
        assert [r.rank for r in entry["regions"]] == [region.rank]


@pytest.mark.parametrize("tool", TOOLS)
def test_true_masks_handed_in_come_back_as_they_were(trip, tool, work, true_mask, tmp_path, hand_in):
    (tmp_path / "truth").mkdir()
    save_masks(trip, tmp_path / "truth", true_mask)
    folder = work(tool, predictions=tmp_path / "truth")
    hand_in[tool](folder)
    done = import_regions(folder, tool, tmp_path / "masks")
    assert done.finished == [1, 2, 3]
    for record, region in zip(read_record(tmp_path / "masks"), trip.regions, strict=True):
        assert record.region == region and record.source == tool
        mask = np.array(Image.open(tmp_path / "masks" / record.mask))
        assert np.array_equal(mask, true_mask(region) * np.uint8(255))


@pytest.mark.parametrize("tool", TOOLS)
def test_predictions_alone_are_not_finished(trip, tool, work, true_mask, tmp_path):
    (tmp_path / "truth").mkdir()
    save_masks(trip, tmp_path / "truth", true_mask)
    folder = work(tool, predictions=tmp_path / "truth")
    with pytest.raises(KWTLError, match="is finished"):
        import_regions(folder, tool, tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_napari_numbers_become_foreground(trip, work, tmp_path):
    folder = work("napari")
    region, name = trip.regions[0], trip.names[0][:-4] + ".tif"
    start = tifffile.imread(folder / "start" / name)
    assert start.dtype == np.int32 and start.shape == (region.height, region.width) and not start.any()
    labels = start.copy()
    labels[3:9, 3:9], labels[3:9, 9:15] = 4, 7
    tifffile.imwrite(folder / "labels" / name, labels)
    assert import_regions(folder, "napari", tmp_path / "masks").objects == 2
    assert np.array_equal(np.array(Image.open(tmp_path / "masks" / trip.names[0])) > 0, labels > 0)


def test_an_export_takes_no_folder_that_holds_something(trip, work, tmp_path):
    folder = work("png")
    before = files(folder)
    with pytest.raises(KWTLError, match="already holds something"):
        export_regions(trip.selection, "png", folder, trip.dataset)
    assert files(folder) == before
    (tmp_path / "empty").mkdir()
    assert export_regions(trip.selection, "png", tmp_path / "empty", trip.dataset) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_masks_are_replaced_only_when_told_and_kept(trip, work, true_mask, tmp_path):
    folder, masks = work("png"), tmp_path / "masks"
    save_masks(trip, folder / "masks", true_mask)
    import_regions(folder, "png", masks)
    before = files(masks)
    assert import_regions(folder, "png", masks).written == 0  # the same again changes nothing
    assert files(masks) == before
    Image.fromarray(~true_mask(trip.regions[1]) * np.uint8(255)).save(folder / "masks" / trip.names[1])
    with pytest.raises(KWTLError, match="other masks of 1 of these regions, such as .*--force"):
        import_regions(folder, "png", masks)
    assert files(masks) == before
    done = import_regions(folder, "png", masks, force=True)
    assert (done.written, done.replaced) == (1, 1)
    (kept,) = (masks / "replaced").iterdir()
    assert kept.read_bytes() == before[trip.names[1]]
    assert np.array_equal(np.array(Image.open(masks / trip.names[1])) > 0, ~true_mask(trip.regions[1]))


def test_a_mask_of_ones_own_is_not_lost(trip, work, true_mask, tmp_path):
    folder, masks = work("png"), tmp_path / "masks"
    save_masks(trip, folder / "masks", true_mask)
    masks.mkdir()
    own = masks / f"{trip.names[0][:-4]}.bmp"
    Image.fromarray(np.zeros((33, 40), dtype=np.uint8)).save(own)
    with pytest.raises(KWTLError, match="--force"):
        import_regions(folder, "png", masks)
    assert [path.name for path in masks.iterdir()] == [own.name]
    content = own.read_bytes()
    import_regions(folder, "png", masks, force=True)
    assert [path.read_bytes() for path in (masks / "replaced").iterdir()] == [content]
    assert len(read_support(trip.pool, masks)) == 2


def test_rounds_add_up_in_one_folder(trip, work, true_mask, tmp_path):
    folder, masks = work("png"), tmp_path / "masks"
    save_masks(trip, folder / "masks", true_mask)
    import_regions(folder, "png", masks)
    document = json.loads(trip.selection.read_text())
    document["regions"] = [
        document["regions"][0] | {"image": trip.pool[1]["name"], "image_sha256": trip.pool[1]["sha256"]}
    ]
    (tmp_path / "second.json").write_text(json.dumps(document))
    export_regions(tmp_path / "second.json", "png", tmp_path / "more", trip.dataset)
    (name,) = (path.name for path in (tmp_path / "more" / "images").iterdir())
    shutil.copy(tmp_path / "more" / "images" / name, tmp_path / "more" / "masks" / name)
    import_regions(tmp_path / "more", "png", masks)
    records = read_record(masks)
    assert len(records) == 4 and len({record.selection_sha256 for record in records}) == 2
    assert len(read_support(trip.pool, masks)) == 3


def annotation(rank, value, time, source="a", finished=True):
    return Annotation(rank, np.array([[value, True, False]]), 1, finished, source, time)


def test_conflicts_follow_the_rule():
    both = [annotation(1, True, 2.0, "b"), annotation(1, False, 3.0, "a"), annotation(2, True, 1.0)]
    chosen, notes = resolve(both, "newest")
    assert chosen[1].source == "a" and not chosen[1].mask[0, 0] and len(notes) == 1 and "rank 1" in notes[0]
    assert resolve(both, "union")[0][1].mask.tolist() == [[True, True, False]]
    with pytest.raises(KWTLError, match="rank 1 has 2 annotations that differ, in a and b|in b and a"):
        resolve(both, "error")
    tie = [annotation(1, True, 2.0, "b"), annotation(1, False, 2.0, "a")]
    assert resolve(tie, "newest")[0][1].source == "b" == resolve(tie[::-1], "newest")[0][1].source
    same = [annotation(1, True, 2.0, "b"), annotation(1, True, 3.0, "a")]
    assert resolve(same, "error")[1] == []
    unfinished = [annotation(1, True, 2.0, "b"), annotation(1, False, 3.0, "a", finished=False)]
    assert resolve(unfinished, "error")[0][1].source == "b"
    with pytest.raises(KWTLError, match="newest, union, error"):
        resolve([], "oldest")


def test_two_annotators_of_one_region_by_time_of_their_files(trip, work, true_mask, tmp_path, capsys):
    folder = work("png")
    for annotator, time in (("anna", 2_000_000), ("ben", 1_000_000)):
        (folder / "masks" / annotator).mkdir()
        mask = true_mask(trip.regions[0]) if annotator == "anna" else np.ones((33, 40), dtype=bool)
        path = folder / "masks" / annotator / trip.names[0]
        Image.fromarray(mask * np.uint8(255)).save(path)
        os.utime(path, (time, time))
    assert main(["import", str(folder), "--from", "png", "--output", str(tmp_path / "masks")]) == 0
    assert "rank 1 has 2 annotations that differ" in capsys.readouterr().out
    found = np.array(Image.open(tmp_path / "masks" / trip.names[0])) > 0
    assert np.array_equal(found, true_mask(trip.regions[0]))


def test_a_mask_of_another_size_is_refused(trip, work, tmp_path):
    folder = work("png")
    Image.fromarray(np.zeros((40, 33), dtype=np.uint8)).save(folder / "masks" / trip.names[0])
    with pytest.raises(KWTLError, match="is 33 wide and 40 high, but the region of rank 1 is 40 wide and 33 high"):
        import_regions(folder, "png", tmp_path / "masks")


def test_images_that_changed_are_noticed(trip, tmp_path):
    shutil.copytree(trip.dataset, tmp_path / "pool")
    Image.fromarray(np.zeros((65, 90), dtype=np.uint8)).save(tmp_path / "pool" / trip.regions[0].image)
    with pytest.raises(KWTLError, match="has changed since it was selected"):
        export_regions(trip.selection, "png", tmp_path / "work", tmp_path / "pool")


def test_the_commands_say_what_comes_next(trip, true_mask, tmp_path, capsys):
    folder = tmp_path / "work"
    assert main(["export", str(trip.selection), "--to", "png", "--output", str(folder)]) == 0
    assert "3 regions are in" in capsys.readouterr().out
    save_masks(trip, folder / "masks", true_mask)
    assert main(["import", str(folder), "--from", "png", "--output", str(tmp_path / "masks")]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 regions are finished" in said and f"--labels {tmp_path / 'masks'}" in said


@pytest.mark.parametrize(
    ("given", "message"), [({"tool": "paint"}, "--to must be"), ({"predictions": "x"}, "needs --dataset_dir")]
)
def test_bad_requests_are_refused(trip, tmp_path, given, message):
    with pytest.raises(KWTLError, match=message):
        export_regions(trip.selection, **{"tool": "png", "output": tmp_path / "work"} | given)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_predictions_of_a_network_are_those_of_the_inference_stage(trip, tmp_path):
    weights = random_weights(tmp_path / "model.pt", seed=4)
    ended = run("inference", dataset_dir=trip.dataset, output_dir=tmp_path / "whole", ckpt=weights)
    assert ended.status == 0, ended.err
    export_regions(trip.selection, "png", tmp_path / "work", trip.dataset, predictions=weights)
    export_regions(trip.selection, "png", tmp_path / "again", trip.dataset, predictions=tmp_path / "whole")
    filled = 0
    for region, name in zip(trip.regions, trip.names, strict=True):
        whole = np.array(Image.open(tmp_path / "whole" / f"{Path(region.image).stem}.png"))
        expected = whole[region.y : region.y + region.height, region.x : region.x + region.width]
        filled += int((expected > 0).sum())
        for folder in ("work", "again"):
            assert np.array_equal(np.array(Image.open(tmp_path / folder / "start" / name)), expected)
    assert 0 < filled < sum(region.width * region.height for region in trip.regions)


def test_a_folder_that_predicts_nothing_of_a_region_is_refused(trip, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(KWTLError, match="has no mask of the region of rank 1"):
        export_regions(trip.selection, "png", tmp_path / "work", trip.dataset, predictions=tmp_path / "none")


@pytest.mark.parametrize("rescale", ["x", [1], {"a": 2}, [5, 1], 10**400])
def test_a_selection_with_a_strange_grey_range_is_refused(trip, tmp_path, rescale):
    document = json.loads(trip.selection.read_text())
    document["created_with"] = {"rescale": rescale}
    (tmp_path / "selection.json").write_text(json.dumps(document))
    with pytest.raises(KWTLError):
        export_regions(tmp_path / "selection.json", "png", tmp_path / "work", trip.dataset)
    assert not (tmp_path / "work").exists()
