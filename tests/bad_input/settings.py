"""Settings of the selection, weights, devices, and outputs that cannot be written."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bad_input.cases import ALL, TRAINING, case, file_at


def _damage(folder: Path) -> None:
    content = bytearray((folder / "weights.pt").read_bytes())
    content[2000:3000] = bytes(1000)
    (folder / "weights.pt").write_bytes(content)


def _with_nan(folder: Path) -> None:
    state = torch.load(folder / "weights.pt", weights_only=True)
    state[next(iter(state))].view(-1)[5] = float("nan")
    torch.save(state, folder / "weights.pt")


def _weights(content: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / "weights.pt")


def _code(folder: Path) -> None:
    (folder / "weights.pt").write_bytes(pickle.dumps(os.getcwd))


def _link_to_nowhere(folder: Path) -> None:
    (folder / "out").symlink_to("nowhere/at/all")


SELECTING = [
    case("select", "budget must be a number above 0, got 0.", budget=0),
    case("select", "budget must be a number above 0, got -1.", budget=-1),
    case("select", "budget must be a number above 0, got 'much'.", budget="much"),
    case("select", "budget must be a number above 0, got 'nan'.", budget="nan"),
    case("select", "budget is 4 images' worth, but the pool has only 3 images; ask for less.", budget=4),
    case("select", "budget_windows must be a number above 0, got 0.", budget_windows=0),
    case("select", "budget_windows must be a whole number, got 1.5.", budget_windows=1.5),
    case(
        "select",
        "budget_windows is 99, but the pool has only 12 windows; ask for less, or use a smaller --step.",
        budget_windows=99,
    ),
    case("select", "budget_pixels is 9999, but the pool has only 8640 pixels; ask for less.", budget_pixels=9999),
    case(
        "select",
        "budget_pixels is 99, less than one window of 1024 pixels; ask for more, or use a smaller --window.",
        budget_pixels=99,
    ),
    case(
        "select",
        "give one of budget, budget_windows and budget_pixels, got 2 of them.",
        budget=1,
        budget_windows=2,
    ),
    case(
        "select",
        "unknown strategy 'best'; use one of top_k, coverage, random, stratified_random, strided, foreground_random, "
        "power, two_thirds, balanced, herding, typical, k_centre.",
        strategy="best",
    ),
    case(("select", "train"), "preset must be kwtl or paper, got 'best'.", preset="best"),
    case("select", "unknown measure 'doubt'; use one of soft, hard, kl, jsd, entropy, mc_dropout.", measure="doubt"),
    case("select", "unknown views 'mirror'; use intensity or affine.", views="mirror"),
    case("select", "unknown views 3; use intensity or affine.", views=3),
    case(
        "select",
        "strategy 'coverage' needs score maps; exact scoring has none: use --exact false or top_k.",
        exact="true",
        strategy="coverage",
    ),
    case("select", "contrast must be image or window, got 'local'.", contrast="local"),
    case(
        "select",
        "contrast window needs measure soft or hard, the intensity views and no weights; use --contrast image.",
        contrast="window",
        measure="entropy",
    ),
    case("select", "window must be a whole number, at least 1, got 0.", window=0),
    case("select", "window must be a whole number, at least 1, got -8.", window=-8),
    case("select", "window must be a whole number, at least 1, got 25.6.", window=25.6),
    case("select", "step must be a whole number, at least 1, got 0.", step=0),
    case("select", "psi must be a number from 0 on, got -1.", psi=-1),
    case("select", "psi must be a number from 0 on, got 'nan'.", psi="nan"),
    case(
        "select",
        "pretext is auto, always, skip or the path of weights; there is no file 'tuned.pt'.",
        pretext="tuned.pt",
    ),
    case("select", "pretext_steps must be a whole number, at least 1, got 0.", pretext_steps=0),
]

_UNREADABLE = (
    "weights.pt is not a readable checkpoint (a state_dict saved by torch.save); copy it anew, or choose another."
)
_SCORING = ("select", "inference", "evaluate")

WEIGHTS = [
    case(ALL, "there is no checkpoint at elsewhere.pt; give the path of a .pt file with --ckpt.", ckpt="elsewhere.pt"),
    case((*_SCORING, "pretext", "train"), _UNREADABLE, "a checkpoint with damaged bytes", _damage),
    case("select", _UNREADABLE, "half a checkpoint", lambda folder: os.truncate(folder / "weights.pt", 2_000_000)),
    case("select", _UNREADABLE, "a text file as checkpoint", file_at("weights.pt")),
    case("select", _UNREADABLE, "a pickle that would run code", _code),
    case(
        _SCORING,
        "weights.pt belongs to another network: 'conv.weight' and others are not the same as in FCRN; choose its "
        "checkpoint, or change network_def.",
        "the checkpoint of another network",
        _weights({"conv.weight": torch.zeros(1)}),
    ),
    case(
        "select",
        "weights.pt holds no state_dict; save the network's weights with torch.save(net.state_dict()).",
        "a checkpoint that holds a list",
        _weights([1, 2]),
    ),
    case(
        _SCORING,
        "weights.pt holds values that are not finite, first in 'encoder.0.weight'; its training diverged: choose "
        "another.",
        "a checkpoint with a NaN",
        _with_nan,
    ),
    case(ALL, "device 'gpu' cannot be used here; use auto or cpu, there is no CUDA here.", device="gpu"),
    case("select", "unknown option --budgte; did you mean --budget?", budgte=3),
    case("train", "unknown option --learningrate; did you mean --learning_rate?", learningrate=0.1),
    case(
        "select",
        "unknown option --zzz; the options are described in bundles/kwtl/configs/select.json under _desc_.",
        zzz=1,
    ),
    case("select", "exact must be true or false, got 'maybe'.", exact="maybe"),
    case(ALL, "amp must be auto, true or false, got 'half'.", amp="half"),
    case("select", "adapt_norm must be true or false, got 2.", adapt_norm=2),
    case(("select", *TRAINING), "seed must be a whole number, at least 0, got -1.", seed=-1),
    case(("select", *TRAINING), "seed must be a whole number, at least 0, got 'one'.", seed="one"),
    case(_SCORING, "num_workers must be a whole number, at least 0, got -1.", num_workers=-1),
    case("select", "num_workers must be a whole number, at least 0, got 'many'.", num_workers="many"),
    case(_SCORING, "tile must be a whole number, at least 1, got 0.", tile=0),
    case("inference", "tile must be a whole number, at least 1, got 'big'.", tile="big"),
    case("select", "max_memory must be a number from 0.8 on, got 0.", max_memory=0),
    case("select", "max_memory must be a number from 0.8 on, got 'all'.", max_memory="all"),
    case(("inference", "evaluate"), "probability must be a number from 0 to 1, got 2.", probability=2),
    case("inference", "probability must be a number from 0 to 1, got 'half'.", probability="half"),
    case(("inference", "evaluate"), "flips must be true or false, got 8.", flips=8),
]

_ELSEWHERE = "choose another --output_dir"
_OR_OVERWRITE = f"{_ELSEWHERE} or add --overwrite true"
_OTHERS = f"cannot write to out (File exists); {_ELSEWHERE}"
_SELECT = f"out cannot be written (File exists): {_ELSEWHERE}"
_LINK = "a link that leads nowhere is at the output folder"

OUTPUT = [
    case("select", _SELECT, "a file is at the output folder", file_at("out")),
    case(ALL[1:], _OTHERS, "a file is at the output folder", file_at("out")),
    case("select", _SELECT, _LINK, _link_to_nowhere),
    case(("inference", "evaluate", "train"), _OTHERS, _LINK, _link_to_nowhere),
    case(
        "select",
        f"out/regions cannot be written (a file is in the way): {_ELSEWHERE}",
        "a file is at a folder inside the output",
        file_at("out/regions"),
    ),
    case(
        "train",
        "out/tensorboard: File exists; mend that, or choose another place",
        "a file is at the folder of the TensorBoard log",
        file_at("out/tensorboard"),
        tensorboard="true",
    ),
    case(
        "select",
        f"out/selection.json already exists: {_OR_OVERWRITE}",
        "a selection is there already",
        file_at("out/selection.json"),
    ),
    case(
        "inference",
        f"out already holds masks such as b.png: {_OR_OVERWRITE}",
        "a mask is there already",
        file_at("out/b.png"),
    ),
    case(
        "evaluate",
        f"out/evaluation.json already exists: {_OR_OVERWRITE}",
        "an evaluation is there already",
        file_at("out/evaluation.json"),
    ),
    case(TRAINING, f"out/model.pt already exists: {_OR_OVERWRITE}", "weights are there", file_at("out/model.pt")),
    case(
        TRAINING,
        "out/checkpoint.pt is of an interrupted run: go on with --resume true, or begin anew with --overwrite true",
        "an interrupted run is there",
        file_at("out/checkpoint.pt"),
    ),
    case(
        "train",
        "out/model.pt was made with other settings, images or weights: give the same ones, choose another "
        "--output_dir, or begin anew with --resume false --overwrite true",
        "weights of other settings are there",
        file_at("out/model.pt"),
        resume="true",
    ),
    case(
        ALL[:-1],
        f"my_images/images is the folder of the images themselves; {_ELSEWHERE}.",
        output_dir="my_images/images",
        overwrite="true",
    ),
    case(ALL, "output_dir must be a path, got the number 3; put ./ before a name like that.", output_dir=3),
    case(ALL, "overwrite must be true or false, got 'ja'.", overwrite="ja"),
    case("evaluate", "overlays must be true or false, got 'some'.", overlays="some"),
    case("select", "report must be true or false, got 'short'.", report="short"),
    case(("select", "train"), "project must be true or false, got 'mine'.", project="mine"),
    case(
        "select",
        "this round is not noted: my_images/project.json: line 1, column 1: Expecting value; mend the JSON",
        "project.json is no JSON",
        file_at("my_images/project.json"),
        status=0,
    ),
    case(TRAINING, "resume must be true or false, got 'now'.", resume="now"),
]
