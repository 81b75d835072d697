"""Splits are seeded, keep groups whole, meet the fraction, and never look at labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from monai_kwtl.data.splits import split_pool_test
from monai_kwtl.errors import KWTLError


class Blind(dict):
    """An item that does not let its label be seen, or listed."""

    def _refuse(self, *_):
        raise AssertionError("looked at a label")

    def __getitem__(self, key):
        return self._refuse() if key == "label" else super().__getitem__(key)

    def get(self, key, default=None):
        return self._refuse() if key == "label" else super().get(key, default)

    values = items = _refuse


def files(count, **more):
    return [Blind(name=f"images/{n:02d}.png", page=None, label=f"labels/{n:02d}.png", **more) for n in range(count)]


def stack(name, pages):
    return [{"name": name, "page": page} for page in range(pages)]


def keys(items):
    return [(item["name"], item["page"]) for item in items]


def patient(item: Mapping) -> str:
    return item["name"].split("/")[-1].split("_")[0]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(20, 0.2, 4), (50, 0.2, 10), (2, 0.9, 1), (3, 0.01, 1)])
def test_the_fraction_is_met_and_nothing_is_lost_or_doubled(count, fraction, expected):
    items = files(count)
    pool, test = split_pool_test(items, fraction)
    assert len(test) == expected
    assert sorted(keys(pool) + keys(test)) == keys(items)
    assert keys(pool) == sorted(keys(pool)) and keys(test) == sorted(keys(test))


def test_a_split_depends_on_the_seed_and_not_on_the_order(rng):
    items = files(20)
    shuffled = [items[i] for i in rng.permutation(20)]
    splits = [keys(split_pool_test(items, 0.2, seed)[1]) for seed in range(10)]
    assert splits == [keys(split_pool_test(shuffled, 0.2, seed)[1]) for seed in range(10)]
    assert len({tuple(split) for split in splits}) == 10


def test_every_image_is_tested_about_equally_often():
    items = files(10)
    tested = [key for seed in range(1000) for key in keys(split_pool_test(items, 0.2, seed)[1])]
    counts = np.unique([name for name, _ in tested], return_counts=True)[1]
    assert len(counts) == 10 and (np.abs(counts - 200) < 5 * np.sqrt(200 * 0.8)).all()


@pytest.mark.parametrize("group", [patient, "patient"])
@pytest.mark.parametrize("blocked", [False, True])
def test_groups_stay_on_one_side(group, blocked):
    items = [
        {"name": f"images/{p:02d}_{n}.png", "page": None, "patient": p} for p in range(1, 12) for n in range(p % 4 + 1)
    ]
    for seed in range(20):
        pool, test = split_pool_test(items, 0.2, seed, group=group, blocked=blocked)
        assert pool and test and not {map(patient, pool)} & {map(patient, test)}
        if not blocked:
            assert abs(len(test) - 0.2 * len(items)) <= 4


def test_pages_of_a_file_stay_together_unless_it_is_the_only_one():
    items = stack("a.tif", 5) + stack("b.tif", 5) + stack("c.tif", 5)
    pool, test = split_pool_test(items, 0.3)
    assert len(test) == 5 and not {i["name"] for i in pool} & {i["name"] for i in test}
    pool, test = split_pool_test(stack("a.tif", 10), 0.3)
    assert len(test) == 3 and len(pool) == 7


def test_blocks_are_neighbours_at_a_drawn_place():
    items = stack("a.tif", 20)
    starts = set()
    for seed in range(60):
        pages = [item["page"] for item in split_pool_test(items, 0.2, seed, blocked=True)[1]]
        assert pages == list(range(pages[0], pages[0] + 4))
        starts.add(pages[0])
    assert min(starts) == 0 and max(starts) == 16 and len(starts) > 8


@pytest.mark.parametrize(
    ("items", "settings", "words"),
    [
        ([], {}, "there is no image"),
        (files(1), {}, "there is one image"),
        (files(4), {"group": lambda item: 1}, "one group of 4 images"),
        (files(4), {"group": "patient"}, "no such key"),
        (files(4), {"test_fraction": 0}, "test_fraction"),
        (files(4), {"test_fraction": 1.0}, "test_fraction"),
        (files(4), {"seed": -1}, "seed"),
        (files(4), {"seed": 0.5}, "seed"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_split_says_why(items, settings, words):
    with pytest.raises(KWTLError, match=words) as error:
        split_pool_test(items, **settings)
    assert "\n" not in str(error.value)
