"""Reading ahead: a thread fetches the next element while the caller works on one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch.utils.data import DataLoader

__all__ = ["PrefetchingLoader", "prefetched"]

Element = TypeVar("Element")

_END = object()


def prefetched(source: Iterable[Element]) -> Iterator[Element]:
    """Iterate over a source in a thread that is one element ahead; the order stays.

    MONAI's ``ThreadBuffer`` does the same, but ends quietly where the source raises, as if that were all of it.

    Args:
        source: used by one thread at a time; what it raises is raised here, in its place.

    Yields:
        Its elements. At most two exist at a time, besides those that the caller keeps.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        iterator = iter(source)
        coming = thread.submit(next, iterator, _END)
        while (element := coming.result()) is not _END:
            coming = thread.submit(next, iterator, _END)
            yield element
            del element  # not kept while the next one is awaited


class PrefetchingLoader(DataLoader):
    """A ``DataLoader`` that reads the next batch while the last one is used, also without worker processes."""

    def __iter__(self) -> Iterator[Any]:  # noqa: D105
        batches = super().__iter__()
        return prefetched(batches) if self.num_workers == 0 else batches
