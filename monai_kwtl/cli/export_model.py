"""``kwtl export-model``: a trained network for Fiji, ilastik, QuPath and other programs."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from monai_kwtl.data.loading import read_image
from monai_kwtl.data.pool import load_pool
from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.bioimageio import MIN_SIDE, TEST_SIDE, check_about, write_model_package
from monai_kwtl.networks.choice import load_network
from monai_kwtl.networks.fcrn import FCRN
from monai_kwtl.synthetic import simulate
from monai_kwtl.utils.hashing import file_sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the weights, where the package goes, and what it says of itself."""
    parser.add_argument("weights", help="the .pt file that a training stage wrote")
    parser.add_argument("--output", required=True, help="the .zip to write")
    parser.add_argument("--force", action="store_true", help="replace the .zip if it is there")
    images = "folder of images; a part of the first, 256 pixels a side, goes into the package as its test image"
    parser.add_argument("--dataset_dir", default=None, help=f"{images}. Without it a simulated image does")
    parser.add_argument("--name", default="KWTL cell segmentation", help="of the model")
    parser.add_argument("--author", action="append", default=None, help="who made it; may be given several times")
    parser.add_argument("--license", default="Apache-2.0", help="SPDX identifier; default: %(default)s")


def _test_image(dataset_dir: str | None, stride: int) -> tuple[np.ndarray, str]:
    """Return a test image, uint8 (H, W), and what it is."""
    if dataset_dir is None:
        image, _ = simulate("fluorescence", TEST_SIDE, TEST_SIDE, np.random.default_rng(0))
        return image, "simulated"
    fits = (item for item in load_pool(dataset_dir) if min(item["height"], item["width"]) >= MIN_SIDE)
    item = next(fits, None)
    if item is None:
        raise KWTLError(f"no image in {dataset_dir} is {MIN_SIDE} pixels high and wide: leave out --dataset_dir.")
    image = read_image(item)[0]
    height, width = (min(TEST_SIDE, side // stride * stride) for side in image.shape)
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width], f"cut from the middle of {item['name']}"


def run(options: argparse.Namespace) -> int:
    """Write the package and say what it is for."""
    output = Path(options.output)
    if output.suffix.lower() != ".zip":
        raise KWTLError(f"--output must end in .zip, got {output}.")
    if output.exists() and not options.force:
        raise KWTLError(f"{output} is there already: choose another --output, or add --force.")
    authors = options.author or ["KWTL maintainers"]
    check_about(options.name, authors, options.license)
    network = load_network(options.weights)
    if not isinstance(network, FCRN):
        raise KWTLError(
            f"{options.weights} belongs to a {type(network).__name__}; only an FCRN can be exported so far."
        )
    image, test_image = _test_image(options.dataset_dir, network.stride)
    made = datetime.fromtimestamp(int(Path(options.weights).stat().st_mtime), timezone.utc)
    write_model_package(
        output,
        network,
        image,
        test_image=test_image,
        sha256=file_sha256(options.weights),
        timestamp=made.isoformat(),
        name=options.name,
        authors=authors,
        licence=options.license,
    )
    print(f"{output}: the network with a test image ({test_image}), for Fiji, ilastik and QuPath")
    print("the normalisation is that stored in the weights; the package says so, and how to scale images")
    return 0
