"""The network that weights belong to: written beside them as a note, and built from it, out of a closed list."""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks import nets
from torch import nn

from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.networks.weights import FROM_SCRATCH, load_weights
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["grey_range", "has_latent", "load_network", "make_network", "network_for", "network_note", "read_network"]

logger = logging.getLogger("monai_kwtl")

_OWN = {"monai_kwtl.networks.fcrn.FCRN": FCRN}
_MONAI = "monai.networks.nets"
_PROBE = (1, 1, 64, 64)


def _class_of(name: Any) -> type[nn.Module]:
    module, _, last = str(name).rpartition(".")
    found = _OWN.get(str(name), getattr(nets, last, None) if module == _MONAI else None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise KWTLError(f"no network is called {str(name)[:80]!r}; use {', '.join(_OWN)} or a class of {_MONAI}.")
    return found


def _check_plain(value: Any, where: str) -> None:
    """Raise unless a value is plain data: what MONAI would evaluate or build is not."""
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        raise KWTLError(f"{where} is {value[:40]!r}: an argument of a network is a value, not an expression.")
    if isinstance(value, Mapping):
        for key, each in value.items():
            if not isinstance(key, str) or key.startswith("_"):
                raise KWTLError(f"{where} holds {str(key)[:40]!r}: an argument of a network is a value.")
            _check_plain(each, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_plain(each, where)
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        raise KWTLError(f"{where} is {value!r}: an argument of a network is plain data.")


def make_network(name: str, **arguments: Any) -> nn.Module:
    """Make a network that says which one it is, so that it can be written beside its weights.

    In a config it is the ``_target_`` of ``network_def``, with the name of the network and its arguments.

    Args:
        name: ``monai_kwtl.networks.fcrn.FCRN``, or a class of MONAI such as ``monai.networks.nets.BasicUNet``.
        arguments: of the class, as plain data. Those that would fetch weights of somebody else are refused.

    Returns:
        The network, with ``definition``, its name under ``_target_`` and its arguments.

    Raises:
        KWTLError: for another name, or arguments that the class does not take.
    """
    kind = _class_of(name)
    _check_plain(arguments, name)
    fetching = [key for key in inspect.signature(kind).parameters if "pretrained" in key]
    if asked := [key for key in arguments if ("pretrained" in key or "url" in key) and arguments[key]]:
        raise KWTLError(f"{name}: {asked[0]} would fetch weights, which nothing here does; leave it out.")
    try:
        network = kind(**{**dict.fromkeys(fetching, False), **arguments})
    except Exception as error:  # MONAI's classes check their arguments in many ways
        raise KWTLError(f"{name} cannot be made with these arguments: {str(error).splitlines()[0][:120]}") from error
    network.definition = {"_target_": name, **arguments}
    return network


def network_note(network: nn.Module, rescale: Sequence[float] | None = None) -> dict[str, Any] | None:
    """Return what is to be noted beside weights under ``network``.

    Args:
        network: an FCRN, or made by :func:`make_network`.
        rescale: grey range that it was trained with, as in ``read_image``.

    Returns:
        ``definition``, ``in_channels`` and ``rescale``, as JSON data; None for a network that does not say what it is.
    """
    definition = getattr(network, "definition", None)
    if definition is None:
        return None
    definition = json.loads(json.dumps(definition))
    scale = None if rescale is None else [float(limit) for limit in rescale]
    return {"definition": definition, "in_channels": definition.get("in_channels", 1), "rescale": scale}


def read_network(path: str | os.PathLike | None) -> dict[str, Any] | None:
    """Read what :func:`network_note` wrote beside weights.

    Args:
        path: of the weights; the note is the ``.json`` of the same name.

    Returns:
        As of :func:`network_note`; None where there is no note, it says nothing of the network, or is of other weights.

    Raises:
        KWTLError: for a note that is not of that form, or names an unknown network; the weights are not there.
    """
    if path is None or path in FROM_SCRATCH:
        return None
    note_path = Path(path).with_suffix(".json")
    try:
        note = json.loads(note_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        logger.warning(f"{note_path} cannot be read ({error}), and does not say which network {path} belongs to")
        return None
    found = note.get("network") if isinstance(note, dict) else None
    if not isinstance(found, dict) or not Path(path).is_file() or note.get("sha256") != file_sha256(path):
        return None
    definition, scale = found.get("definition"), found.get("rescale")
    numbers = scale is None or (isinstance(scale, list) and all(type(each) in (int, float) for each in scale))
    if not isinstance(definition, dict) or not numbers:
        raise KWTLError(f"{note_path}: network must hold a definition and a rescale of numbers; fix it or remove it.")
    _class_of(definition.get("_target_"))
    _check_plain({key: value for key, value in definition.items() if key != "_target_"}, str(note_path))
    return {"definition": definition, "in_channels": found.get("in_channels", 1), "rescale": scale}


def network_for(path: str | os.PathLike | None, network: nn.Module | None = None) -> nn.Module:
    """Return the network that weights belong to, without them.

    Args:
        path: of the weights.
        network: taken where no note beside the weights tells; None: an FCRN with one channel in and out.

    Raises:
        KWTLError: as of :func:`read_network`, and for a network of other channels or another output.
    """
    note = read_network(path)
    if note is None:
        return FCRN(spatial_dims=2, in_channels=1, out_channels=1) if network is None else network
    definition = dict(note["definition"])
    if getattr(network, "definition", None) == definition:
        return network
    made = make_network(definition.pop("_target_"), **definition)
    with torch.no_grad():
        try:
            output = made.eval()(torch.zeros(_PROBE))
        except Exception:  # what a network does with an input it was not made for is its own affair
            output = None
    if not isinstance(output, torch.Tensor) or output.shape != _PROBE:
        raise KWTLError(f"{path} belongs to a {type(made).__name__} that does not make one map of logits of one image.")
    return made.train()


def load_network(
    path: str | os.PathLike | None, network: nn.Module | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Return the network of a file of weights, with the weights, on a device.

    Args:
        path: of the weights, see :func:`monai_kwtl.networks.weights.load_weights`.
        network: as of :func:`network_for`.
        device: where it shall live.

    Raises:
        KWTLError: as of both.
    """
    return load_weights(network_for(path, network), path, device)


def grey_range(rescale: Sequence[float] | None, path: str | os.PathLike | None) -> Sequence[float] | None:
    """Return the grey range of 16 bit and float images: as given, else as noted beside weights, else None."""
    if rescale is not None:
        return rescale
    note = read_network(path)
    return None if note is None else note["rescale"]


def has_latent(network: nn.Module) -> bool:
    """Return whether windows can be described by what a network computes on the way."""
    return all(hasattr(network, part) for part in ("features", "decoder", "head", "stride"))
