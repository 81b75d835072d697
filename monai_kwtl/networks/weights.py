"""Weights of a network: read from a checkpoint with care, and saved whole or not at all."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.utils.atomic import atomic_write
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["existing_checkpoint", "load_weights", "not_finite", "save_atomically", "start_sha256"]

FROM_SCRATCH = (None, "random")


def start_sha256(path: str | os.PathLike | None) -> str | None:
    """Return the SHA-256 of start weights; None where a training begins with random ones.

    Raises:
        KWTLError: when there is no such file.
    """
    return None if path in FROM_SCRATCH else file_sha256(existing_checkpoint(path))


def existing_checkpoint(path: str | os.PathLike) -> Path:
    """Return the path of a checkpoint that is there.

    Raises:
        KWTLError: when it is not.
    """
    if not Path(path).is_file():
        raise KWTLError(f"there is no checkpoint at {path}; give the path of a .pt file with --ckpt.")
    return Path(path)


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
    path = existing_checkpoint(path)
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
    """Return the names of the tensors of a state dict that hold NaN or infinity."""
    return [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def save_atomically(state: Any, path: str | os.PathLike) -> None:
    """Save with ``torch.save`` beside the final name, then rename: a reader sees the old file or the new, whole.

    Raises:
        KWTLError: when it cannot be written; what was there before is untouched.
    """
    with atomic_write(path) as unfinished:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as stream:
            try:
                torch.save(state, stream)
            except RuntimeError as error:  # of a full disk torch says that it came to an unexpected place in the file
                raise (error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error))) from error
