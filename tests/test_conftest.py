"""Tests do not see each other's logging."""

from __future__ import annotations

import logging
import logging.config
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).resolve().parent.parent / "bundles/kwtl/configs/logging.conf"


@pytest.mark.parametrize("turn", [1, 2])
def test_logging_of_a_bundle_lasts_for_one_test(turn, caplog, capsys):
    root, ours = logging.getLogger(), logging.getLogger("monai_kwtl")
    assert caplog.handler in root.handlers and not ours.isEnabledFor(logging.INFO)
    ours.warning("heard")
    assert caplog.messages == ["heard"]
    logging.config.fileConfig(CONFIG, disable_existing_loggers=False)
    assert [handler.stream for handler in root.handlers] == [sys.stdout]
    ours.info(f"said in turn {turn}")
    assert capsys.readouterr() == (f"said in turn {turn}\n", "")
