"""Settings of pseudo-labels and training, and trainings that go astray."""

from __future__ import annotations

import shutil
from pathlib import Path

from bad_input.cases import TRAINING, case

TUNING = [
    case("pretext", threshold=20, fraction=0.2),
    case("select", names="threshold", pretext="always", threshold=20, fraction=0.2),
    case("pretext", threshold=300),
    case("pretext", fraction=1.5),
    case("select", names="fraction", pretext="always", fraction=0),
    case("pretext", polarity="grey"),
    case("pretext", method="magic"),
    case("pretext", method="otsu", threshold=20),
    case("pretext", iterations=-1),
    case("pretext", most_images=0),
    case("pretext", preview="only"),
    case(("pretext", "train"), schedule="weekly"),
    case(("pretext", "train"), steps=0),
    case("train", names="epochs", schedule="paper", epochs=0),
    case("train", names="step", schedule="paper", step=0),
    case(TRAINING, crop=0),
    case(("pretext", "train"), batch_size=0),
    case(TRAINING, checkpoint_every=0),
    case(("pretext", "train"), learning_rate=-1),
    case("train", weight_decay=-1),
    case("train", held_out=0.9),
    case("train", validate_every=0),
    case("train", foreground_weight=0),
    case("train", photometric="much"),
    case("train", falling_rate="slowly"),
    case("train", match_foreground=0.2),
    case("train", match_foreground="true", schedule="paper"),
    case("train", loss="focal"),
    case("train", foreground_weight="pool", ckpt="random"),
    case(("pretext", "train"), "a loss that is no number any more", names="learning_rate", learning_rate=1e30),
    case(
        ("pretext", "train"),
        "weights that overflow in the last step",
        names="encoder.1.running_var",
        learning_rate=1e30,
        steps=1,
    ),
]


def _bare_source(folder: Path) -> None:
    shutil.copytree(folder / "my_images" / "images", folder / "bare" / "images")


META_TRAINING = [
    case("meta_train", "one source only", names="source", status=0),
    case("meta_train", "a source without labels", _bare_source, names="bare", sources="[my_images, bare]"),
    case("meta_train", sources="[my_images, elsewhere]"),
    case("meta_train", names="my_images", sources="[my_images, my_images/]"),
    case("meta_train", sources="[]"),
    case("meta_train", meta_epochs=0),
    case("meta_train", inner_steps=0),
    case("meta_train", crops=0),
    case("meta_train", most_images=0),
    case("meta_train", inner_learning_rate=-1),
    case("meta_train", meta_learning_rate=0),
    case("meta_train", buffers="drop"),
    case("meta_train", "a loss that is no number any more", names="my_images", inner_learning_rate=1e30),
]
