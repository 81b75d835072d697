from __future__ import annotations

import hashlib
import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic import DOMAINS, Look, draw_look, make_demo_pool, make_pool, simulate
from monai_kwtl.synthetic import pools as pools_module
from monai_kwtl.synthetic.cells import Outlines, paint
from monai_kwtl.synthetic.fields import fibrous, smooth_noise

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_synthetic.py"
LOOKS = {
    "fluorescence": Look(radius=10),
    "brightfield": Look(radius=10, bright=False, tissue=True),
    "em": Look(radius=14, coverage=0.1, contrast=0.35, bright=False),
    "phase": Look(radius=10, contrast=0.25),
}


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def signed_difference(image: np.ndarray, mask: np.ndarray) -> float:
    return float(image[mask > 0].mean() - image[mask == 0].mean())


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("size", [(101, 67), (16, 16)])
def test_image_and_mask_have_the_asked_size_and_type(domain, size):
    image, mask = simulate(domain, *size, generator(1), 0.4)
    assert image.shape == mask.shape == size
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}


@pytest.mark.parametrize("domain", DOMAINS)
def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(domain):
    first, again, other = (simulate(domain, 90, 120, generator(s), 0.6) for s in (7, 7, 8))
    assert first[0].tobytes() == again[0].tobytes() and first[1].tobytes() == again[1].tobytes()
    assert first[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_threshold_of_the_clean_image_gives_the_mask_exactly(domain, seed, difficulty):
    look = draw_look(domain, generator(seed))
    look = replace(look, coverage=max(look.coverage, 0.1))
    image, mask = simulate(domain, 151, 203, generator(seed, 1), difficulty, look=look, clean=True)
    cells, ground = image[mask > 0].astype(int), image[mask == 0].astype(int)
    assert cells.size and ground.size
    bright = look.bright if domain in ("phase", "brightfield") else domain == "fluorescence"
    assert cells.min() > ground.max() if bright else cells.max() < ground.min()


@pytest.mark.parametrize("domain", DOMAINS)
def test_clean_image_has_the_cells_of_the_ordinary_one(domain):
    ordinary, clean = (simulate(domain, 96, 140, generator(3), 0.5, look=LOOKS[domain], clean=c) for c in (False, True))
    np.testing.assert_array_equal(ordinary[1], clean[1])
    assert not np.array_equal(ordinary[0], clean[0])


@pytest.mark.parametrize("seed", range(3))
def test_otsu_finds_the_nuclei_of_an_easy_fluorescence_image(seed):
    image, mask = simulate("fluorescence", 200, 260, generator(seed), 0.0, look=Look(radius=14))
    found = image > threshold_otsu(image)
    assert (found & (mask > 0)).sum() / (found | (mask > 0)).sum() > 0.9


@pytest.mark.parametrize("domain", ["fluorescence", "phase", "brightfield"])
def test_mask_is_not_shifted_against_the_image(domain):
    look = replace(LOOKS[domain], clutter=0.5)
    image, mask = simulate(domain, 180, 220, generator(5), 0.1, look=look)
    inner = (slice(4, -4), slice(4, -4))
    score = {
        (dy, dx): abs(signed_difference(np.roll(image, (dy, dx), (0, 1))[inner], mask[inner]))
        for dy in (-2, -1, 0, 1, 2)
        for dx in (-2, -1, 0, 1, 2)
    }
    assert max(score, key=score.get) == (0, 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_contrast_to_noise_falls_with_difficulty(domain):
    def ratio(difficulty: float) -> float:
        pairs = [simulate(domain, 128, 160, generator(seed), difficulty, look=LOOKS[domain]) for seed in range(6)]
        image, mask = (np.stack(pictures) for pictures in zip(*pairs, strict=True))
        return abs(signed_difference(image, mask)) / image[mask == 0].std()

    easy, middle, hard = ratio(0.0), ratio(0.5), ratio(1.0)
    assert easy > middle > hard


@pytest.mark.parametrize("domain", DOMAINS)
def test_cells_have_the_stated_polarity_over_difficulties(domain):
    look = LOOKS[domain]
    for difficulty in (0.0, 0.5, 1.0):
        difference = np.mean(
            [signed_difference(*simulate(domain, 128, 160, generator(s), difficulty, look=look)) for s in range(3)]
        )
        assert (difference > 0) == look.bright


@pytest.mark.parametrize("bright", [True, False])
def test_phase_contrast_has_both_polarities(bright):
    image, mask = simulate("phase", 120, 160, generator(2), 0.2, look=replace(LOOKS["phase"], bright=bright))
    assert (signed_difference(image, mask) > 0) == bright
    assert {draw_look("phase", generator(s)).bright for s in range(20)} == {True, False}


@pytest.mark.parametrize("domain", DOMAINS)
def test_empty_field_has_an_empty_mask_and_a_picture_all_the_same(domain):
    image, mask = simulate(domain, 75, 93, generator(4), 0.5, look=replace(LOOKS[domain], coverage=0.0))
    assert not mask.any()
    assert image.std() > 0


@pytest.mark.parametrize("domain", ["fluorescence", "brightfield", "phase"])
@pytest.mark.parametrize("coverage", [0.08, 0.25])
def test_cells_cover_about_the_wanted_fraction(domain, coverage):
    look = replace(LOOKS[domain], coverage=coverage)
    shares = [simulate(domain, 256, 256, generator(s), 0.3, look=look)[1].mean() / 255 for s in range(4)]
    assert 0.7 * coverage < np.mean(shares) < 1.3 * coverage


def test_clustering_joins_cells():
    def objects_per_area(clustering: float) -> float:
        look = Look(radius=8, coverage=0.15, clustering=clustering)
        masks = [simulate("fluorescence", 256, 256, generator(s), 0.5, look=look)[1] for s in range(4)]
        return sum(ndimage.label(m)[1] for m in masks) / sum((m > 0).sum() for m in masks)

    assert objects_per_area(0.95) < 0.8 * objects_per_area(0.0)


def test_looks_differ_between_seeds():
    looks = [draw_look("fluorescence", generator(s)) for s in range(60)]
    radii = np.array([look.radius for look in looks])
    assert 8 <= radii.min() < 11 and 30 < radii.max() <= 40
    assert max(look.contrast for look in looks) > 2 * min(look.contrast for look in looks)


def test_painted_circle_is_the_circle():
    circle = Outlines(np.array([20.3]), np.array([31.7]), np.zeros(1), np.full((1, 96), 11.0))
    rows, columns = np.mgrid[:41, :59]
    distance = np.hypot(rows - 20.3, columns - 31.7)
    cells = paint(circle, (41, 59))
    # a polygon of 96 corners lies at most 0.006 pixels inside a circle of this size
    assert cells.inside[distance < 10.99].all() and not cells.inside[distance > 11].any()
    expected = np.where(cells.inside, 1 - distance / 11, 0)
    np.testing.assert_allclose(cells.depth, expected, atol=1e-6)


def test_cells_beyond_the_edge_are_cut():
    circle = Outlines(np.array([-3.0]), np.array([9.0]), np.zeros(1), np.full((1, 96), 8.0))
    assert 0 < paint(circle, (20, 19)).inside.sum() < np.pi * 64 / 2
    assert not paint(replace(circle, y=np.array([-30.0])), (20, 19)).inside.any()


@pytest.mark.parametrize("scale", [0.8, 4.0, (1.0, 9.0)])
def test_smooth_noise_is_standardised_and_has_the_asked_correlation(scale):
    field = smooth_noise((256, 300), scale, generator(0))
    assert field.dtype == np.float32 and field.shape == (256, 300)
    assert abs(field.mean()) < 0.3 and 0.7 < field.std() < 1.3
    # white noise after a Gaussian filter of deviation s has correlation exp(-(d / 2 s)^2) at distance d
    for axis, sigma in enumerate(np.broadcast_to(scale, 2)):
        step = max(1, round(float(sigma)))
        a = np.take(field, range(field.shape[axis] - step), axis=axis)
        b = np.take(field, range(step, field.shape[axis]), axis=axis)
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(np.exp(-((step / (2 * sigma)) ** 2)), abs=0.12)


def test_fibres_vary_less_along_their_direction_than_across():
    fibres, direction = fibrous((200, 240), 60, 3, generator(1))
    gy, gx = np.gradient(ndimage.gaussian_filter(fibres, 1))
    along = (gx * np.cos(direction) + gy * np.sin(direction)).std()
    across = (gy * np.cos(direction) - gx * np.sin(direction)).std()
    assert along < 0.6 * across


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fluorescense", 64, 64), "did you mean 'fluorescence'"),
        (("em", 8, 64), "height 8"),
        (("em", 64, 10**6), "width 1000000"),
        (("em", 64, 64.0), "width 64.0"),
        (("em", True, 64), "height True"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(KWTLError, match=words) as info:
        simulate(*arguments, generator(0))
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("difficulty", [-0.1, 1.1, float("nan")])
def test_difficulty_out_of_range_is_refused(difficulty):
    with pytest.raises(KWTLError, match="difficulty"):
        simulate("em", 64, 64, generator(0), difficulty)


@pytest.mark.parametrize("field", [{"radius": 0}, {"coverage": 1.5}, {"contrast": float("nan")}, {"clustering": -1}])
def test_look_out_of_range_is_refused(field):
    with pytest.raises(KWTLError, match=next(iter(field))):
        Look(**field)


@pytest.mark.parametrize("kind", DOMAINS)
def test_pool_has_images_and_masks_of_the_same_names(tmp_path, kind):
    paths = make_pool(tmp_path / "pool", kind, count=3, height=65, width=80, seed=1)
    assert paths == [tmp_path / "pool" / "images" / f"{kind}_{i:02d}.png" for i in range(3)]
    assert [p.name for p in paths] == sorted(p.name for p in (tmp_path / "pool" / "labels").iterdir())
    for path in paths:
        assert read(path).shape == read(tmp_path / "pool" / "labels" / path.name).shape == (65, 80)
    made = json.loads((tmp_path / "pool" / "recipe.json").read_text())["images"]
    assert {image["difficulty"] for image in made} == {0.0, 0.5, 1.0}


def test_pool_is_the_same_for_the_same_seed_only(tmp_path):
    options = {"kind": "phase", "count": 2, "height": 64, "width": 70}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_pool(tmp_path / name, **options, seed=seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a")["images/phase_00.png"] != fingerprint(tmp_path / "c")["images/phase_00.png"]


def test_complete_pool_is_left_alone(tmp_path, monkeypatch):
    first = make_pool(tmp_path, count=2, height=64, width=70)
    before = fingerprint(tmp_path)
    monkeypatch.setattr(pools_module, "simulate", None)
    assert make_pool(tmp_path, count=2, height=64, width=70) == first
    assert fingerprint(tmp_path) == before


def test_pool_of_another_recipe_is_refused(tmp_path):
    make_pool(tmp_path, count=1, height=64, width=70)
    before = fingerprint(tmp_path)
    with pytest.raises(KWTLError, match="another simulated pool"):
        make_pool(tmp_path, count=1, height=64, width=70, seed=1)
    assert fingerprint(tmp_path) == before


def test_pool_with_a_missing_file_is_named(tmp_path):
    make_pool(tmp_path, count=2, height=64, width=70)
    (tmp_path / "labels" / "fluorescence_01.png").unlink()
    with pytest.raises(KWTLError, match="without labels/fluorescence_01.png"):
        make_pool(tmp_path, count=2, height=64, width=70)


@pytest.mark.parametrize("content", ["notes", '{"a": 1}', "[1]", '{"request": 3}', '{"request": {"format": "x"}}', ""])
@pytest.mark.parametrize("name", ["mine.txt", "recipe.json"])
def test_foreign_folder_is_refused_and_left_alone(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(KWTLError, match="not empty and holds no simulated pool"):
        make_pool(tmp_path, count=1, height=64, width=70)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_file_in_place_of_the_folder_or_its_parent_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x")
    for folder in (file, file / "pool"):
        with pytest.raises(KWTLError, match="file"):
            make_pool(folder, count=1, height=64, width=70)
    assert file.read_bytes() == b"x"


def test_empty_and_nested_folders_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        assert all(p.is_file() for p in make_pool(folder, count=1, height=64, width=70))
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["c"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_interrupted_run_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch, stop):
    original, calls = pools_module.simulate, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise stop
        return original(*args, **kwargs)

    monkeypatch.setattr(pools_module, "simulate", stopping)
    with pytest.raises(KWTLError if isinstance(stop, OSError) else stop):
        make_pool(tmp_path / "pool", count=3, height=64, width=70)
    assert list(tmp_path.iterdir()) == []
    assert len(make_pool(tmp_path / "pool", count=3, height=64, width=70)) == 3


def test_killed_process_leaves_no_half_pool(tmp_path):
    code = (
        "import os, signal; from monai_kwtl.synthetic import pools\n"
        "original = pools.simulate\n"
        "def stopping(*a, **k):\n"
        "    os.path.exists(os.environ['SEEN']) and os.kill(os.getpid(), signal.SIGKILL)\n"
        "    open(os.environ['SEEN'], 'w').close()\n"
        "    return original(*a, **k)\n"
        "pools.simulate = stopping\n"
        "pools.make_pool(os.environ['POOL'], count=3, height=64, width=70)\n"
    )
    environment = {**os.environ, "SEEN": str(tmp_path / "seen"), "POOL": str(tmp_path / "pool")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "pool").exists()
    assert len(make_pool(tmp_path / "pool", count=3, height=64, width=70)) == 3


def test_another_process_that_was_quicker_wins(tmp_path, monkeypatch):
    original = pools_module.simulate

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(pools_module, "simulate", original)
        make_pool(tmp_path / "pool", count=1, height=64, width=70)
        return original(*args, **kwargs)

    monkeypatch.setattr(pools_module, "simulate", overtaken)
    assert make_pool(tmp_path / "pool", count=1, height=64, width=70)[0].is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["pool"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"kind": "xray"}, "choose one of"),
        ({"count": 0}, "count 0"),
        ({"seed": -1}, "seed -1"),
        ({"height": 3}, "height 3"),
        ({"count": "4"}, "count '4'"),
    ],
)
def test_bad_pool_options_are_named_before_anything_is_written(tmp_path, option, words):
    with pytest.raises(KWTLError, match=words):
        make_pool(tmp_path / "pool", **option)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_demo_pool_is_mixed_and_made_once(tmp_path):
    paths = make_demo_pool(tmp_path / "pool")
    assert len(paths) == 16
    shares = [read(p.parents[1] / "labels" / p.name).mean() / 255 for p in paths]
    assert min(shares) < 0.02 and max(shares) > 0.2
    assert {read(p).shape for p in paths} == {(512, 640)}
    assert make_demo_pool(tmp_path / "pool") == paths


def test_demo_plan_is_sixteen_images_of_mixed_difficulty(tmp_path, monkeypatch):
    monkeypatch.setattr(pools_module, "simulate", lambda kind, h, w, rng, d, look: (np.zeros((h, w), np.uint8),) * 2)
    make_demo_pool(tmp_path / "pool")
    made = json.loads((tmp_path / "pool" / "recipe.json").read_text())["images"]
    difficulties = [image["difficulty"] for image in made]
    assert len(made) == 16 and min(difficulties) < 0.1 and max(difficulties) > 0.9
    assert sum(image["look"]["clustering"] > 0.8 for image in made) == 3
    assert difficulties != sorted(difficulties)


def test_script_makes_a_pool(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "pool"), "--kind", "em", "--count", "1", "--height", "64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert read(tmp_path / "pool" / "labels" / "em_00.png").shape == (64, 640)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--kind", "xray"), 1, "unknown kind"),
        (("--count", "0"), 1, "count 0"),
        (("--count", "many"), 2, "invalid int value"),
        (("--demo", "--seed", "3"), 2, "takes no other option"),
        (("--colour", "red"), 2, "unrecognized"),
    ],
)
def test_script_fails_in_one_line(tmp_path, capsys, options, status, words):
    main = runpy.run_path(str(SCRIPT))["main"]
    try:
        code = main([str(tmp_path / "pool"), *options])
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    assert (code, shown.out, shown.err.count("\n")) == (status, "", 1)
    assert words in shown.err
    assert not (tmp_path / "pool").exists()
