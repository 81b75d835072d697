"""What every bundle config needs around its stage: one-line errors, checked knobs, the device and the weights."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from monai_kwtl import __version__
from monai_kwtl.allocator import keep_freed_memory
from monai_kwtl.distributed import connect, is_main_process, joined, local_rank, on_main_process, started_together
from monai_kwtl.errors import KWTLError, true_or_false
from monai_kwtl.failures import message_for_user, one_line_errors
from monai_kwtl.knobs import check_command_line, command_line
from monai_kwtl.readers import SUFFIXES, has_suffix
from monai_kwtl.synthetic import make_demo_pool

__all__ = [
    "bundle_root",
    "choose_device",
    "file_sha256",
    "is_main_process",
    "load_weights",
    "message_for_user",
    "not_finite",
    "one_line_errors",
    "place",
    "project_folder",
    "score_settings",
    "scoring_settings",
    "start",
    "start_sha256",
    "true_or_false",
    "versions",
]


FROM_SCRATCH = (None, "random")


def start(several: bool = False) -> None:
    """Begin a stage.

    In a process of ``python -m monai.bundle`` errors become one line, and options that are unknown or make no sense are
    refused; in Python :class:`monai_kwtl.workflow.StageWorkflow` does the latter, and the process stays as it is.

    Args:
        several: whether the configuration is one for several processes.

    Raises:
        KWTLError: for such an option, or where ``torchrun`` has started several processes of a stage for one: each
            would do all the work, and all would write the same files.
    """
    if command_line() is not None:
        one_line_errors()
    if several or started_together() > 1:
        connect()
    if started_together() > 1 and not (several or joined()):
        raise KWTLError(
            f"this was started as {started_together()} processes, but the configuration is for one: add the stage's "
            "multi_gpu file, where it has one, to --config_file (\"['a.json', 'multi_gpu_a.json']\"), or start it "
            "without torchrun."
        )
    check_command_line()
    keep_freed_memory()


def bundle_root() -> str:
    """Return the folder of the bundle: that of the command line's config, else the current one or ``bundles/kwtl``.

    A ``StageWorkflow`` knows its own, and does not ask.
    """
    files = (command_line() or {}).get("config_file")
    if files:
        return str(Path(files if isinstance(files, str) else files[0]).parent.parent)
    return "." if os.path.isfile("configs/metadata.json") else "bundles/kwtl"


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on; ``auto`` is CUDA where there is one, else the CPU.

    Of several processes on one machine each takes a GPU of its own.

    Raises:
        KWTLError: for a device that torch does not know or that is not there, and for one GPU for several processes.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if str(device) == "auto" else str(device)
    if started_together() > 1 and name.startswith("cuda") and torch.cuda.is_available():
        if name not in ("cuda", f"cuda:{local_rank()}"):
            raise KWTLError(f"device {name!r} is one GPU, but there are several processes; use cuda: each takes one.")
        if local_rank() >= torch.cuda.device_count():
            raise KWTLError(
                f"there are more processes than GPUs ({torch.cuda.device_count()}); give torchrun a smaller "
                "--nproc_per_node, or use --device cpu."
            )
        name = f"cuda:{local_rank()}"
    try:
        chosen = torch.device(name)
        if str(device) != "auto":
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


def start_sha256(path: str | os.PathLike | None) -> str | None:
    """:func:`file_sha256` of start weights; None where a training begins with random ones."""
    return None if path in FROM_SCRATCH else file_sha256(path)


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
        path: of the checkpoint; None or ``random`` keeps the weights as they are, for training from scratch. (On a
            command line None does not count as given.)
        device: where the network shall live.

    Returns:
        The network, in the mode that it was in.

    Raises:
        KWTLError: when the file is missing, is no checkpoint, belongs to another network, or holds NaN or infinity.
    """
    if path in FROM_SCRATCH:
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


def place(dataset_dir: str | None, output_dir: str | None, stage: str, further: bool = False) -> Place:
    """Return the data set and the output folder of a stage.

    Args:
        dataset_dir: folder of images; None stands for the simulated demo pool, which is made on first use.
        output_dir: folder for results; None is ``output/<name of the data set>/<stage>``.
        stage: name of the stage.
        further: whether this is a further round of the stage: without an ``output_dir`` its folder is the first of
            ``<stage>_2``, ``<stage>_3``, ... that holds no selection yet.

    Raises:
        KWTLError: when results would be written among the images, and be taken for images by the next run.
    """
    if dataset_dir is None:
        output = Path("output/demo", stage) if output_dir is None else Path(str(output_dir))
        pool = output.parent / "pool" if output_dir is None else output / "pool"
        on_main_process(partial(make_demo_pool, pool))
        return Place(pool, output)
    dataset = Path(str(dataset_dir))
    name = dataset.resolve().name or "images"
    output = Path("output", name, stage) if output_dir is None else Path(str(output_dir))
    if further and output_dir is None:
        folders = (output.with_name(f"{stage}_{number}") for number in count(2))
        output = next(folder for folder in folders if not (folder / "selection.json").exists())
    images = dataset / "images" if (dataset / "images").is_dir() else dataset
    if output.is_dir() and images.is_dir() and output.samefile(images) and _holds_images(images):
        raise KWTLError(f"{output} is the folder of the images themselves; choose another --output_dir.")
    return Place(dataset, output)


def project_folder(place: Place, project: bool | str = True) -> Path | None:
    """Return the folder whose ``project.json`` a stage reads and writes; None where ``project`` is false."""
    return place.dataset if true_or_false(project, "project") else None


def _holds_images(folder: Path) -> bool:
    return any(has_suffix(path, SUFFIXES) for path in folder.iterdir())


def scoring_settings(inferer: Any, adapter: Any, weights: str | os.PathLike) -> dict[str, Any]:
    """Return how windows are scored, as ``selection.json`` says it.

    Args:
        inferer: the :class:`~monai_kwtl.window_inferer.WindowScoreInferer`.
        adapter: the :class:`~monai_kwtl.adaptation.BatchNormAdapter` that has the network.
        weights: path of its weights.
    """
    scorer = inferer.scorer
    return {
        "network": type(adapter.network).__name__,
        "model_sha256": file_sha256(weights),
        "adapt_norm": adapter.adapt,
        "rescale": adapter.rescale,
        "measure": scorer.measure,
        "views": scorer.kind_of_views,
        "psi": scorer.psi,
        "weighted": scorer.weighted,
        "window": inferer.window,
        "step": inferer.step,
        "contrast": inferer.contrast,
        "exact": inferer.exact,
        "computed_by": scorer.inferer.arithmetic(adapter.device),
    }


def score_settings(
    settings: Mapping[str, Any], pool: Sequence[Mapping[str, Any]], device: torch.device, seed: int
) -> dict[str, Any]:
    """Return everything that the scores of an image depend on besides the image itself, as JSON data.

    Args:
        settings: knobs, the hash of the weights, and what computes.
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
