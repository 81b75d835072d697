"""The sidecar keeps what it was given: across processes, kills and restarts."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pytest

from monai_kwtl.errors import KWTLError
from monai_kwtl.label.state.database import Scoring, Sidecar
from monai_kwtl.windows.box import Box
from monai_kwtl.windows.grid import WindowGrid

SCORING = Scoring("kwtl", "m" * 64, "s" * 16, 16, 7)


def item(number: int = 0, page: int | None = None, height: int = 40, width: int = 53) -> dict:
    return {"name": f"{number}.png", "page": page, "sha256": f"{number:064x}", "height": height, "width": width}


def scored(number: int = 0, height: int = 40, width: int = 53) -> dict:
    rng = np.random.default_rng(number)
    score, probability = rng.random((2, height, width), dtype=np.float32)
    grid = WindowGrid(height, width, 16, 7)
    blocks = grid.block_sums(score)
    means = grid.window_means(blocks)
    foreground = grid.window_means(grid.block_sums(probability))
    return {
        "window_scores": means, "foreground": foreground, "cells": blocks, "score": score, "probability": probability
    }  # fmt: skip


def same(sidecar: Sidecar, number: int) -> bool:
    scores, expected = sidecar.get(SCORING, item(number)), scored(number)
    return scores is not None and all(
        np.array_equal(getattr(scores, n), expected[m])
        for n, m in (("window_scores", "window_scores"), ("blocks", "cells"))
    )


def test_scores_come_back_bit_for_bit_and_the_map_in_256_steps(tmp_path):
    Sidecar(tmp_path / "s.sqlite").put(SCORING, item(), scored())
    sidecar = Sidecar(tmp_path / "s.sqlite")
    assert same(sidecar, 0)
    score = sidecar.score_map(SCORING, item())
    assert np.abs(score - scored()["score"]).max() <= scored()["score"].max() / 510 * 1.001


@pytest.mark.parametrize("part", ["method", "model", "settings"])
def test_other_methods_models_and_settings_have_their_own_scores(tmp_path, part):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    sidecar.put(SCORING, item(), scored())
    other = SCORING._replace(**{part: "other"})
    assert sidecar.get(other, item()) is None
    assert sidecar.unscored(other, [item()]) == [item()]
    sidecar.put(other, item(), scored(5))
    assert same(sidecar, 0)


def test_pages_are_kept_apart_and_names_do_not_matter(tmp_path):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    for page in (None, 0, 1):
        sidecar.put(SCORING, item(page=page), scored(page or 7))
    assert np.array_equal(sidecar.get(SCORING, item(page=1)).window_scores, scored(1)["window_scores"])
    assert sidecar.get(SCORING, item() | {"name": "moved.png"}).name == "moved.png"


def test_scores_of_another_size_count_as_missing(tmp_path):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    sidecar.put(SCORING, item(), scored())
    assert sidecar.get(SCORING, item(height=400)) is None


def test_only_the_kinds_begun_last_are_kept(tmp_path):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    for number in range(4):
        sidecar.put(SCORING._replace(model=str(number)), item(), scored())
    sidecar.put(SCORING._replace(method="entropy"), item(), scored())
    sidecar.forget("kwtl", keep=2)
    assert [scoring.model for scoring in sidecar.scorings("kwtl")] == ["3", "2"]
    assert sidecar.get(SCORING._replace(model="1"), item()) is None
    assert sidecar.get(SCORING._replace(method="entropy"), item()) is not None


def test_known_regions_are_replaced_image_by_image(tmp_path):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    sidecar.set_known(item(0), [Box(1, 2, 3, 4), Box(0, 0, 5, 5), Box(1, 2, 3, 4)])
    sidecar.set_known(item(1, page=2), [Box(0, 0, 9, 9)])
    sidecar.set_known(item(0), [Box(7, 7, 7, 7)])
    assert Sidecar(sidecar.path).known() == {
        (item(0)["sha256"], None): [(7, 7, 7, 7)],
        (item(1)["sha256"], 2): [(0, 0, 9, 9)],
    }


def test_leases_run_out_and_stay_on_record(tmp_path):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    with sidecar.leasing() as leases:
        leases.grant("alice", "patch", item(), Box(0, 0, 9, 9), 3600)
        leases.grant("bob", "patch", item(), Box(9, 0, 9, 9), -1)
        assert [lease.client for lease in leases.live()] == ["alice"]
    assert [lease.client for lease in sidecar.leases(item())] == ["alice", "bob"]
    with sidecar.leasing() as leases:  # the same region again, to another client
        leases.grant("bob", "patch", item(), Box(0, 0, 9, 9), 3600)
    assert [lease.client for lease in sidecar.leases(item())] == ["bob", "bob"]
    sidecar.end_leases([lease.id for lease in sidecar.leases(item())])
    assert sidecar.leases(item()) == []


def test_an_error_while_leasing_grants_nothing(tmp_path):
    sidecar = Sidecar(tmp_path / "s.sqlite")
    with pytest.raises(RuntimeError), sidecar.leasing() as leases:
        leases.grant("alice", "patch", item(), Box(0, 0, 9, 9), 3600)
        raise RuntimeError
    assert sidecar.leases(item()) == []


def test_a_file_that_is_no_database_is_refused_in_one_line_and_left_alone(tmp_path):
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"these are notes of the user, and no database at all" * 99)
    before = path.read_bytes()
    with pytest.raises(KWTLError, match=r"s\.sqlite cannot be used"):
        Sidecar(path).put(SCORING, item(), scored())
    assert path.read_bytes() == before


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    Sidecar(tmp_path / "s.sqlite").put(SCORING, item(), scored())
    database = sqlite3.connect(tmp_path / "s.sqlite")
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(KWTLError, match="newer version"):
        Sidecar(tmp_path / "s.sqlite").scorings("kwtl")


# --- real processes ---------------------------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("fork")


def _write(path, numbers, start=None) -> None:
    if start is not None:
        start.wait()
    sidecar = Sidecar(path)
    for number in numbers:
        sidecar.put(SCORING, item(number), scored(number))
        sidecar.set_known(item(number), [Box(number, 0, 5, 5)])
    os._exit(0)


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    path, start = tmp_path / "s.sqlite", SPAWN.Barrier(3)
    # the file does not exist yet: they also make it at the same time
    writers = [SPAWN.Process(target=_write, args=(path, range(first, 120, 3), start)) for first in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    sidecar = Sidecar(path)
    assert all(same(sidecar, number) for number in range(120))
    assert len(sidecar.known()) == 120 and len(sidecar.scorings("kwtl")) == 1


def _write_and_tell(path, pipe) -> None:
    sidecar = Sidecar(path)
    for number in range(100_000):
        sidecar.put(SCORING, item(number), scored(number))
        pipe.send(number)


@pytest.mark.parametrize("kill_after", [1, 7, 30])
def test_what_was_written_survives_kill_9(tmp_path, kill_after):
    path = tmp_path / "s.sqlite"
    near, far = SPAWN.Pipe(duplex=False)
    writer = SPAWN.Process(target=_write_and_tell, args=(path, far))
    writer.start()
    written = [near.recv() for _ in range(kill_after)]
    time.sleep(0.003)  # into the middle of the next one
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(30)
    assert writer.exitcode == -signal.SIGKILL
    while near.poll():
        written.append(near.recv())
    sidecar = Sidecar(path)
    assert all(same(sidecar, number) for number in written)
    sidecar.put(SCORING, item(10**6), scored(10**6))  # no lock is left behind
    assert same(sidecar, 10**6)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()
    near.close(), far.close()


def _lease(path, client, start, results) -> None:
    start.wait()
    sidecar = Sidecar(path)
    mine = []
    for _ in range(10):
        with sidecar.leasing() as leases:
            taken = {lease.image for lease in leases.live()}
            free = next(number for number in range(100) if item(number)["sha256"] not in taken)
            leases.grant(client, "image", item(free), Box(0, 0, 53, 40), 3600)
            mine.append(free)
    results.put(mine)


def test_a_new_file_that_another_process_holds_is_waited_for(tmp_path):
    holder = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    holder.execute("CREATE TABLE other (number)")
    timer = threading.Timer(0.3, lambda: holder.execute("COMMIT"))
    timer.start()
    with Sidecar(tmp_path / "s.sqlite", wait=30.0).leasing():
        pass
    timer.join()
    holder.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "s.sqlite")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_no_two_processes_are_given_the_same_image(tmp_path):
    start, results = SPAWN.Barrier(3), SPAWN.Queue()
    clients = [SPAWN.Process(target=_lease, args=(tmp_path / "s.sqlite", c, start, results)) for c in ("a", "b", "c")]
    for client in clients:
        client.start()
    given = [number for _ in clients for number in results.get(timeout=60)]
    for client in clients:
        client.join(30)
    assert sorted(given) == list(range(30))
