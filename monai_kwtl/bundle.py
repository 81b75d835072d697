"""What every bundle config needs around its stage: one-line errors, checked knobs, the device and the weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import re
import sys
import traceback
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow
from torch import nn

from monai_kwtl import __version__
from monai_kwtl.errors import KWTLError
from monai_kwtl.knobs import check_running_knobs, running, true_or_false
from monai_kwtl.readers import SUFFIXES, has_suffix
from monai_kwtl.synthetic import make_demo_pool

__all__ = [
    "bundle_root",
    "choose_device",
    "file_sha256",
    "is_main_process",
    "load_weights",
    "not_finite",
    "one_line_errors",
    "place",
    "score_settings",
    "start",
    "true_or_false",
    "versions",
]


def _for_the_user(error: BaseException | None) -> str | None:
    """What to tell the user, where the chain of causes holds an error that they can mend; None for a bug."""
    while error is not None:
        text = str(error)
        passed_on = re.findall(r"^monai_kwtl\.errors\.KWTLError: (.+)", text, re.MULTILINE)
        if passed_on:  # a data loader's worker passes errors on as the text of their traceback
            return passed_on[0]
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename is not None else ""
            return f"{where}{error.strerror}; mend that, or choose another place"
        if isinstance(error, (KWTLError, OSError)):
            return text.strip().splitlines()[-1] if "Original Traceback" in text else " ".join(text.split())
        # torch has a class for the memory of a GPU only
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in text:
            return "the memory does not suffice; use a smaller --tile, in training a smaller --crop or --batch_size"
        error = error.__cause__
    return None


def one_line_errors() -> None:
    """Print errors that the user can mend as one line instead of a traceback; the exit status stays 1.

    Those are :class:`KWTLError`, what the operating system refuses (``OSError``), and too little memory, also where
    MONAI wrapped them.
    Everything else is a bug and keeps its traceback, as all errors do where ``KWTL_TRACEBACK`` is set.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nstopped; nothing of yours was changed.", file=sys.stderr)
            return
        message = _for_the_user(error)
        if message is None or os.environ.get("KWTL_TRACEBACK"):
            traceback.print_exception(kind, error, trace)
            return
        print(f"error: {message}", file=sys.stderr)

    sys.excepthook = hook


def start() -> None:
    """Begin a stage: errors become one line, and options that are unknown or make no sense are refused."""
    one_line_errors()
    check_running_knobs()


def bundle_root() -> str:
    """Folder of the running bundle: that of the running config, else the current folder or ``bundles/kwtl``."""
    workflow = running(ConfigWorkflow, "self")
    if workflow is not None:
        return str(Path(workflow.config_root_path).parent)
    return "." if os.path.isfile("configs/metadata.json") else "bundles/kwtl"


def is_main_process() -> bool:
    """Whether this process is the one that writes: the only one, or rank 0 of several."""
    return not (torch.distributed.is_available() and torch.distributed.is_initialized()) or (
        torch.distributed.get_rank() == 0
    )


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        KWTLError: for a device that torch does not know or that is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(str(device))
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        others = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu, there is no CUDA here"
        raise KWTLError(f"device {device!r} cannot be used here; use {others}.") from error
    return chosen


def _existing_checkpoint(path: str | os.PathLike) -> Path:
    if not Path(path).is_file():
        raise KWTLError(f"there is no checkpoint at {path}; give the path of a .pt file with --ckpt.")
    return Path(path)


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a checkpoint's bytes, hexadecimal.

    Raises:
        KWTLError: when there is no such file.
    """
    path = _existing_checkpoint(path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_checkpoint(path: Path) -> Any:
    content = path.read_bytes()
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.load does not look at the check sums
                if archive.testzip():
                    raise zipfile.BadZipFile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on what it is about to refuse
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes raise nearly everything
        raise KWTLError(
            f"{path} is not a readable checkpoint (a state_dict saved by torch.save); copy it anew, or choose another."
        ) from error


def load_weights(network: nn.Module, path: str | os.PathLike | None, device: torch.device | str = "cpu") -> nn.Module:
    """Load a checkpoint into a network and move it to a device.

    The checkpoint is a plain state dict, or a dict that holds one under ``model``, ``network`` or ``state_dict``. It is
    read with ``weights_only=True``: a file that asks for more is refused.

    Args:
        network: changed in place.
        path: of the checkpoint; None keeps the weights as they are, for training from scratch.
        device: where the network shall live.

    Returns:
        The network, in the mode that it was in.

    Raises:
        KWTLError: when the file is missing, is no checkpoint, belongs to another network, or holds NaN or infinity.
    """
    if path is None:
        return network.to(device)
    path = _existing_checkpoint(path)
    state = _read_checkpoint(path)
    for name in ("model", "network", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise KWTLError(f"{path} holds no state_dict; save the network's weights with torch.save(net.state_dict()).")
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys(), key=str) or [k for k in own if own[k].shape != state[k].shape]
    if wrong:
        raise KWTLError(
            f"{path} belongs to another network: {wrong[0]!r} {'is' if len(wrong) == 1 else 'and others are'} "
            f"not the same as in {type(network).__name__}; choose its checkpoint, or change network_def."
        )
    if broken := not_finite(state):
        raise KWTLError(
            f"{path} holds values that are not finite, first in {broken[0]!r}; its training diverged: choose another."
        )
    network.load_state_dict(state)
    return network.to(device)


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors of a state dict that hold NaN or infinity."""
    return [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"monai_kwtl": __version__} | {n: importlib.metadata.version(n) for n in ("monai", "torch", "numpy")}


class Place(NamedTuple):
    """Where a stage reads and writes."""

    dataset: Path
    output: Path


def place(dataset_dir: str | None, output_dir: str | None, stage: str) -> Place:
    """Return the data set and the output folder of a stage.

    Args:
        dataset_dir: folder of images; None stands for the simulated demo pool, which is made on first use.
        output_dir: folder for results; None is ``output/<name of the data set>/<stage>``.
        stage: name of the stage.

    Raises:
        KWTLError: when results would be written among the images, and be taken for images by the next run.
    """
    if dataset_dir is None:
        output = Path("output/demo", stage) if output_dir is None else Path(str(output_dir))
        pool = output.parent / "pool" if output_dir is None else output / "pool"
        make_demo_pool(pool)
        return Place(pool, output)
    dataset = Path(str(dataset_dir))
    name = dataset.resolve().name or "images"
    output = Path("output", name, stage) if output_dir is None else Path(str(output_dir))
    images = dataset / "images" if (dataset / "images").is_dir() else dataset
    if output.is_dir() and images.is_dir() and output.samefile(images) and _holds_images(images):
        raise KWTLError(f"{output} is the folder of the images themselves; choose another --output_dir.")
    return Place(dataset, output)


def _holds_images(folder: Path) -> bool:
    return any(has_suffix(path, SUFFIXES) for path in folder.iterdir())


def score_settings(
    settings: Mapping[str, Any], pool: Sequence[Mapping[str, Any]], device: torch.device, seed: int
) -> dict[str, Any]:
    """Everything that the scores of an image depend on besides the image itself, as JSON data.

    Args:
        settings: knobs and the hash of the weights.
        pool: its hashes count where the statistics of the network are fitted to it.
        device: what computes.
        seed: counts for MC-dropout only.
    """
    fitted = sorted((item["sha256"], item["page"] or 0) for item in pool) if settings["adapt_norm"] else []
    return {
        **settings,
        "versions": versions(),
        "device": device.type,
        "seed": seed if settings["measure"] == "mc_dropout" else None,
        "fitted_to": hashlib.sha256(repr(fitted).encode()).hexdigest(),
    }
