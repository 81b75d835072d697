"""The folder of a label app: made once out of a template, then the user's to change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from monai_kwtl.bundle.paths import bundle_root
from monai_kwtl.bundle.pretext import auto_pretext
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.settings import SETTINGS_NAME, LabelSettings, read_settings
from monai_kwtl.label.state.weights import ModelFolder

__all__ = ["find_bundle", "make_app", "make_weights"]

MAIN = '''"""MONAI Label starts here. The settings are in kwtl.json, the training in configs/train.json."""

from monai_kwtl.label.app import KWTLApp  # noqa: F401 - MONAI Label looks for it in this module
'''
DESCRIPTION = {
    "app": "settings of the label app; a change holds from the next start of the server on",
    "measure": "of strategy and scoring method kwtl: soft, hard, kl or jsd; as in select.json",
    "window": "side of a region, in pixels",
    "step": "distance between windows, in pixels",
    "lease_minutes": "how long a region stays with a client that does not send its label",
    "steps": "of a training, with crop, batch_size, learning_rate and held_out as in train.json",
    "score_at_start": "true scores in the background what has no scores when the server starts",
    "epistemic": "true offers MONAI Label's own epistemic scoring too, for comparison",
}
CONFIGS = ("train.json", "metadata.json")


def find_bundle(given: str | None = None) -> Path:
    """Find the folder of the bundle: as given, below the current folder, or beside the package's source.

    Raises:
        KWTLError: when there is none.
    """
    beside = Path(__file__).resolve().parents[3] / "bundles" / "kwtl"
    candidates = [Path(given)] if given else [Path(bundle_root()), beside]
    for folder in candidates:
        if (folder / "configs" / "train.json").is_file():
            return folder
    raise KWTLError(
        f"there is no bundle in {candidates[0]}: give its folder, which holds configs/train.json, with --bundle."
    )


def make_app(app_dir: str | os.PathLike, bundle: Path) -> Path:
    """Copy the template to a folder; files that are there already are the user's, and stay.

    Args:
        app_dir: made if absent.
        bundle: whose training configs are copied.

    Returns:
        The folder.

    Raises:
        KWTLError: when it cannot be written, or belongs to something else.
    """
    folder = Path(app_dir)
    try:
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        main = folder / "main.py"
        if main.exists() and "monai_kwtl" not in main.read_text(encoding="utf-8", errors="replace"):
            raise KWTLError(f"{folder} holds another app: give a folder of its own with --app.")
        settings = {"_desc_": DESCRIPTION, **asdict(LabelSettings())}
        texts = {main: MAIN, folder / SETTINGS_NAME: json.dumps(settings, indent=4) + "\n"}
        for path, text in texts.items():
            if not path.exists():
                path.write_text(text, encoding="utf-8")
        for name in CONFIGS:
            if not (folder / "configs" / name).exists():
                shutil.copyfile(bundle / "configs" / name, folder / "configs" / name)
    except OSError as error:
        raise KWTLError(f"{folder} cannot be written ({error.strerror}): give another folder with --app.") from error
    return folder


def make_weights(
    app_dir: Path,
    studies: str | os.PathLike,
    items: Sequence[Mapping[str, Any]],
    bundle: Path,
    model: str | None = None,
    pretext: str = "auto",
) -> Path:
    """Give the app weights to begin with; one that has some goes on with them.

    Args:
        app_dir: of the app.
        studies: folder of the images.
        items: the images.
        bundle: with its own weights and ``pretext.json``.
        model: weights; None takes the bundle's own.
        pretext: as in ``select.json``: ``auto`` tunes the bundle's own weights on pseudo-labels of the studies first,
            a minute or two, and takes others as they are.

    Returns:
        The weights that the app works with.
    """
    settings = read_settings(app_dir)
    models = ModelFolder(app_dir, settings.device)
    if model is None and models.start.is_file() and models.current.is_file():
        return models.current
    start = auto_pretext(
        pretext,
        model or str(bundle / "models" / "model.pt"),
        bundle,
        studies,
        app_dir,
        rescale=settings.rescale,
        device=settings.device,
        amp=settings.amp,
        seed=settings.seed,
        tensorboard=False,
    )
    models.begin(start, items, settings.rescale)
    return models.current
