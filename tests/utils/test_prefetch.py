"""Reading ahead keeps the order, tells of errors, and holds one element more than its user."""

from __future__ import annotations

import threading
import weakref

import pytest
import torch
from torch.utils.data import DataLoader

from monai_kwtl.utils.prefetch import PrefetchingLoader, prefetched


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_all_elements_come_in_order(count):
    assert list(prefetched(range(count))) == list(range(count))


def test_the_next_element_is_read_while_one_is_used():
    second = threading.Event()

    def source():
        yield 1
        second.set()
        yield 2

    elements = prefetched(source())
    assert next(elements) == 1
    assert second.wait(10)
    assert list(elements) == [2]


def test_an_error_comes_in_its_place():
    def source():
        yield 1
        raise OSError("the disk is gone")

    elements = prefetched(source())
    assert next(elements) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(elements)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    elements = prefetched(iter(range(100)))
    next(elements)
    elements.close()
    assert threading.active_count() == before


def test_what_was_used_is_let_go():
    class Large:
        pass

    made: list[weakref.ref] = []

    def source():
        for _ in range(20):
            large = Large()
            made.append(weakref.ref(large))
            yield large
            del large

    for _ in prefetched(source()):
        assert sum(reference() is not None for reference in list(made)) <= 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_loader_gives_what_the_plain_one_gives(workers):
    data = [torch.full((1, 2 + i, 3), i) for i in range(5)]
    plain = list(DataLoader(data, batch_size=None))
    loader = PrefetchingLoader(data, batch_size=None, num_workers=workers)
    assert len(loader) == 5
    for _ in range(2):  # as often as asked for
        found = list(loader)
        assert len(found) == 5 and all(map(torch.equal, found, plain))
