"""Splits are distinct, blocked ones keep together what is alike, and targets agree with the overlays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_kwtl.benchmark.plan.targets import TARGETS, Target, make_splits, target_named
from monai_kwtl.data.folders import find_images
from monai_kwtl.errors import KWTLError

ROOT = Path(__file__).resolve().parents[2]


def named(*names):
    return [{"name": f"images/{name}", "page": None} for name in names]


def numbers(part):
    return sorted(int(Path(item["name"]).stem) for item in part)


SLICES = named(*(f"{number}.png" for number in range(20)))  # 2.png comes after 10.png in the alphabet


def test_ten_random_splits_are_distinct_and_complete():
    splits = make_splits(SLICES, "random", 10)
    assert len({tuple(numbers(test)) for _, test in splits}) == 10
    for pool, test in splits:
        assert len(test) == 4 and sorted(numbers(pool) + numbers(test)) == list(range(20))


@pytest.mark.parametrize("protocol", ["random", "blocked"])
def test_a_split_does_not_depend_on_how_many_there_are(protocol):
    assert make_splits(SLICES, protocol, 7)[:3] == make_splits(SLICES[::-1], protocol, 3)


def test_blocked_splits_of_a_stack_test_neighbours_in_the_order_of_numbers():
    for _, test in make_splits(SLICES, "blocked", 10):
        found = numbers(test)
        assert found == list(range(found[0], found[0] + 4))


def test_all_blocks_of_a_stack_can_be_had_and_not_one_more():
    assert len(make_splits(SLICES, "blocked", 17)) == 17
    with pytest.raises(KWTLError, match="only 17 distinct blocked splits of 20 images; ask for fewer"):
        make_splits(SLICES, "blocked", 18)


def test_pages_of_a_stack_are_blocked_in_their_order():
    pages = [{"name": "stack.tif", "page": page} for page in range(15)]
    for _, test in make_splits(pages, "blocked", 5):
        found = [item["page"] for item in test]
        assert found == list(range(found[0], found[0] + 3))


def test_patients_stay_on_one_side_of_a_blocked_split():
    items = named(*(f"{patient:02}_{field}.png" for patient in range(1, 12) for field in range(1, 5)))
    for pool, test in make_splits(items, "blocked", 10, block=TARGETS["TNBC"].block):
        patients = [{Path(item["name"]).name.split("_")[0] for item in part} for part in (pool, test)]
        assert not patients[0] & patients[1] and patients[1]


def test_sites_of_a_well_stay_on_one_side():
    names = [f"SIMCEPImages_{row}{column:02}_C1_F1_s{site:02}_w{stain}.png"
             for row in "AB" for column in range(1, 6) for site in (1, 2) for stain in (1, 2)]  # fmt: skip
    for pool, test in make_splits(named(*names), "blocked", 5, block=TARGETS["B5"].block):
        wells = [{item["name"].split("_")[1] for item in part} for part in (pool, test)]
        assert not wells[0] & wells[1] and len(wells[1]) == 2


def test_a_name_that_does_not_say_its_group_is_named():
    with pytest.raises(KWTLError, match=r"images/a\.png does not match"):
        make_splits(named("a.png", "b.png"), "blocked", 1, block=r"(\d+)_")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(KWTLError, match="unknown protocol 'shuffled'; use random or blocked"):
        make_splits(SLICES, "shuffled", 1)


def test_windows_per_shot_are_those_of_table_1():
    expected = {"TNBC": 100, "EM": 400, "ssTEM": 500, "B5": 100, "B39": 100}
    assert {name: target.windows_per_shot for name, target in TARGETS.items()} == expected


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_targets_agree_with_the_overlays_of_the_stages(name):
    overlay = json.loads((ROOT / "configs" / f"{name.lower()}.json").read_text())
    target = TARGETS[name]
    for option in ("threshold", "fraction", "polarity", "step"):
        assert getattr(target, option) == overlay.get(option), option
    assert target.psi == overlay.get("psi", 1.3)


def test_an_unknown_data_set_has_the_defaults():
    assert target_named("my_cells") == Target()


@pytest.mark.parametrize("name", ["TNBC", "ssTEM", "B39", "B5"])
def test_real_data_sets_have_ten_splits_of_both_protocols(kwtl_data, name):
    items = find_images(kwtl_data / name)
    for protocol in ("random", "blocked"):
        for pool, test in make_splits(items, protocol, 10, block=TARGETS[name].block):
            assert 0.1 <= len(test) / len(items) <= 0.3 and len(pool) + len(test) == len(items)
