"""A trained network as a package of bioimage.io, for Fiji, ilastik, QuPath and whatever else reads those."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from monai_kwtl import __version__
from monai_kwtl.errors import KWTLError
from monai_kwtl.inferers.tiled import TiledInferer
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.utils.atomic import atomic_write

__all__ = ["check_about", "predict", "torchscript", "write_model_package"]

FORMAT_VERSION = "0.5.3"  # nothing of later 0.5 is used, so that programs of some years' standing read it as well
HALO = 24  # pixels: FCRN's prediction of a pixel reaches 23, and tiles should start at multiples of its stride
MIN_SIDE = 64  # pixels: more than two halos
TEST_SIDE = 256  # pixels, of the test image at most
TOLERANCE = 1e-3  # of probabilities, between machines and versions of PyTorch

CITE = [
    {
        "text": "Dawoud, Y., Bouazizi, A., Ernst, K., Carneiro, G. and Belagiannis, V. Knowing What to Label for Few "
        "Shot Microscopy Image Cell Segmentation. Winter Conference on Applications of Computer Vision, 2023.",
        "doi": "10.48550/arXiv.2211.10244",
    },
    {
        "text": "Xie, W., Noble, J. A. and Zisserman, A. Microscopy cell counting and detection with fully "
        "convolutional regression networks. Computer Methods in Biomechanics and Biomedical Engineering 6(3), 2018.",
        "doi": "10.1080/21681163.2016.1149104",
    },
]


def check_about(name: str, authors: Sequence[str], licence: str) -> None:
    """Find out before the work whether bioimage.io takes what a package says of itself.

    Args:
        name: of the model.
        authors: their names.
        licence: SPDX identifier.

    Raises:
        KWTLError: when it does not.
    """
    if not re.fullmatch(r"[A-Za-z0-9_+\- ()]{5,128}", name):
        raise KWTLError(f"--name must be 5 to 128 letters, digits, spaces, _, +, - and brackets, got {name!r}.")
    wrong = [author for author in authors if not author.strip() or not author.isprintable() or "/" in author]
    if wrong or not authors:
        raise KWTLError(f"--author must be a name without slashes, got {wrong[0] if wrong else ''!r}.")
    if not re.fullmatch(r"[A-Za-z0-9.+-]{2,64}", licence):
        raise KWTLError(f"--license must be an SPDX identifier such as Apache-2.0 or CC-BY-4.0, got {licence!r}.")


def predict(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Predict probabilities as the inference stage does, in float32, without fitting the statistics anew.

    Args:
        network: in any mode; left in evaluation mode.
        image: uint8, shape (H, W).

    Returns:
        float32 in [0, 1], shape (H, W).
    """
    with torch.inference_mode():
        inputs = (torch.from_numpy(image.astype(np.float32)) / 255 - 0.5) / 0.5
        return torch.sigmoid(TiledInferer()(inputs[None, None], network.eval()))[0, 0].numpy()


def torchscript(network: torch.nn.Module) -> bytes:
    """Return the network as TorchScript that takes images of any size.

    What TorchScript keeps for debugging, such as the paths of the sources on this machine, is left out.

    Args:
        network: on the CPU; left in evaluation mode.
    """
    buffer, clean = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what reads these packages reads TorchScript
        torch.jit.save(torch.jit.script(network.eval()), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(clean, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return clean.getvalue()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _cover(image: np.ndarray, probability: np.ndarray) -> bytes:
    """Draw the test image beside its prediction, as bioimage.io likes covers: twice as wide as high."""
    halves = [image, np.rint(probability * 255).astype(np.uint8)]
    pictures = [Image.fromarray(half).resize((TEST_SIDE, TEST_SIDE), Image.Resampling.BICUBIC) for half in halves]
    buffer = io.BytesIO()
    Image.fromarray(np.hstack([np.asarray(picture) for picture in pictures])).save(buffer, format="PNG")
    return buffer.getvalue()


def _axes(channel: str, sides: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "batch"},
        {"type": "channel", "channel_names": [channel]},
        *({"type": "space", "id": axis, **size} for axis, size in sides.items()),
    ]


def _tensors(stride: int) -> dict[str, Any]:
    """Describe input and output as rdf.yaml does; their test tensors are missing."""
    size = {"size": {"min": MIN_SIDE, "step": stride}}
    same = {axis: {"size": {"tensor_id": "image", "axis_id": axis}, "halo": HALO} for axis in "yx"}
    return {
        "inputs": [
            {
                "id": "image",
                "description": "luminance from 0 (black) to 255 (white)",
                "axes": _axes("luminance", {"y": size, "x": size}),
                # not uint8, so that no reader makes 16 bit images fit by dropping their upper bits
                "data": {"type": "float32", "range": [0, 255]},
                "preprocessing": [{"id": "scale_linear", "kwargs": {"gain": 1 / 127.5, "offset": -1.0}}],
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "description": "probability of each pixel to be cell",
                "axes": _axes("cell", same),
                "data": {"type": "float32", "range": [0, 1]},
                "postprocessing": [{"id": "sigmoid"}],
            }
        ],
    }


def _reference(name: str, content: bytes) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256(content).hexdigest()}


def write_model_package(
    path: str | os.PathLike,
    network: FCRN,
    image: np.ndarray,
    *,
    test_image: str,
    sha256: str,
    timestamp: str,
    name: str,
    authors: Sequence[str],
    licence: str,
) -> Path:
    """Write a network as a zip that bioimage.io's tools read.

    In it are ``rdf.yaml`` (format 0.5), the weights as TorchScript and as state dict with the source of the network,
    a test image with its output, a cover and a page of documentation. The statistics of batch normalisation are those
    of the network.

    Args:
        path: of the zip; replaced when it is complete.
        network: with its weights, on the CPU; left in evaluation mode.
        image: uint8 (H, W), for the test, both sides a multiple of the stride and at least ``MIN_SIDE``.
        test_image: what the documentation says it is.
        sha256: of the file with the weights.
        timestamp: when the weights were made, ISO 8601.
        name: of the model, see :func:`check_about`, as for the next two.
        authors: names of those who made it.
        licence: SPDX identifier.

    Returns:
        The path.

    Raises:
        KWTLError: when what it says of itself is not taken, the TorchScript gives another result, or the zip cannot be
            written.
    """
    check_about(name, authors, licence)
    probability = predict(network, image)
    script = torchscript(network)
    difference = float(np.abs(predict(torch.jit.load(io.BytesIO(script)), image) - probability).max())
    if not difference <= TOLERANCE / 10:
        raise KWTLError(f"the exported network differs from the original by {difference:.2g}; nothing was written.")
    state = io.BytesIO()
    torch.save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, state)
    facts = {"version": __version__, "torch_version": torch.__version__.split("+")[0]}
    page = files("monai_kwtl.exchange").joinpath("model_package.md").read_text(encoding="utf-8")
    text = page.format(name=name, sha256=sha256, test_image=test_image, halo=HALO, min_side=MIN_SIDE, **facts)
    contents = {
        "README.md": text.encode(),
        "cover.png": _cover(image, probability),
        "test_input.npy": _npy(image[None, None].astype(np.float32)),
        "test_output.npy": _npy(probability[None, None]),
        "networks.py": files("monai_kwtl.networks").joinpath("fcrn.py").read_bytes(),
        "environment.yaml": _environment(),
        "weights.pt": state.getvalue(),
        "weights-torchscript.pt": script,
    }
    tensors = _tensors(network.stride)
    tensors["inputs"][0]["test_tensor"] = _reference("test_input.npy", contents["test_input.npy"])
    tensors["outputs"][0]["test_tensor"] = _reference("test_output.npy", contents["test_output.npy"])
    description = {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": name,
        "description": "Segments cells in microscopy images; tuned on the few regions that were most worth labelling.",
        "authors": [{"name": author} for author in authors],
        "license": licence,
        "cite": CITE,
        "tags": ["segmentation", "cells", "nuclei", "2d", "microscopy", "few-shot", "active-learning", "kwtl"],
        "documentation": "README.md",
        "covers": ["cover.png"],
        "timestamp": timestamp,
        **tensors,
        "weights": {
            "pytorch_state_dict": {
                **_reference("weights.pt", contents["weights.pt"]),
                "architecture": {
                    **_reference("networks.py", contents["networks.py"]),
                    "callable": "FCRN",
                    "kwargs": {name: value for name, value in network.definition.items() if name != "_target_"},
                },
                "pytorch_version": facts["torch_version"],
                "dependencies": {"source": "environment.yaml"},
            },
            "torchscript": {
                **_reference("weights-torchscript.pt", script),
                "pytorch_version": facts["torch_version"],
                "parent": "pytorch_state_dict",
            },
        },
        "config": {
            "bioimageio": {
                "reproducibility_tolerance": [{"relative_tolerance": TOLERANCE, "absolute_tolerance": TOLERANCE}]
            },
            "kwtl": {"version": __version__, "weights_sha256": sha256},
        },
    }
    rdf = yaml.safe_dump(description, sort_keys=False, allow_unicode=True, width=100)
    with atomic_write(path, "choose another --output") as unfinished, zipfile.ZipFile(unfinished, "w") as package:
        for file, content in {"rdf.yaml": rdf.encode(), **contents}.items():
            package.writestr(zipfile.ZipInfo(file), content, zipfile.ZIP_DEFLATED)  # no times: the same bytes again
    return Path(path)


def _environment() -> bytes:
    """Write the environment that the state dict needs, in conda's format."""
    pip = [f"torch=={torch.__version__.split('+')[0]}", f"monai=={version('monai')}"]
    return yaml.safe_dump({"channels": ["conda-forge"], "dependencies": ["python>=3.10", "pip", {"pip": pip}]}).encode()
