"""Settings of pseudo-labels and training, and trainings that go astray."""

from __future__ import annotations

import shutil
from pathlib import Path

from bad_input.cases import TRAINING, case

_ONE_OF = "method equalize needs one of threshold (0 to 255) and fraction (0 to 1), got both."
_WEIGHTS = "foreground_weight must be auto, crop, dataset, pool, none or a number above 0"

TUNING = [
    case("pretext", _ONE_OF, threshold=20, fraction=0.2),
    case("select", _ONE_OF, pretext="always", threshold=20, fraction=0.2),
    case("pretext", "threshold must be a number from 0 to 255, got 300.", threshold=300),
    case("pretext", "fraction must be between 0 and 1, got 1.5.", fraction=1.5),
    case("select", "fraction must be between 0 and 1, got 0.", pretext="always", fraction=0),
    case("pretext", "polarity must be dark or bright, got 'grey'.", polarity="grey"),
    case("pretext", "method must be equalize, kmeans or otsu, got 'magic'.", method="magic"),
    case("pretext", "threshold and fraction are for method equalize, not for otsu.", method="otsu", threshold=20),
    case("pretext", "iterations must be a whole number, at least 0, got -1.", iterations=-1),
    case("pretext", "most_images must be a whole number, at least 1, got 0.", most_images=0),
    case("pretext", "preview must be true or false, got 'only'.", preview="only"),
    case(("pretext", "train"), "unknown schedule 'weekly'; use steps or paper.", schedule="weekly"),
    case(("pretext", "train"), "steps must be a whole number, at least 1, got 0.", steps=0),
    case("train", "steps must be a whole number, at least 1, got 1.5.", steps=1.5),
    case("train", "epochs must be a whole number, at least 1, got 0.", schedule="paper", epochs=0),
    case("train", "step must be a whole number, at least 1, got 0.", schedule="paper", step=0),
    case(TRAINING, "crop must be a whole number, at least 1, got 0.", crop=0),
    case("train", "crop must be a whole number, at least 1, got 'big'.", crop="big"),
    case(("pretext", "train"), "batch_size must be a whole number, at least 1, got 0.", batch_size=0),
    case(TRAINING, "checkpoint_every must be a whole number, at least 1, got 0.", checkpoint_every=0),
    case(("pretext", "train"), "learning_rate must be a number above 0, got -1.", learning_rate=-1),
    case("train", "learning_rate must be a number above 0, got 'slow'.", learning_rate="slow"),
    case("train", "weight_decay must be a number from 0 on, got -1.", weight_decay=-1),
    case("train", "held_out must be between 0 and 0.5, got 0.9.", held_out=0.9),
    case("train", "held_out must be between 0 and 0.5, got 'some'.", held_out="some"),
    case("train", "validate_every must be a whole number, at least 1, got 0.", validate_every=0),
    case("train", f"{_WEIGHTS}, got 0.", foreground_weight=0),
    case("train", f"{_WEIGHTS}, got 'heavy'.", foreground_weight="heavy"),
    case("train", "photometric must be true or false, got 'much'.", photometric="much"),
    case("train", "falling_rate must be true or false, got 'slowly'.", falling_rate="slowly"),
    case("train", "match_foreground must be true or false, got 0.2.", match_foreground=0.2),
    case(
        "train",
        "match_foreground draws crops anew in each step, and the paper's schedule has a grid; use one.",
        match_foreground="true",
        schedule="paper",
    ),
    case("train", "loss must be weighted or dice_bce, got 'focal'.", loss="focal"),
    case(
        "train",
        "the foreground of the pool is estimated by the start weights, and --ckpt random has none; give weights, or "
        "use neither --foreground_weight pool nor --match_foreground true.",
        foreground_weight="pool",
        ckpt="random",
    ),
    case(
        ("pretext", "train"),
        "the loss is nan at step 2: nothing was saved of it; use a smaller --learning_rate, or look for broken images "
        "or masks",
        "a loss that is no number any more",
        learning_rate=1e30,
    ),
    case(
        ("pretext", "train"),
        "the trained weights are not finite, first in 'encoder.1.running_var': they were not saved; begin anew with "
        "--overwrite true and a smaller learning rate",
        "weights that overflow in the last step",
        learning_rate=1e30,
        steps=1,
    ),
]


def _bare_source(folder: Path) -> None:
    shutil.copytree(folder / "my_images" / "images", folder / "bare" / "images")


META_TRAINING = [
    case(
        "meta_train",
        "with one source meta-training is plain training; give several, of different cells",
        "one source only",
        status=0,
    ),
    case(
        "meta_train",
        "no image of bare has a label: put masks of the same base names into its labels/ folder, or name their folder "
        "with --labels",
        "a source without labels",
        _bare_source,
        sources="[my_images, bare]",
    ),
    case(
        "meta_train",
        "there is no folder elsewhere: give the folder of the images with --sources.",
        sources="[my_images, elsewhere]",
    ),
    case(
        "meta_train", "the source my_images is named twice; name each folder once.", sources="[my_images, my_images/]"
    ),
    case("meta_train", 'no source is given; name folders of labelled images: --sources "[dirA, dirB]".', sources="[]"),
    case("meta_train", "meta_epochs must be a whole number, at least 1, got 0.", meta_epochs=0),
    case("meta_train", "inner_steps must be a whole number, at least 1, got 0.", inner_steps=0),
    case("meta_train", "crops must be a whole number, at least 1, got 0.", crops=0),
    case("meta_train", "most_images must be a whole number, at least 1, got 0.", most_images=0),
    case("meta_train", "inner_learning_rate must be a number above 0, got -1.", inner_learning_rate=-1),
    case("meta_train", "meta_learning_rate must be a number above 0, got 0.", meta_learning_rate=0),
    case("meta_train", "buffers must be one of average, keep, got 'drop'.", buffers="drop"),
    case(
        "meta_train",
        "the loss is nan, which is not finite in meta-epoch 1, source my_images, inner step 2; lower the learning rate "
        "of the inner loop and go on from the last checkpoint.",
        "a loss that is no number any more",
        inner_learning_rate=1e30,
    ),
]
