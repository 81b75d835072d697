"""What every bundle config needs around its stage: one-line errors, checked knobs, the device and the weights."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import inspect
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
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import nn

from monai_kwtl import __version__
from monai_kwtl.errors import KWTLError
from monai_kwtl.synthetic import make_demo_pool

__all__ = [
    "bundle_root",
    "choose_device",
    "file_sha256",
    "is_main_process",
    "load_weights",
    "one_line_errors",
    "place",
    "reject_unknown_knobs",
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
        if isinstance(error, (KWTLError, OSError)):
            return text.strip().splitlines()[-1] if "Original Traceback" in text else " ".join(text.split())
        error = error.__cause__
    return None


def one_line_errors() -> None:
    """Print errors that the user can mend as one line instead of a traceback; the exit status stays 1.

    Those are :class:`KWTLError` and what the operating system refuses (``OSError``), also where MONAI wrapped them.
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


def _running(kind: type, variable: str) -> Any:
    """The innermost value of a local variable of that name and type among the callers; None where there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        value = frame.f_locals.get(variable)
        if isinstance(value, kind):
            return value
        frame = frame.f_back
    return None


def reject_unknown_knobs() -> None:
    """Raise for an override that the running config does not know, naming the nearest knob.

    MONAI accepts any ``--name value`` and goes on with the default of the knob that was meant. Called from a config's
    ``initialize``, this compares the keys of the running workflow with those of its files.

    Raises:
        KWTLError: for the first unknown key.
    """
    workflow = _running(ConfigWorkflow, "self")
    files = _running((str, list, tuple), "config_file")
    if workflow is None or files is None:
        return
    known = set(ConfigParser.load_config_files(files))
    given = {str(key) for key in workflow.parser.get()} - {"_meta_"}
    for key in sorted(given - known):
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean --{near[0]}?" if near else f"the knobs are described in {files} under _desc_."
        raise KWTLError(f"unknown option --{key}; {hint}")


def start() -> None:
    """Begin a stage: errors become one line, and unknown options are refused."""
    one_line_errors()
    reject_unknown_knobs()


def bundle_root() -> str:
    """Folder of the running bundle: that of the running config, else the current folder or ``bundles/kwtl``."""
    workflow = _running(ConfigWorkflow, "self")
    if workflow is not None:
        return str(Path(workflow.config_root_path).parent)
    return "." if os.path.isfile("configs/metadata.json") else "bundles/kwtl"


def true_or_false(value: Any, name: str) -> bool:
    """Return a knob as a truth value.

    Raises:
        KWTLError: for anything but true and false, their spellings in other cases, 0 and 1.
    """
    spelled = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in spelled:
        raise KWTLError(f"{name} must be true or false, got {value!r}.")
    return spelled[str(value).lower()]


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
        raise KWTLError(f"device {device!r} cannot be used here; use auto, cpu or cuda.") from error
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
        raise KWTLError(f"{path} is not a readable checkpoint (a state_dict saved by torch.save).") from error


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
    broken = [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if broken:
        raise KWTLError(f"{path} holds values that are not finite, first in {broken[0]!r}; its training diverged.")
    network.load_state_dict(state)
    return network.to(device)


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
    """
    if dataset_dir is None:
        output = Path("output/demo", stage) if output_dir is None else Path(str(output_dir))
        pool = output.parent / "pool" if output_dir is None else output / "pool"
        make_demo_pool(pool)
        return Place(pool, output)
    dataset = Path(str(dataset_dir))
    name = dataset.resolve().name or "images"
    return Place(dataset, Path("output", name, stage) if output_dir is None else Path(str(output_dir)))


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
