"""What was read last is not read again, within a limit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from monai_kwtl.utils.caching import remembering


def test_the_last_ones_are_kept():
    asked = []

    def read(item):
        asked.append((item["image"], item.get("page")))
        return np.full(item["size"], len(asked), dtype=np.uint8)

    def item(name, page=None, size=100):
        return {"image": name, "page": page, "size": size}

    cached = remembering(read, limit=250)
    first = cached(item("a"))
    cached(item("a", 1))
    assert cached(item("a")) is first
    cached(item("b"))
    assert asked == [("a", None), ("a", 1), ("b", None)]
    cached(item("a"))  # was used last, and is kept
    cached(item("a", 1))
    assert asked[3:] == [("a", 1)]
    cached(item("large", size=1000))
    cached(item("large", size=1000))
    assert asked[4:] == [("large", None)] * 2


def test_what_is_not_there_is_asked_for_again():
    answers = [None, np.zeros(3)]
    cached = remembering(lambda item: answers.pop(0))
    assert cached({"image": "a"}) is None
    assert cached({"image": "a"}) is cached({"image": "a"})


def test_threads_share_what_is_read():
    asked = []

    def read(item):
        asked.append(item["image"])
        time.sleep(0.01)
        return np.zeros(40, dtype=np.uint8)

    cached = remembering(read, limit=100)
    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(lambda number: cached({"image": "ab"[number // 20]}), range(40)))
    assert asked == ["a", "b"]
