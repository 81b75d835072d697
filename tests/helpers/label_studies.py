"""Images, true masks and apps for the tests of the label server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_kwtl.bundle.paths import find_bundle
from monai_kwtl.label.client.app_folder import make_app
from monai_kwtl.label.state.studies import Studies
from monai_kwtl.label.state.weights import ModelFolder

SETTINGS = {"window": 64, "step": 16, "steps": 3, "crop": 32, "batch_size": 2, "score_at_start": False, "amp": False}
# height, width: none is square
SIZES = {"img0.png": (120, 150), "img1.png": (150, 90), "img2.tif": (100, 170), "img3.tif": (64, 200)}

needs_monailabel = pytest.mark.skipif(
    importlib.util.find_spec("monailabel") is None,
    reason="monailabel is not installed here: these run in .venv-label, see scripts/label_setup.sh",
)


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
