"""What a case of bad input is, and the sound input that it departs from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_COMMON = {"output_dir": "out", "device": "cpu", "amp": "false", "tensorboard": "false"}
_POOL = _COMMON | {"dataset_dir": "my_images", "ckpt": "weights.pt"}
_TRAINING = _POOL | {"steps": 2, "crop": 32, "batch_size": 2}

# options with which every stage works in a sound folder, and takes a second
SOUND: dict[str, dict[str, Any]] = {
    "select": _POOL | {"pretext": "skip", "window": 32, "step": 16, "report": "false"},
    "inference": {name: value for name, value in _POOL.items() if name != "tensorboard"},
    "evaluate": _POOL,
    "pretext": _TRAINING,
    "train": _TRAINING,
    "meta_train": _COMMON | {"sources": "[my_images]", "meta_epochs": 1, "inner_steps": 2, "crops": 2, "crop": 32},
}
ALL = tuple(SOUND)
WITHOUT_LABELS = ("select", "pretext", "inference")
WITH_LABELS = ("train", "evaluate", "meta_train")
TRAINING = ("pretext", "train", "meta_train")


def noise(*shape: int) -> np.ndarray:
    """Grey values that are always the same."""
    return np.random.default_rng(1).integers(0, 200, shape, dtype=np.uint8)


def make_sound(folder: Path) -> None:
    """Put three images, 48 rows and 60 columns, into my_images, each with a bright cell, and their masks."""
    for name in ("images", "labels"):
        (folder / "my_images" / name).mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        mask = np.zeros((48, 60), dtype=np.uint8)
        mask[10 : 30 + number, 20:40] = 255
        Image.fromarray(np.maximum(np.roll(noise(48, 60), number), mask)).save(folder / "my_images" / "images" / name)
        Image.fromarray(mask).save(folder / "my_images" / "labels" / name)


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Args:
        stages: that it is bad input of.
        given: what is wrong, in words; where it is empty, the options say it.
        prepare: changes the folder before.
        names: what the line has to name: a file, a folder or an option.
        status: exit status; where it is 0, the name is among what is printed.
        stage_options: in place of those in ``SOUND``; None leaves one out.
    """

    stages: tuple[str, ...]
    given: str
    prepare: Callable[[Path], Any]
    names: str
    status: int
    stage_options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The input as the test names it."""
        options = " ".join(f"--{name} {value}" for name, value in self.stage_options.items() if value is not None)
        return ", ".join(part for part in (self.given, options) if part)

    def options(self, stage: str) -> dict[str, Any]:
        """Options to run a stage with."""
        return {name: value for name, value in (SOUND[stage] | self.stage_options).items() if value is not None}


def case(
    stages: str | tuple[str, ...],
    given: str = "",
    prepare: Callable[[Path], Any] = lambda folder: None,
    names: str = "",
    status: int = 1,
    **stage_options: Any,
) -> Case:
    """Make a case, of one stage or several; its line names the first option, unless something else is said."""
    return Case(
        (stages,) if isinstance(stages, str) else stages,
        given,
        prepare,
        names or next(iter(stage_options)),
        status,
        stage_options,
    )


def in_order(*steps: Callable[[Path], Any]) -> Callable[[Path], None]:
    """One change after the other."""

    def prepare(folder: Path) -> None:
        for step in steps:
            step(folder)

    return prepare


def file_at(name: str) -> Callable[[Path], None]:
    """Put a file of the user at a path."""

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the user")

    return prepare
