"""Scores come back as they were kept, and whatever is wrong with a file on disk, it counts as not there."""

from __future__ import annotations

import multiprocessing
import pickle
import zipfile

import numpy as np
import pytest

from monai_kwtl.scoring import store as store_module
from monai_kwtl.scoring.store import ScoreStore
from monai_kwtl.windows.grid import WindowGrid

SETTINGS = {"measure": "soft", "psi": 1.3, "weights": "abc"}


def item(height=40, width=53, page=None, sha256="ab" * 32):
    return {"image": "a.png", "name": "images/a.png", "page": page, "sha256": sha256, "height": height, "width": width}


def scored(height=40, width=53, window=16, step=7, seed=0, exact=False):
    grid = WindowGrid(height, width, window, step)
    rng = np.random.default_rng(seed)
    score = rng.exponential(size=(height, width)).astype(np.float32)
    probability = rng.random((height, width)).astype(np.float32)
    blocks = grid.block_sums(score)
    return {
        "grid": grid,
        "window_scores": grid.window_means(blocks),
        "foreground": grid.window_means(grid.block_sums(probability)),
        "cells": None if exact else blocks,
        "score": score,
        "probability": probability,
    }


def store(folder, settings=SETTINGS, window=16, step=7):
    return ScoreStore(folder, settings, window, step)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("page", [None, 0, 3])
def test_round_trip(tmp_path, exact, page):
    kept, output = store(tmp_path), scored(exact=exact)
    assert kept.get(item(page=page)) is None
    kept.put(item(page=page), output)
    back = store(tmp_path).get(item(page=page))
    assert (back.name, back.page, back.sha256, back.grid) == ("images/a.png", page, "ab" * 32, output["grid"])
    for name in ("window_scores", "foreground"):
        assert getattr(back, name).dtype == np.float64
        assert np.array_equal(getattr(back, name), output[name])  # bit for bit: a second run selects the same
    assert back.blocks is None if exact else np.array_equal(back.blocks, output["cells"])


def test_maps_come_back_in_256_steps(tmp_path):
    kept, output = store(tmp_path), scored()
    kept.put(item(), output)
    score, probability = kept.score(item()), kept.probability(item())
    assert score.dtype == probability.dtype == np.float32
    top = output["score"].max()
    assert np.abs(score - output["score"]).max() <= top / 510 * 1.001
    assert np.abs(probability - output["probability"]).max() <= 1 / 510 * 1.001
    assert score.max() == pytest.approx(top)


def test_a_map_of_zeros_comes_back_as_zeros(tmp_path):
    kept, output = store(tmp_path), scored()
    output["score"][:] = 0
    kept.put(item(), output)
    assert kept.score(item()).max() == 0


def test_maps_of_very_large_images_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_LARGEST_PICTURE", 40 * 53 - 1)
    kept = store(tmp_path)
    kept.put(item(), scored())
    assert kept.get(item()) is not None
    assert kept.score(item()) is None and kept.probability(item()) is None


def test_pages_and_files_are_kept_apart(tmp_path):
    kept, items = store(tmp_path), [item(), item(page=0), item(page=1), item(page=10), item(sha256="cd" * 32)]
    for seed, entry in enumerate(items):
        kept.put(entry, scored(seed=seed))
    assert len({kept.path(entry) for entry in items}) == len(items)
    for seed, entry in enumerate(items):
        assert np.array_equal(kept.get(entry).window_scores, scored(seed=seed)["window_scores"])


def test_the_same_file_under_another_name_is_known(tmp_path):
    kept = store(tmp_path)
    kept.put(item(), scored())
    assert kept.get(item() | {"name": "moved.png"}).name == "moved.png"


@pytest.mark.parametrize(
    "other",
    [
        {"settings": SETTINGS | {"psi": 1.6}},
        {"settings": SETTINGS | {"weights": "abd"}},
        {"settings": SETTINGS | {"seed": 0}},
        {"window": 17},
        {"step": 8},
    ],
    ids=["psi", "weights", "one more", "window", "step"],
)
def test_other_settings_have_another_folder(tmp_path, other):
    kept = store(tmp_path)
    kept.put(item(), scored())
    assert store(tmp_path, **other).folder != kept.folder
    assert store(tmp_path, **other).get(item()) is None
    assert store(tmp_path, dict(reversed(SETTINGS.items()))).folder == kept.folder


def test_nothing_is_made_before_something_is_put(tmp_path):
    kept = store(tmp_path / "cache")
    assert kept.get(item()) is None and kept.score(item()) is None and kept.probability(item()) is None
    assert not (tmp_path / "cache").exists()
    kept.put(item(), scored())
    assert [p.name for p in kept.folder.iterdir()] == [kept.path(item()).name]


def test_scores_for_another_size_count_as_missing(tmp_path):
    kept = store(tmp_path)
    kept.put(item(), scored())
    assert kept.get(item(height=400)) is None
    assert kept.get(item(width=60)) is None


def read_all(kept):
    return kept.get(item()), kept.score(item()), kept.probability(item())


def test_a_truncated_file_counts_as_missing(tmp_path):
    kept = store(tmp_path)
    kept.put(item(), scored())
    path = kept.path(item())
    whole = path.read_bytes()
    for length in [0, 1, 4, *range(10, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert read_all(kept) == (None, None, None)
    kept.put(item(), scored())
    assert path.read_bytes() == whole


def test_flipped_bits_are_never_taken_for_scores(tmp_path):
    kept, output = store(tmp_path), scored(12, 13, window=8, step=5)
    small = item(12, 13)
    small_store = store(tmp_path, window=8, step=5)
    small_store.put(small, output)
    path = small_store.path(small)
    whole = path.read_bytes()
    lost = 0
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 0x41
        path.write_bytes(flipped)
        back = small_store.get(small)
        small_store.score(small), small_store.probability(small)
        lost += back is None
        if back is not None:
            assert np.array_equal(back.window_scores, output["window_scores"])
            assert np.array_equal(back.foreground, output["foreground"])
    assert lost > len(whole) / 30
    assert kept.folder != small_store.folder


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00"])
def test_anything_else_counts_as_missing(tmp_path, content):
    kept = store(tmp_path)
    kept.folder.mkdir(parents=True)
    kept.path(item()).write_bytes(content)
    assert read_all(kept) == (None, None, None)


def test_a_folder_in_its_place_counts_as_missing(tmp_path):
    kept = store(tmp_path)
    kept.path(item()).mkdir(parents=True)
    assert read_all(kept) == (None, None, None)


class Bomb:
    def __reduce__(self):
        return open, ("exploded.txt", "w")


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = store(tmp_path)
    kept.put(item(), scored())
    path = kept.path(item())
    path.write_bytes(pickle.dumps(Bomb()))
    assert read_all(kept) == (None, None, None)
    objects = np.empty(len(scored()["grid"]), dtype=object)
    objects[:] = [Bomb()] * len(objects)
    np.savez(path, window_scores=objects, foreground=objects, score=objects, score_top=objects, probability=objects)
    assert read_all(kept) == (None, None, None)
    assert not (tmp_path / "exploded.txt").exists()


def test_a_file_that_lacks_an_array_counts_as_missing(tmp_path):
    kept, output = store(tmp_path), scored()
    kept.folder.mkdir(parents=True)
    np.savez(kept.path(item()), window_scores=output["window_scores"], score=np.zeros((40, 53), np.uint8))
    assert read_all(kept) == (None, None, None)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    kept = store(tmp_path)
    kept.put(item(), scored())

    def disk_full(stream, **arrays):
        stream.write(b"PK")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(OSError, match="No space left"):
        kept.put(item(), scored(seed=1))
    assert [p.name for p in kept.folder.iterdir()] == [kept.path(item()).name]
    assert np.array_equal(kept.get(item()).window_scores, scored()["window_scores"])


def test_files_hold_plain_arrays(tmp_path):
    kept = store(tmp_path)
    kept.put(item(), scored())
    with zipfile.ZipFile(kept.path(item())) as archive:
        assert archive.testzip() is None
        names = {"window_scores", "foreground", "cells", "score", "score_top", "probability"}
        assert {name.removesuffix(".npy") for name in archive.namelist()} == names


def _write_and_read(folder, barrier, seed, wrong):
    kept, mine = store(folder), scored(seed=seed)
    known = [scored(seed=s)["window_scores"] for s in (0, 1)]
    barrier.wait(timeout=60)
    for _ in range(30):
        kept.put(item(), mine)
        back = kept.get(item())
        if back is None or not any(np.array_equal(back.window_scores, scores) for scores in known):
            wrong.value += 1


def test_two_processes_write_the_same_entry(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, wrong = context.Barrier(2), context.Value("i", 0)
    writers = [context.Process(target=_write_and_read, args=(tmp_path, barrier, seed, wrong)) for seed in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert wrong.value == 0
    assert len(list(store(tmp_path).folder.iterdir())) == 1
