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
    case("select", budget=0),
    case("select", budget="much"),
    case("select", budget=4),
    case("select", budget_windows=0),
    case("select", budget_windows=1.5),
    case("select", budget_windows=99),
    case("select", budget_pixels=9999),
    case("select", budget_pixels=99),
    case("select", budget=1, budget_windows=2),
    case("select", strategy="best"),
    case(("select", "train"), preset="best"),
    case("select", measure="doubt"),
    case("select", views="mirror"),
    case("select", exact="true", strategy="coverage"),
    case("select", contrast="local"),
    case("select", contrast="window", measure="entropy"),
    case("select", window=0),
    case("select", step=0),
    case("select", psi=-1),
    case("select", pretext="tuned.pt"),
    case("select", pretext_steps=0),
]

_SCORING = ("select", "inference", "evaluate")

WEIGHTS = [
    case(ALL, ckpt="elsewhere.pt"),
    case((*_SCORING, "pretext", "train"), "a checkpoint with damaged bytes", _damage, names="weights.pt"),
    case(
        "select", "half a checkpoint", lambda folder: os.truncate(folder / "weights.pt", 2_000_000), names="weights.pt"
    ),
    case("select", "a text file as checkpoint", file_at("weights.pt"), names="weights.pt"),
    case("select", "a pickle that would run code", _code, names="weights.pt"),
    case(_SCORING, "the checkpoint of another network", _weights({"conv.weight": torch.zeros(1)}), names="weights.pt"),
    case("select", "a checkpoint that holds a list", _weights([1, 2]), names="weights.pt"),
    case(_SCORING, "a checkpoint with a NaN", _with_nan, names="weights.pt"),
    case(ALL, device="gpu"),
    case("select", budgte=3),
    case("train", learningrate=0.1),
    case("select", zzz=1),
    case("select", exact="maybe"),
    case(ALL, amp="half"),
    case("select", adapt_norm=2),
    case(("select", *TRAINING), seed=-1),
    case(_SCORING, num_workers=-1),
    case(_SCORING, tile=0),
    case("select", max_memory=0),
    case(("inference", "evaluate"), probability=2),
    case(("inference", "evaluate"), flips=8),
]

_LINK = "a link that leads nowhere is at the output folder"

OUTPUT = [
    case("select", "a file is at the output folder", file_at("out"), names="out"),
    case(ALL[1:], "a file is at the output folder", file_at("out"), names="out"),
    case("select", _LINK, _link_to_nowhere, names="out"),
    case(("inference", "evaluate", "train"), _LINK, _link_to_nowhere, names="out"),
    case("select", "a file is at a folder inside the output", file_at("out/regions"), names="out/regions"),
    case(
        "train",
        "a file is at the folder of the TensorBoard log",
        file_at("out/tensorboard"),
        names="out/tensorboard",
        tensorboard="true",
    ),
    case("select", "a selection is there already", file_at("out/selection.json"), names="out/selection.json"),
    case("inference", "a mask is there already", file_at("out/b.png"), names="b.png"),
    case("evaluate", "an evaluation is there already", file_at("out/evaluation.json"), names="out/evaluation.json"),
    case(TRAINING, "weights are there", file_at("out/model.pt"), names="out/model.pt"),
    case(TRAINING, "an interrupted run is there", file_at("out/checkpoint.pt"), names="out/checkpoint.pt"),
    case("train", "weights of other settings are there", file_at("out/model.pt"), names="out/model.pt", resume="true"),
    case(ALL[:-1], output_dir="my_images/images", overwrite="true"),
    case(ALL, output_dir=3),
    case(ALL, overwrite="ja"),
    case("evaluate", overlays="some"),
    case("select", report="short"),
    case(("select", "train"), project="mine"),
    case(
        "select",
        "project.json is no JSON",
        file_at("my_images/project.json"),
        names="my_images/project.json",
        status=0,
    ),
    case(TRAINING, resume="now"),
]
