"""What tests of several modules share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


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
