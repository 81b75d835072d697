"""The bundle as a user meets it.

From any folder, with any kind of image, every option explained and every typo named.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import jsonschema
import nibabel
import numpy as np
import pytest
import tifffile
import torch
from bad_input.cases import make_sound
from PIL import Image
from stage_here import command, random_weights, run
from stage_process import CONFIGS, ROOT

from monai_kwtl.bundle import failures, paths
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks import weights
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.scoring.measures import MEASURES
from monai_kwtl.selection.strategies import STRATEGIES
from monai_kwtl.synthetic import make_pool

STAGES = ("select", "inference", "evaluate", "pretext", "train", "meta_train")
SCHEMA = json.loads((ROOT / "monai_kwtl" / "project" / "selection.schema.json").read_text())
QUICK = {"pretext": "skip", "window": 32, "step": 16, "report": "false", "tensorboard": "false", "amp": "false"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder like the repository, with bundles/kwtl and weights that were never trained; and labelled images."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(CONFIGS.parent, folder / "bundles" / "kwtl", ignore=shutil.ignore_patterns("models"))
    (folder / "bundles" / "kwtl" / "models").mkdir()
    random_weights(folder / "bundles" / "kwtl" / "models" / "model.pt")
    make_sound(folder)
    return folder


def options_of(config):
    """The options of a stage: what stands above its first part, and is not found out by itself."""
    names = list(config)
    return [name for name in names[names.index("imports") + 1 : names.index("paths")] if name != "bundle_root"]


# --- where it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["root", "inside", "alone"])
def test_it_runs_from_the_root_from_inside_and_copied_elsewhere(where, home, tmp_path, monkeypatch):
    inside = home / "bundles" / "kwtl"
    if where == "alone":
        inside = tmp_path / "a copy of the bundle"
        shutil.copytree(home / "bundles" / "kwtl", inside)
    here, config = (home, "bundles/kwtl/configs") if where == "root" else (inside, "configs")
    monkeypatch.chdir(here)
    shared = {"dataset_dir": home / "my_images", "device": "cpu"}
    out = tmp_path / "out"
    ended = command("--config_file", f"{config}/select.json", output_dir=out, **shared, **QUICK)
    assert ended.status == 0, ended.err
    ended = command("--config_file", f"{config}/inference.json", output_dir=tmp_path / "masks", **shared)
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3
    # the weights are those of the bundle that runs, and where it stands changes nothing
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        options = shared | QUICK | {"ckpt": inside / "models" / "model.pt", "output_dir": tmp_path / "other"}
        assert run("select", **options).status == 0
    assert (out / "selection.json").read_bytes() == (tmp_path / "other" / "selection.json").read_bytes()


def test_results_go_below_output_of_the_current_folder_and_are_named_after_the_data_set(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ckpt = home / "bundles" / "kwtl" / "models" / "model.pt"
    ended = run("select", dataset_dir=home / "my_images", ckpt=ckpt, device="cpu", **QUICK)
    assert ended.status == 0, ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    assert (tmp_path / "output" / "my_images" / "select" / "selection.json").is_file()
    assert "selection: output/my_images/select/selection.json" in ended.out


def test_without_any_argument_a_pool_is_made_and_used(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"count": 2, "height": 64, "width": 80, "seed": 1}  # the demo pool takes ten seconds
    monkeypatch.setattr(paths, "make_demo_pool", lambda folder: make_pool(folder, "fluorescence", **small))
    arguments = ["--config_file", home / "bundles/kwtl/configs/select.json", "--args_file", ROOT / "configs/smoke.json"]
    made = {}
    for overwrite in ("false", "true"):
        ended = command(*arguments, budget_windows=2, device="cpu", overwrite=overwrite)
        assert ended.status == 0, ended.err
        pool = tmp_path / "output" / "demo" / "pool"
        made[overwrite] = {path: path.stat().st_mtime_ns for path in pool.rglob("*.png")}
    assert len(made["false"]) == 4
    assert made["false"] == made["true"], "the pool is made once"
    results = {path.name for path in (tmp_path / "output" / "demo" / "select").iterdir()}
    assert {"selection.json", "selection.csv", "scores.csv", "report.html", "what_to_label.png"} <= results
    ended = command(*arguments, budget_windows=2, device="cpu", output_dir="elsewhere")
    assert ended.status == 0, ended.err
    assert (tmp_path / "elsewhere" / "pool" / "images").is_dir()


@pytest.mark.slow
def test_the_bare_command_of_the_card_ranks_the_demo_pool(home, tmp_path):
    shutil.copytree(home / "bundles" / "kwtl", tmp_path / "kwtl")
    config = tmp_path / "kwtl" / "configs" / "select.json"
    text = config.read_text()
    assert '"pretext_steps": 400' in text
    config.write_text(text.replace('"pretext_steps": 400', '"pretext_steps": 8'))  # which take minutes
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    bare = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/select.json"]
    ended = subprocess.run(bare, cwd=tmp_path / "kwtl", env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "kwtl" / "output" / "demo"
    assert len(list((folder / "pool" / "images").iterdir())) == 16
    document = json.loads((folder / "select" / "selection.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["budget"] == {"shots": 1}
    assert (folder / "select" / "pretext" / "model.pt").is_file(), "the bundle's own weights are tuned first"
    assert (folder / "select" / "report.html").stat().st_size > 10_000
    assert "Traceback" not in ended.stderr


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_is_explained_and_nothing_else_is(stage):
    config = json.loads((CONFIGS / f"{stage}.json").read_text())
    explained = dict(config["_desc_"])
    assert len(explained.pop("stage")) > 20
    assert sorted(options_of(config)) == sorted(explained)
    assert all(isinstance(words, str) and len(words) > 5 for words in explained.values())
    assert all(not isinstance(config[name], (dict, list)) for name in explained), "options are flat"


def test_every_option_is_used():
    for stage in STAGES:
        config = json.loads((CONFIGS / f"{stage}.json").read_text())
        parts = json.dumps({name: value for name, value in config.items() if name != "_desc_"})
        unused = [name for name in options_of(config) if not re.search(rf"@{name}\b", parts)]
        assert not unused, f"{stage}: {unused}"


def _expressions(part):
    if isinstance(part, str):
        return [part] if part.startswith("$") else []
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [found for value in values for found in _expressions(value)]


@pytest.mark.parametrize("stage", ["select", "inference", "evaluate"])
def test_a_config_is_blocks_with_named_arguments_and_hardly_any_code(stage):
    config = json.loads((CONFIGS / f"{stage}.json").read_text())
    found = _expressions(config)
    assert len(found) <= 20 and sum(map(len, found)) <= 900
    assert config["run"] == ["$@evaluator.run()"]
    assert all(isinstance(handler, str) and handler[1:] in config for handler in config["handlers"])


@pytest.mark.parametrize(("name", "values"), [("strategy", STRATEGIES), ("measure", MEASURES)])
def test_the_explanation_names_every_choice(name, values):
    words = json.loads((CONFIGS / "select.json").read_text())["_desc_"][name]
    assert [value for value in values if not re.search(rf"\b{value}\b", words)] == []


def test_a_option_of_one_name_has_one_default_in_the_stages_that_share_a_command_line():
    """Where the same option means the same; what a stage needs otherwise is listed here."""
    own = {"output_dir", "ckpt", "steps", "epochs", "checkpoint_every", "most_images", "crop", "learning_rate"}
    found: dict[str, set[str]] = {}
    for stage in STAGES:
        config = json.loads((CONFIGS / f"{stage}.json").read_text())
        for name in options_of(config):
            found.setdefault(name, set()).add(repr(config[name]))
    assert {name for name, defaults in found.items() if len(defaults) > 1} <= own


@pytest.mark.parametrize("stage", STAGES)
def test_every_misspelt_option_is_named(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    explained = json.loads((CONFIGS / f"{stage}.json").read_text())["_desc_"]
    name = max(set(explained) - {"stage"}, key=len)
    ended = run(stage, **{f"{name[:2]}{name[3:]}": 1})
    assert ended.status == 1
    assert ended.err == f"error: unknown option --{name[:2]}{name[3:]}; did you mean --{name}?\n"
    assert list(tmp_path.iterdir()) == []


# --- overlays ---------------------------------------------------------------------------------------------------------

OVERLAYS = [path for path in sorted((ROOT / "configs").glob("*.json")) if path.name != "smoke.json"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_of_data_sets_suit_every_stage_that_reads_images(overlay, home, tmp_path):
    ckpt = home / "bundles" / "kwtl" / "models" / "model.pt"
    shared = {"dataset_dir": home / "my_images", "ckpt": ckpt, "device": "cpu", "amp": "false"}
    options = {
        "select": QUICK,
        "inference": {},
        "pretext": {"steps": 1, "crop": 32, "batch_size": 2, "tensorboard": "false"},
    }
    for stage, own in options.items():
        output = tmp_path / stage
        arguments = ["--config_file", CONFIGS / f"{stage}.json", "--args_file", overlay]
        ended = command(*arguments, **shared | own, output_dir=output)
        assert ended.status == 0, ended.err
    given = json.loads(overlay.read_text())
    made = json.loads((tmp_path / "select" / "selection.json").read_text())["created_with"]
    assert made["psi"] == given.get("psi", 1.3)
    assert made["step"] == 16, "the command line has the last word"
    note = json.loads((tmp_path / "pretext" / "model.json").read_text())
    assert {name: note[name] for name in given if name in note} == {name: given[name] for name in given if name in note}
    assert note["polarity"] == given["polarity"]


def test_a_misspelt_key_of_an_overlay_is_named(home, tmp_path):
    (tmp_path / "overlay.json").write_text(json.dumps({"dataset_dir": str(home / "my_images"), "fracton": 0.2}))
    ended = command("--config_file", CONFIGS / "pretext.json", "--args_file", tmp_path / "overlay.json")
    assert (ended.status, ended.err) == (1, "error: unknown option --fracton; did you mean --fraction?\n")


def test_a_option_of_another_stage_is_refused_on_the_command_line(home):
    ended = run("pretext", dataset_dir=home / "my_images", psi=1.6)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("error: unknown option --psi; ")


# --- images of every kind ---------------------------------------------------------------------------------------------


def _save_nifti(path, slices):
    """Slices of rows and columns as (x, y, z)."""
    nibabel.save(nibabel.Nifti1Image(np.stack([plane.T for plane in slices], axis=2), np.eye(4)), path)


def _scaled(values):
    """8 bit by the image's own range, in float64."""
    values = values.astype(np.float64)
    return np.rint((values - values.min()) * 255 / (values.max() - values.min())).astype(np.uint8)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A pool with an image of every kind, and for each mask what the network should see, made without the package."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(7)
    grey = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((41, 67), (70, 33), (5, 90), (1, 1))]
    expected = {}
    for name, pixels in zip(("wide", "high", "flat", "dot"), grey, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
        expected[f"{name}.png"] = pixels
    colour = rng.integers(0, 256, (37, 51, 3), dtype=np.uint8)
    Image.fromarray(colour).save(folder / "colour.bmp")
    expected["colour.png"] = np.array(Image.fromarray(colour).convert("L"))
    deep = rng.integers(300, 4000, (45, 38), dtype=np.uint16)
    tifffile.imwrite(folder / "deep.tif", deep)
    expected["deep.png"] = _scaled(deep)
    real = rng.normal(0, 3, (39, 44)).astype(np.float32)
    tifffile.imwrite(folder / "real.tiff", real)
    expected["real.png"] = _scaled(real)
    pages = rng.integers(0, 256, (2, 34, 50), dtype=np.uint8)
    tifffile.imwrite(folder / "pages.tif", pages, photometric="minisblack")
    _save_nifti(folder / "volume.nii.gz", [page.astype(np.int16) for page in pages])
    for number, page in enumerate(pages):
        expected[f"pages_p{number}.png"] = page
        expected[f"volume_p{number}.png"] = _scaled(page)
    return folder, expected


def test_inference_writes_a_mask_of_the_same_size_for_every_kind_of_image(mixed, tmp_path):
    folder, expected = mixed
    ckpt = random_weights(tmp_path / "weights.pt", seed=3)
    options = {"dataset_dir": folder, "output_dir": tmp_path / "masks", "ckpt": ckpt, "device": "cpu", "amp": "false"}
    ended = run("inference", **options, adapt_norm="false")
    assert (ended.status, ended.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == sorted(expected)
    network = FCRN(spatial_dims=2, in_channels=1, out_channels=1).eval()
    network.load_state_dict(torch.load(ckpt, weights_only=True))
    values = set()
    for name, pixels in expected.items():
        image = Image.open(tmp_path / "masks" / name)
        mask = np.asarray(image)
        assert (image.mode, mask.shape) == ("L", pixels.shape), name
        values |= set(np.unique(mask))
        with torch.no_grad():
            logits = network(torch.from_numpy(pixels)[None, None].float() / 127.5 - 1.0)[0, 0].numpy()
        wrong = (mask == 255) != (logits >= 0)
        assert np.abs(logits[wrong]).max(initial=0.0) < 1e-3, name
    assert values == {0, 255}


def test_select_takes_every_kind_of_image(mixed, tmp_path):
    folder, expected = mixed
    ckpt = random_weights(tmp_path / "weights.pt")
    options = {"dataset_dir": folder, "output_dir": tmp_path / "out", "ckpt": ckpt, "device": "cpu"}
    ended = run("select", **options, **QUICK | {"report": "true"}, budget_windows=12)
    assert (ended.status, ended.err) == (0, "")
    document = json.loads((tmp_path / "out" / "selection.json").read_text())
    jsonschema.validate(document, SCHEMA)
    for region in document["regions"]:
        stem = region["image"].split(".")[0] + (f"_p{region['page']}" if "page" in region else "")
        height, width = expected[f"{stem}.png"].shape
        assert region["x"] + region["width"] <= width and region["y"] + region["height"] <= height
        assert (region["width"], region["height"]) == (min(32, width), min(32, height))
    with open(tmp_path / "out" / "scores.csv", newline="") as stream:
        scored = {(row["image"], row["page"]) for row in csv.DictReader(stream)}
    assert len(scored) == len(expected)


# --- what the configs call --------------------------------------------------------------------------------------------


def _say(error, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    failures.install_error_hook()
    sys.excepthook(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def _caused_by(cause):
    """As MONAI wraps what goes wrong while it builds a part of a config."""
    error = RuntimeError("Failed to instantiate")
    error.__cause__ = ValueError("evaluating the expression")
    error.__cause__.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KWTLError("what, where, what to do"), "what, where, what to do"),
        (KWTLError("two\n  lines"), "two lines"),
        (
            FileNotFoundError(2, "No such file or directory", "there/a.png"),
            "there/a.png: No such file or directory; fix that, or choose another place",
        ),
        (
            OSError(28, "No space left on device"),
            "cannot write (No space left on device): make room, or choose another --output_dir",
        ),
        (
            MemoryError(),
            "the memory does not suffice; use a smaller --tile, in training a smaller --crop or --batch_size",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "the memory does not suffice; use a smaller --tile, in training a smaller --crop or --batch_size",
        ),
        (
            RuntimeError("Caught KWTLError in worker 0.\nTraceback\nmonai_kwtl.errors.KWTLError: said in a worker.\n"),
            "said in a worker.",
        ),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(error, line, capsys, monkeypatch):
    monkeypatch.delenv("KWTL_TRACEBACK", raising=False)
    assert _say(error, capsys, monkeypatch) == f"error: {line}\n"
    assert _say(_caused_by(error), capsys, monkeypatch) == f"error: {line}\n"


def test_a_bug_keeps_its_traceback_and_so_does_all_where_that_is_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("KWTL_TRACEBACK", raising=False)
    assert "ZeroDivisionError: bug" in _say(_caused_by(ZeroDivisionError("bug")), capsys, monkeypatch)
    monkeypatch.setenv("KWTL_TRACEBACK", "1")
    said = _say(_caused_by(KWTLError("bad input")), capsys, monkeypatch)
    assert "KWTLError: bad input" in said and "evaluating the expression" in said


def test_an_interrupted_stage_says_so(capsys, monkeypatch):
    assert _say(KeyboardInterrupt(), capsys, monkeypatch).strip() == "stopped; nothing of yours was changed."


def test_results_are_not_put_among_the_images(home, tmp_path):
    assert paths.stage_paths(str(home / "my_images"), str(tmp_path), "select").output == tmp_path
    assert paths.stage_paths(str(home / "my_images"), str(home / "my_images"), "select").output == home / "my_images"
    (tmp_path / "link").symlink_to(home / "my_images" / "images")
    for folder in (home / "my_images" / "images", tmp_path / "link"):
        with pytest.raises(KWTLError, match="is the folder of the images themselves; choose another --output_dir"):
            paths.stage_paths(str(home / "my_images" / "images"), str(folder), "inference")
        with pytest.raises(KWTLError, match="themselves"):
            paths.stage_paths(str(home / "my_images"), str(folder), "inference")


def test_values_that_are_not_finite_are_found():
    state = {"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")]), "c": torch.ones(1, dtype=torch.long)}
    assert weights.not_finite(state) == ["b"]
    assert weights.not_finite({"a": torch.tensor(float("nan"))}) == ["a"]
