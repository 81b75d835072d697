"""What tests of several modules share."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests, a file at a time, begin with the files that take longest."""
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write what was skipped, and why, to the file that KWTL_SKIPPED names; scripts/test.sh ends with it."""
    file = os.environ.get("KWTL_SKIPPED")
    if not file or hasattr(config, "workerinput"):
        return
    skipped = Counter(
        (report.nodeid.split("::")[0], report.longrepr[2].removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", ())
    )
    with open(file, "a", encoding="utf-8") as stream:
        stream.writelines(f"  {count} of {path}: {reason}\n" for (path, reason), count in sorted(skipped.items()))


# None is the root; the others are those that bundles/kwtl/configs/logging.conf sets up
LOGGERS = (None, "monai_kwtl", "monai.bundle.scripts", "monai.bundle.workflows")


def _logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate, logger.disabled) for logger in loggers]
    yield
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)  # not by assignment: it also empties the cache of isEnabledFor
        logger.propagate, logger.disabled = propagate, disabled


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a bundle's logging.conf does: its handlers replace pytest's, and write to a stdout that is closed."""
    yield from _logging_as_before()


@pytest.fixture(autouse=True, scope="module")
def logging_as_before_the_module() -> Iterator[None]:
    """Undo what stages did to logging that a fixture of a whole module ran."""
    yield from _logging_as_before()


@pytest.fixture(scope="session")
def kwtl_data() -> Path:
    """Folder of the real data sets; tests that ask for it skip where there is none."""
    folder = Path(os.environ.get("KWTL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set KWTL_DATA to their folder")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator, the same for every test."""
    return np.random.default_rng(20230109)


@pytest.fixture
def one_thread():
    """As the stages run in tests: with other threads sums are added in another order, which bfloat16 makes visible."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
