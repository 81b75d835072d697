"""What the tests of kills run in processes of their own, and kill: uploads, scorings, trainings."""

from __future__ import annotations

import io
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monai_kwtl.label.datastore import FINAL, KWTLDatastore
from monai_kwtl.label.settings import read_settings
from monai_kwtl.label.state.database import SIDECAR_NAME, Sidecar
from monai_kwtl.label.state.studies import Studies, image_id
from monai_kwtl.label.state.weights import ModelFolder
from monai_kwtl.label.tasks.scoring import KWTLScoring
from monai_kwtl.label.tasks.train import KWTLTrain
from monai_kwtl.windows.box import Box

CONFIRM = ["empty", "full", "picture"]


def parts(studies: Path) -> tuple[Studies, Sidecar, KWTLDatastore]:
    """What a server starts with."""
    images, sidecar = Studies(studies), Sidecar(Path(studies) / SIDECAR_NAME)
    return images, sidecar, KWTLDatastore(images, sidecar, auto_reload=False)


def png(mask: np.ndarray) -> bytes:
    """A mask as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, format="PNG")
    return stream.getvalue()


def drawn(items: list[dict[str, Any]], rng: np.random.Generator) -> tuple[str, Box, np.ndarray]:
    """A region of an image, and a mask of it."""
    item = items[rng.integers(len(items))]
    width, height = int(rng.integers(5, 60)), int(rng.integers(5, 60))
    x, y = int(rng.integers(item["width"] - width)), int(rng.integers(item["height"] - height))
    return image_id(item["name"]), Box(x, y, width, height), rng.random((height, width)) < 0.4


def upload(store: KWTLDatastore, folder: Path, identity: str, box: Box, mask: np.ndarray) -> None:
    """Send the mask of a region, as the server takes it from its endpoint."""
    path = folder / "upload.png"
    path.write_bytes(png(mask))
    store.save_label(identity, str(path), FINAL, {"region": list(box), "confirm": CONFIRM})


def uploads(studies: Path, scratch: Path, seed: int, pipe: Connection) -> None:
    """Upload regions without end; tells each before it is sent, and when it is acknowledged."""
    images, _, store = parts(studies)
    items, rng = images.items(), np.random.default_rng(seed)
    while True:
        identity, box, mask = drawn(items, rng)
        pipe.send(("sent", identity, box, mask))
        upload(store, scratch, identity, box, mask)
        pipe.send(("acknowledged", identity, box, mask))


def scorings(studies: Path, app_dir: Path, _seed: int, pipe: Connection) -> None:
    """Score without end."""
    images, sidecar, _ = parts(studies)
    scoring = KWTLScoring("kwtl", read_settings(app_dir), images, sidecar, ModelFolder(app_dir))
    pipe.send("begun")
    while True:
        scoring({})
        sidecar.forget("kwtl", keep=0)


def trainings(studies: Path, app_dir: Path, _seed: int, pipe: Connection) -> None:
    """Train without end, going on with what was interrupted."""
    images, sidecar, store = parts(studies)
    models = ModelFolder(app_dir)
    train = KWTLTrain(read_settings(app_dir), images, sidecar, models, [], app_dir)
    pipe.send("begun")
    while True:
        train({"rescore": False, "resume": models.interrupted() is not None}, store)
