"""What tests of the label server share: a folder of images, an app, and a client of it, in one process."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_kwtl.label.models import ModelFolder
from monai_kwtl.label.studies import Studies
from monai_kwtl.label.template import find_bundle, make_app

SETTINGS = {"window": 64, "step": 16, "steps": 3, "crop": 32, "batch_size": 2, "score_at_start": False, "amp": False}
# height, width: none is square
SIZES = {"img0.png": (120, 150), "img1.png": (150, 90), "img2.tif": (100, 170), "img3.tif": (64, 200)}

needs_monailabel = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None,
    reason="monailabel is not installed here: these run in .venv-label, see scripts/label_setup.sh",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """MONAI Label and what it imports warn of much; only ours are errors in tests that use it."""
    for item in items:
        if "client" in getattr(item, "fixturenames", ()):
            for kind in (
                "DeprecationWarning",
                "PendingDeprecationWarning",
                "UserWarning",
                "FutureWarning",
                "ResourceWarning",
            ):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


def picture(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark spots on a bright, noisy ground: the image, uint8, and its true mask, bool."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(7):
        y, x, radius = rng.integers(8, height - 8), rng.integers(8, width - 8), rng.integers(5, 11)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    image = gaussian_filter(np.where(mask, 60.0, 150.0), 1) + rng.normal(0, 8, mask.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_studies(folder: Path, sizes: dict[str, tuple[int, int]] | None = None) -> dict[str, np.ndarray]:
    """Write images; returns {id: true mask}."""
    folder.mkdir(parents=True, exist_ok=True)
    masks = {}
    for seed, (name, size) in enumerate((sizes or SIZES).items()):
        image, mask = picture(*size, seed)
        if name.endswith(".tif"):
            tifffile.imwrite(folder / name, image, photometric="minisblack")
        else:
            Image.fromarray(image).save(folder / name)
        masks[Path(name).stem] = mask
    return masks


def write_app(folder: Path, studies: Path, weights: Path, **settings: object) -> Path:
    """Make an app for studies that begins with these weights."""
    make_app(folder, find_bundle())
    path = folder / "kwtl.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SETTINGS | settings))
    ModelFolder(folder).begin(weights, Studies(studies).items())
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that was never trained."""
    import torch

    from monai_kwtl.networks import FCRN

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(FCRN(spatial_dims=2, in_channels=1, out_channels=1).state_dict(), path)
    return path


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A folder of PNG and TIFF images."""
    write_studies(tmp_path / "studies")
    return tmp_path / "studies"


@pytest.fixture
def truth(studies: Path) -> dict[str, np.ndarray]:
    """{id: true mask} of the studies."""
    return {Path(name).stem: picture(*size, seed)[1] for seed, (name, size) in enumerate(SIZES.items())}


@pytest.fixture
def client(tmp_path: Path, studies: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of the app, without a port."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastapi.testclient import TestClient
        from monailabel.config import settings
        from monailabel.interfaces.utils.app import clear_cache

        from monai_kwtl.label.server import app

    app_dir = write_app(tmp_path / "app", studies, weights)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    for name, value in {
        "APP_DIR": str(app_dir),
        "STUDIES": str(studies),
        "APP_CONF": {},
        "AUTO_UPDATE_SCORING": False,
        "SESSIONS": False,
        "DATASTORE_AUTO_RELOAD": False,
    }.items():
        monkeypatch.setattr(settings, f"MONAI_LABEL_{name}", value)
    # it has no end, and one thread a test that tidies up sessions is of no use here
    monkeypatch.setattr("monailabel.interfaces.app.Timeloop", MagicMock)
    clear_cache()
    with TestClient(app, raise_server_exceptions=False) as client:
        client.app_dir = app_dir
        yield client
    clear_cache()
