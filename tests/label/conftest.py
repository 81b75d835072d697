"""What tests of the label server share: a folder of images, an app, and a client of it, in one process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from label_studies import SIZES, picture, write_app, write_studies


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


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that was never trained."""
    import torch

    from monai_kwtl.networks.fcrn import FCRN

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
def app_settings() -> dict[str, object]:
    """Settings of the app besides those of all tests; a test overrides it by a parameter of this name."""
    return {}


@pytest.fixture
def client(
    tmp_path: Path, studies: Path, weights: Path, app_settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[object]:
    """A client of the app, without a port."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastapi.testclient import TestClient
        from monailabel.config import settings
        from monailabel.interfaces.utils.app import clear_cache

        from monai_kwtl.label.server import app

    app_dir = write_app(tmp_path / "app", studies, weights, **app_settings)
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
