from __future__ import annotations

import pytest
from made_up import COLUMNS, experiment, grid, write_csv

from monai_kwtl.benchmark.plan.rows import merged_rows, missing_experiments, read_rows, read_times, rows_text
from monai_kwtl.errors import KWTLError


def test_rows_come_in_one_order_whatever_the_order_in_the_file(tmp_path, rng):
    experiments = grid(targets=("ssTEM", "TNBC"), splits=2, methods=("random", "top_k_soft"), budgets=(10, 1))
    experiments += [experiment(protocol="blocked"), experiment(variant="kmeans"), experiment(target="mine")]
    shuffled = [experiments[place] for place in rng.permutation(len(experiments))]
    rows = read_rows(write_csv(tmp_path / "a.csv", experiments))
    assert rows.equals(read_rows(write_csv(tmp_path / "b.csv", shuffled)))
    assert list(rows["target"].unique()) == ["TNBC", "ssTEM", "mine"]
    assert tuple(rows.loc[0, ["method", "budget", "split", "seed"]]) == ("top_k_soft", 1, 0, 0)


def test_values_have_their_types(tmp_path):
    rows = read_rows(write_csv(tmp_path / "r.csv", [experiment(split=3, mean_iou=0.25, budget=2.5)]))
    assert rows[["split", "mean_iou", "budget", "device"]].values.tolist() == [[3, 0.25, 2.5, "cpu"]]


def test_no_budget_is_zero(tmp_path):
    rows = read_rows(write_csv(tmp_path / "r.csv", [experiment(method="full", budget="")]))
    assert rows["budget"].tolist() == [0]


def test_a_header_alone_is_no_rows(tmp_path):
    rows = read_rows(write_csv(tmp_path / "r.csv", []))
    assert rows.empty and list(rows) == COLUMNS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean_iou": "nan"}, "line 3: mean_iou must be a number from 0 to 1, not 'nan'"),
        ({"mean_iou": 41.5}, "line 3: mean_iou must be a number from 0 to 1, not '41.5'"),
        ({"split": "one"}, "line 3: split must be a whole number from 0, not 'one'"),
        ({"method": "topk"}, "line 3: method must be one of top_k_soft"),
        ({"budget_kind": "images"}, "line 3: budget_kind must be one of shots, pixels, not 'images'"),
        ({"target": ""}, "line 3: target must have a value, not ''"),
        ({"unique_pixels": -1}, "line 3: unique_pixels must be a number from 0, not '-1'"),
        ({"split": 0}, "target TNBC, protocol random, split 0, seed 0"),
    ],
)
def test_a_bad_row_is_named_in_one_line(tmp_path, changes, said):
    path = write_csv(tmp_path / "r.csv", [experiment(), experiment(**{"split": 1} | changes)])
    with pytest.raises(KWTLError) as caught:
        read_rows(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"\xff\xfe\x00",
        (",".join(COLUMNS) + "\n1,2,3\n").encode(),
        (",".join(COLUMNS) + "\n" + ",".join(map(str, experiment().values())) + ",1\n").encode(),
        (",".join(COLUMNS) + '\n"' + "x" * 200_000 + '"\n').encode(),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with pytest.raises(KWTLError) as caught:
        read_rows(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(KWTLError, match="cannot be read"):
        read_rows(tmp_path / "none.csv")


def test_times_of_several_files_have_each_cell_once(tmp_path):
    columns = [*COLUMNS[:9], "select_seconds", "train_seconds"]
    keys = [
        {name: made[name] for name in COLUMNS[:9]}
        for made in (experiment(), experiment(split=1), experiment(variant="kmeans"))
    ]
    times = [{**key, "select_seconds": 2 - n, "train_seconds": 10 + n} for n, key in enumerate(keys)]
    paths = [write_csv(tmp_path / f"{n}.csv", some, columns) for n, some in enumerate((times[:2], times[1:]))]
    found = read_times(*paths)[["split", "variant", "select_seconds", "train_seconds"]]
    assert found.values.tolist() == [[0, "base", 2, 10], [1, "base", 1, 11], [0, "kmeans", 0, 12]]
    assert read_times().empty


def test_a_complete_grid_misses_nothing(tmp_path):
    rows = read_rows(write_csv(tmp_path / "r.csv", grid(splits=2, variants=("base", "kmeans"))))
    assert missing_experiments(rows).empty


def test_each_missing_experiment_is_named(tmp_path):
    experiments = grid(targets=("TNBC",), splits=3, methods=("random", "coverage"), budgets=(1, 3), kinds=("shots",))
    gone = [
        n
        for n, made in enumerate(experiments)
        if (made["method"], made["budget"], made["split"]) in {("coverage", 3, 1), ("random", 1, 0), ("full", 0, 2)}
    ]
    kept = [made for n, made in enumerate(experiments) if n not in gone]
    missing = missing_experiments(read_rows(write_csv(tmp_path / "r.csv", kept)))
    assert missing[["method", "budget", "split", "seed"]].values.tolist() == [
        ["coverage", 3, 1, 1],
        ["random", 1, 0, 0],
        ["full", 0, 2, 2],
    ]


def test_several_files_are_put_together_and_their_rows_written_as_they_were(tmp_path):
    first = [experiment(mean_iou=0.4, unique_pixels=1234567), experiment(split=1, mean_iou=0.5)]
    second = [experiment(split=1, mean_iou=0.5), experiment(method="random", mean_iou=0.6)]
    paths = [write_csv(tmp_path / f"{n}.csv", experiments) for n, experiments in enumerate((first, second))]
    rows = merged_rows(paths)
    assert rows[["method", "split", "mean_iou"]].values.tolist() == [
        ["top_k_soft", 0, 0.4], ["top_k_soft", 1, 0.5], ["random", 0, 0.6]
    ]  # fmt: skip
    (tmp_path / "again.csv").write_text(rows_text(rows))
    assert read_rows(tmp_path / "again.csv").equals(rows)
    other = write_csv(tmp_path / "other.csv", [experiment(mean_iou=0.41)])
    with pytest.raises(KWTLError, match="method top_k_soft.* has another result in each"):
        merged_rows([*paths, other])
