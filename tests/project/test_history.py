"""Rounds of labelling: what project.json says, what the next selection leaves out, and that no mask is looked at."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from referencing import Registry
from stage_here import random_weights, run
from stage_process import Death
from stage_process import run as in_process

from monai_kwtl.cli.main import main
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.handout import export_regions, import_regions
from monai_kwtl.project import project_file
from monai_kwtl.project.history import curve, mask_results
from monai_kwtl.project.mask_index import MaskRecord, read_record, write_record
from monai_kwtl.project.next_round import excluded_regions, predicting_weights, scoring_weights
from monai_kwtl.project.project_file import read_project, update_project
from monai_kwtl.project.selection_file import read_selection
from monai_kwtl.report.rounds import rounds_picture
from monai_kwtl.selection.budget import Budget
from monai_kwtl.selection.regions import Region
from monai_kwtl.selection.select import cover, select_windows
from monai_kwtl.selection.strategies import FEATURE_STRATEGIES, STRATEGIES
from monai_kwtl.synthetic import make_pool
from monai_kwtl.utils.hashing import file_sha256
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"pretext": "skip", "window": 32, "step": 16, "report": "false", "tensorboard": "false"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A pool of six images whose true masks lie elsewhere, weights, and the current folder."""
    monkeypatch.chdir(tmp_path)
    make_pool("images", "fluorescence", count=6, height=65, width=90, seed=1)
    os.rename("images/labels", "truth")
    board = (np.add.outer(np.arange(65) // 9, np.arange(90) // 9) % 2).astype(np.uint8) * 255
    for path in Path("truth").iterdir():  # foreground in every region
        Image.fromarray(board).save(path)
    random_weights(tmp_path / "start.pt")
    return SimpleNamespace(folder=tmp_path, pool=load_pool("images"), dataset=Path("images"))


def select(**options):
    return run("select", dataset_dir="images", **QUICK | options)


def label(selection, masks, ranks=None):
    """Label regions with the true masks, by export and import."""
    work = f"{masks}_work_{len(list(Path('.').iterdir()))}"
    export_regions(selection, "png", work, "images", predictions="truth")
    for path in sorted(Path(work, "start").iterdir()):
        if ranks is None or int(path.name[:3]) in ranks:
            os.rename(path, Path(work, "masks", path.name))
    assert main(["import", work, "--from", "png", "--output", masks]) == 0


def boxes(selection):
    regions = read_selection(selection)["regions"]
    return [(r.image, r.x, r.y, r.width, r.height) for r in regions]


def overlap(one, other):
    (name, x, y, w, h), (name2, x2, y2, w2, h2) = one, other
    return name == name2 and x < x2 + w2 and x2 < x + w and y < y2 + h2 and y2 < y + h


def schema_holds(path="images/project.json"):
    folder = ROOT / "monai_kwtl" / "project"
    schemas = {path.name: json.loads(path.read_text()) for path in folder.glob("*.schema.json")}
    registry = Registry().with_contents(schemas.items())
    jsonschema.validate(json.loads(Path(path).read_text()), schemas["project.schema.json"], registry=registry)


def test_two_rounds_as_a_user_runs_them(place, capsys):
    first = select(ckpt="start.pt", budget_windows=6, strategy="stratified_random")
    assert first.status == 0, first.err
    selection = Path("output/images/select/selection.json")
    label(selection, "masks", ranks=(1, 2, 3, 4, 5))
    options = {"steps": 3, "validate_every": 1, "crop": 32, "batch_size": 2, "tensorboard": "false", "ckpt": "start.pt"}
    trained = run("train", dataset_dir="images", labels="masks", **options)
    assert trained.status == 0, trained.err
    assert "support set: 5 images" in trained.out
    schema_holds()
    (entry,) = read_project("images")
    assert entry["masks"]["regions"] == 5 and entry["selection"]["windows"] == 6
    assert entry["model"]["labelled_images"] == 5 and entry["model"]["held_out_images"] == 1
    note = json.loads(Path("output/images/train/model.json").read_text())
    assert entry["model"]["held_out_iou"] == note["held_out_iou"] and entry["model"]["sha256"] == note["sha256"]
    second = select(labels="masks", budget_windows=4, report="true")
    assert second.status == 0, second.err
    assert "left out: 5 labelled regions, 1 assigned and not labelled yet" in second.out
    assert "the model of round 1 scores: output/images/train/model.pt" in second.out
    created = json.loads(Path("output/images/select_2/selection.json").read_text())["created_with"]
    assert created["model_sha256"] == note["sha256"] and created["left_out"] == 6
    before, now = boxes(selection), boxes("output/images/select_2/selection.json")
    assert now and not any(overlap(one, other) for one in before for other in now)
    page = Path("output/images/select_2/report.html").read_text()
    assert 'id="rounds"' in page and f"{note['held_out_iou']:.3f}" in page
    assert 'id="rounds"' not in page.replace('id="rounds"', "", 1)
    capsys.readouterr()
    assert main(["status", "images"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and "5 of 6" in said[1] and f"{note['held_out_iou']:.3f} on 1 of 5" in said[1]
    assert said[3] == "next: label the regions of output/images/select_2/selection.json (kwtl export, kwtl import)"
    label("output/images/select_2/selection.json", "masks")
    again = run("train", dataset_dir="images", labels="masks", **options)
    assert again.status == 0, again.err
    assert [entry["model"]["path"] for entry in read_project("images")] == [
        "../output/images/train/model.pt",
        "../output/images/train_2/model.pt",
    ]


def test_no_pixel_of_a_mask_is_read_to_choose(place, rng):
    assert select(ckpt="start.pt", budget_windows=3).status == 0
    label("output/images/select/selection.json", "masks")
    options = {"ckpt": "start.pt", "labels": "masks", "budget_windows": 3}
    assert select(**options, output_dir="clean").status == 0
    clean = Path("clean/selection.json").read_bytes()
    for path in Path("masks").glob("*.png"):
        path.write_bytes(rng.bytes(50))
    ended = select(**options, output_dir="clean", overwrite="true")  # the former one is not assigned by that
    assert ended.status == 0, ended.err
    assert Path("clean/selection.json").read_bytes() == clean
    other = select(**options, output_dir="other")
    assert other.status == 0 and "3 assigned and not labelled yet" in other.out
    assert not set(boxes("other")) & set(boxes("clean"))


def test_without_labels_nothing_is_left_out(place):
    assert select(ckpt="start.pt", budget_windows=3, output_dir="a").status == 0
    assert select(ckpt="start.pt", budget_windows=3, output_dir="b").status == 0
    assert Path("a/selection.json").read_bytes() == Path("b/selection.json").read_bytes()
    assert len(read_project("images")) == 1  # the same selection is the same round


def test_project_false_writes_and_reads_nothing(place):
    assert select(ckpt="start.pt", budget_windows=3, project="false").status == 0
    assert not Path("images/project.json").exists()


def test_a_selection_written_anew_replaces_its_round_until_it_is_labelled(place):
    for windows in (2, 3):
        assert select(ckpt="start.pt", budget_windows=windows, overwrite="true").status == 0
    assert [entry["selection"]["windows"] for entry in read_project("images")] == [3]
    label("output/images/select/selection.json", "masks")
    assert select(ckpt="start.pt", budget_windows=2, overwrite="true").status == 0
    assert [entry["selection"]["windows"] for entry in read_project("images")] == [3, 2]


def test_a_read_only_folder_is_said_and_does_no_harm(place):
    mode = Path("images").stat().st_mode
    Path("images").chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        ended = select(ckpt="start.pt", budget_windows=2)
    finally:
        Path("images").chmod(mode)
    assert ended.status == 0, ended.err
    early = ended.out.index("project.json cannot be written (the folder is read-only): this round will not be noted")
    assert early < ended.out.index("scoring images")
    assert "project.json cannot be written (the folder is read-only): this round is not noted there" in ended.out
    assert not Path("images/project.json").exists()


def test_a_broken_project_is_kept_and_said(place):
    Path("images/project.json").write_text('{"format": "kwtl-project/1", "rounds": [{}]}')
    ended = select(ckpt="start.pt", budget_windows=2)
    assert ended.status == 0, ended.err
    assert "this round is not noted: images/project.json: rounds[0].round is missing" in ended.out
    assert Path("images/project.json").read_text() == '{"format": "kwtl-project/1", "rounds": [{}]}'


def selection_entry():
    counts = dict.fromkeys(("windows", "images", "unique_pixels"), 0)
    return {"path": "s.json", "sha256": "0" * 64, "time": "t", "strategy": "x", **counts, "regions": []}


def test_two_writers_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(project_file, "PATIENCE", 300.0)  # on a busy machine too
    entry = {"selection": selection_entry(), "masks": None, "model": None}
    threads = [
        threading.Thread(target=lambda: [update_project(tmp_path, lambda rounds: [*rounds, entry]) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each["round"] for each in read_project(tmp_path)] == list(range(1, 41))
    schema_holds(tmp_path / "project.json")


def region(image, x, y, width, height, page=None, sha256="0" * 64):
    return Region(1, image, page, sha256, x, y, width, height, 0.0)


@st.composite
def pools(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    images, regions = [], []
    for index in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(9, 40)), draw(st.integers(9, 40))
        grid = WindowGrid(height, width, 12, 5)
        values = rng.integers(0, 1000, (height, width)).astype(np.float64)
        blocks = grid.block_sums(values)
        means, foreground = grid.window_means(blocks), rng.random(len(grid))
        scores = ImageScores(
            f"{index}.png", None, "0" * 64, grid, means, blocks, foreground,
            foreground_scores=means * foreground, features=rng.normal(size=(len(grid), 4)),
        )  # fmt: skip
        images.append((scores, values))
        for _ in range(draw(st.integers(0, 2))):
            x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            regions.append(
                region(f"{index}.png", x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
            )
    return images, regions


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pools(), st.sampled_from(sorted(STRATEGIES)), st.integers(1, 30), st.booleans())
def test_what_is_taken_is_left_out_by_every_strategy(pool, strategy, budget, by_pixels):
    images, regions = pool
    covered = {scores.name: np.zeros(values.shape, dtype=bool) for scores, values in images}
    for r in regions:
        covered[r.image][r.y : r.y + r.height, r.x : r.x + r.width] = True
    told = [cover(scores, regions) for scores, _ in images]
    for scores in told:
        height, width = scores.grid.size
        inside = covered[scores.name]
        for y, x, free in zip(scores.grid.y, scores.grid.x, scores.free, strict=True):
            assert free == (not inside[y : y + height, x : x + width].any())
    total = sum(len(scores.grid) for scores, _ in images)
    area = sum(values.size for _, values in images)
    smallest = min(scores.grid.size[0] * scores.grid.size[1] for scores, _ in images)
    asked = Budget(pixels=min(area, smallest + 20 * budget)) if by_pixels else Budget(windows=min(budget, total))
    free = sum(int(scores.free.sum()) for scores in told)
    try:
        chosen = select_windows(told, strategy, asked, seed=3)
    except KWTLError as error:
        assert "every window overlaps" in str(error) and regions
        assert strategy == "coverage" or by_pixels or free == 0
        return
    new = 0
    for image, window in chosen:
        scores = told[image]
        y, x = int(scores.grid.y[window]), int(scores.grid.x[window])
        inside = covered[scores.name][y : y + scores.grid.size[0], x : x + scores.grid.size[1]]
        assert (~inside).any() if strategy == "coverage" else True
        assert strategy == "coverage" or scores.free[window]
        new += int((~inside).sum())
        if strategy == "coverage" or by_pixels:
            inside[...] = True
    if by_pixels:
        assert new <= asked.pixels
    elif strategy in ("power", "two_thirds", *FEATURE_STRATEGIES):  # they leave out windows that add nothing
        assert 0 < len(chosen) <= min(asked.windows, free)
    elif strategy != "coverage":
        assert len(chosen) == min(asked.windows, free)
    if not regions:
        plain = select_windows([scores for scores, _ in images], strategy, asked, seed=3)
        assert chosen == plain


def test_coverage_takes_what_is_left_beside_a_labelled_region():
    grid = WindowGrid(12, 24, 12, 4)
    values = np.ones((12, 24))
    values[:, :12] = 9.0
    blocks = grid.block_sums(values)
    scores = ImageScores("a", None, "0" * 64, grid, grid.window_means(blocks), blocks)
    (first,) = select_windows([scores], "coverage", Budget(windows=1))
    assert grid.x[first[1]] == 0
    (next_,) = select_windows([cover(scores, [region("a", 0, 0, 12, 12)])], "coverage", Budget(windows=1))
    assert grid.x[next_[1]] == 12
    part = cover(scores, [region("a", 0, 0, 6, 12)])  # not on the edges of blocks
    assert grid.x[select_windows([part], "coverage", Budget(windows=1))[0][1]] in (4, 8)


def test_whole_images_are_told_by_the_names_of_their_masks(place):
    (place.folder / "whole").mkdir()
    name = Path(place.pool[2]["name"]).stem
    (place.folder / "whole" / f"{name}.png").write_bytes(b"no image")
    (found,) = excluded_regions(place.pool, "whole")
    assert (found.image, found.x, found.y, found.width, found.height) == (place.pool[2]["name"], 0, 0, 90, 65)
    (place.folder / "whole" / f"{name}.png").rename(place.folder / "whole" / "other.png")
    with pytest.raises(KWTLError, match="holds no masks of these images"):
        excluded_regions(place.pool, "whole")


def test_labelled_images_that_changed_are_noticed(place):
    (place.folder / "masks").mkdir()
    changed = region(place.pool[0]["name"], 0, 0, 9, 9, sha256="1" * 64)
    write_record("masks", [MaskRecord("a.png", changed, "2" * 64, "png")])
    with pytest.raises(KWTLError, match="has changed since it was selected"):
        excluded_regions(place.pool, "masks")


def test_all_taken_is_said_before_anything_is_computed(place):
    (place.folder / "whole").mkdir()
    for item in place.pool:
        (place.folder / "whole" / f"{Path(item['name']).stem}.png").touch()
    ended = select(ckpt="start.pt", labels="whole", budget_windows=1)
    assert ended.status == 1 and "every window overlaps a region that is labelled" in ended.err
    assert "scoring" not in ended.out


def test_fewer_than_asked_are_said(place):
    (place.folder / "whole").mkdir()
    for item in place.pool[1:]:
        (place.folder / "whole" / f"{Path(item['name']).stem}.png").touch()
    ended = select(ckpt="start.pt", labels="whole", budget_windows=40, strategy="random")
    assert ended.status == 0, ended.err
    free = len(WindowGrid(65, 90, QUICK["window"], QUICK["step"]))
    assert f"only {free} windows are left" in ended.out and len(boxes("output/images/select_2")) == free


def test_a_model_that_is_gone_does_not_score(place, caplog):
    entry = {"selection": selection_entry(), "masks": None}
    entry["model"] = {"path": "../gone.pt", "sha256": "0" * 64, "time": "", "labelled_images": 1, "held_out_images": 0}
    entry["model"]["held_out_iou"] = None
    assert update_project("images", lambda rounds: [entry])
    assert scoring_weights("masks", "images", "own.pt") == "own.pt"
    assert "is not in images/../gone.pt any more" in caplog.text
    assert scoring_weights(None, "images", "own.pt") == "own.pt"


def test_the_last_model_predicts_where_it_is_there(place, caplog):
    caplog.set_level(logging.INFO, logger="monai_kwtl")
    assert predicting_weights("images", "own.pt") == predicting_weights(None, "own.pt") == "own.pt"
    first, second = ({"selection": selection_entry(), "masks": None} for _ in range(2))
    model = {"time": "", "labelled_images": 1, "held_out_images": 0, "held_out_iou": None}
    first["model"] = {"path": "../start.pt", "sha256": file_sha256("start.pt"), **model}
    second["model"] = {"path": "../gone.pt", "sha256": "0" * 64, **model}
    assert update_project("images", lambda rounds: [first, second])
    assert Path(predicting_weights("images", "own.pt")).resolve() == Path("start.pt").resolve()
    assert caplog.messages[-1] == "the model of round 1 predicts: start.pt"


def test_results_of_masks_are_counted(tmp_path):
    for name, rows in (("a.png", 3), ("b.png", 0)):
        mask = np.zeros((10, 12), dtype=np.uint8)
        mask[:rows] = 255
        Image.fromarray(mask).save(tmp_path / name)
    records = [MaskRecord(n, region("i", x, 0, 12, 10), "0" * 64, "png") for x, n in enumerate(("a.png", "b.png"))]
    assert mask_results(tmp_path, records) == {"source": "png", "regions": 2, "pixels": 240, "foreground": 0.15}
    write_record(tmp_path, records)
    assert read_record(tmp_path) == records


def test_the_curve_counts_all_rounds_up_to_each():
    masks = {"regions": 3, "pixels": 100}
    rounds = [
        {"round": 1, "masks": masks, "model": {"held_out_iou": 0.5}},
        {"round": 2, "masks": masks, "model": None},
        {"round": 3, "masks": None, "model": None},
    ]
    assert curve(rounds) == [
        {"round": 1, "regions": 3, "pixels": 100, "iou": 0.5},
        {"round": 2, "regions": 6, "pixels": 200, "iou": None},
        {"round": 3, "regions": 6, "pixels": 200, "iou": None},
    ]


def test_the_picture_of_the_rounds_has_a_dot_for_each_that_was_measured():
    points = [{"round": n, "regions": 4 * n, "pixels": 9, "iou": None if n == 2 else n / 10} for n in (1, 2, 3)]
    picture = rounds_picture(points)
    assert picture["svg"].count("<circle") == 2 and "IoU 0.300 on held-out images" in picture["summary"]
    assert "No IoU yet" in rounds_picture(points[1:2])["svg"]
    assert rounds_picture([]) is None and rounds_picture([{"round": 1, "regions": 0, "pixels": 0, "iou": None}]) is None


def test_status_without_rounds_says_so(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 0
    assert "no rounds yet" in capsys.readouterr().out
    with pytest.raises(KWTLError, match="there is no folder"):
        main(["status", str(tmp_path / "nowhere")])


def test_import_notes_its_masks_where_it_knows_the_images(place):
    assert select(ckpt="start.pt", budget_windows=2).status == 0
    export_regions("output/images/select", "png", "work")
    for path in Path("work/images").iterdir():
        os.rename(path, Path("work/masks", path.name))
    import_regions("work", "png", "elsewhere")
    assert read_project("images")[0]["masks"] is None
    assert main(["import", "work", "--from", "png", "--output", "masks", "--dataset_dir", "images"]) == 0
    assert read_project("images")[0]["masks"]["regions"] == 2


class Killed(BaseException):
    """The death of the process, as far as anything in it can tell."""


def select_and_die(monkeypatch, where, **options):
    """A selection whose process dies when it calls this function."""
    deaths = []

    def die(*_arguments, **_options):
        deaths.append(where)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"monai_kwtl.{where}", die)
        assert select(**options).status != 0
    assert deaths == [where]


@pytest.mark.parametrize("next_command", ["status", "select", "train"])
def test_a_selection_that_died_before_it_was_noted_is_noted_by_the_next_command(
    place, monkeypatch, capsys, next_command
):
    select_and_die(monkeypatch, "project.history.update_project")
    selection = Path("output/images/select/selection.json")
    assert selection.exists() and read_project("images") == []
    if next_command == "status":
        assert main(["status", "images"]) == 0
        assert "next: label the regions of" in capsys.readouterr().out
    elif next_command == "select":
        excluded_regions(place.pool, None, "images", "elsewhere/selection.json")
    else:
        label(str(selection.parent), "masks")
    (entry,) = read_project("images")
    assert entry["selection"]["sha256"] == file_sha256(selection)
    assert not list(Path("images").glob(".*expected*"))


@pytest.mark.parametrize(
    "where",
    [
        "project.selection_folder._replace",
        "handlers.selection_saver.write_selection",
        "project.history.forget_selection",
    ],
)
def test_a_selection_that_died_anywhere_else_is_made_again_and_noted_once(place, monkeypatch, where):
    select_and_die(monkeypatch, where)
    assert main(["status", "images"]) == 0
    selection = Path("output/images/select/selection.json")
    assert len(read_project("images")) == selection.exists()
    select(overwrite="true")
    (entry,) = read_project("images")
    assert entry["selection"]["sha256"] == file_sha256(selection)


def test_a_former_selection_that_was_not_to_be_noted_is_not_noted_for_a_later_one_that_died(place, monkeypatch):
    select(project="false")
    select_and_die(monkeypatch, "handlers.selection_saver.write_selection", overwrite="true", budget_windows=1)
    assert main(["status", "images"]) == 0 and read_project("images") == []


@pytest.mark.slow  # its short twins are those of simulated deaths
def test_a_selection_that_is_killed_around_any_file_is_noted_once_by_whatever_comes_next(place):
    """Around every second rename of a selection, up to its end: its scores, crops, outlines, tables, note."""
    ended, count = None, 0
    while ended is None or ended.status != 0:
        count += 2
        output, moment = place.folder / f"out{count}", "before" if count % 4 else "after"
        options = QUICK | {"ckpt": place.folder / "start.pt", "budget_windows": 2}
        death = Death(moment, count)
        images = place.folder / f"images{count}"
        shutil.copytree(place.folder / "images", images)
        ended = in_process("select", place.folder / "log", death, dataset_dir=images, output_dir=output, **options)
        assert ended.status in (-9, 0), ended.err
        selection = output / "selection.json"
        assert main(["status", str(images)]) == 0
        assert [e["selection"]["sha256"] for e in read_project(images)] == [
            file_sha256(p) for p in (selection,) if p.exists()
        ]
        assert run("select", dataset_dir=images, output_dir=output, overwrite="true", **options).status == 0
        (entry,) = read_project(images)
        assert entry["selection"]["sha256"] == file_sha256(selection)
    assert count > 10
