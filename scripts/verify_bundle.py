"""Checks a bundle as the MONAI model zoo would, without the network: one line a check, exit status 1 on a failure."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.data import load_net_with_metadata
from PIL import Image

import monai_kwtl

REQUIRED_FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/inference.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
MAX_FILE_BYTES = 25 * 1024 * 1024
CODE_SUFFIXES = {".py", ".pyc", ".pyi", ".ipynb", ".so"}

_TEXT = {"type": "string", "minLength": 1}
_VERSION = {"type": "string", "pattern": r"^\d+(\.\d+)+"}
_TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"],
    "properties": {
        "type": _TEXT,
        "format": _TEXT,
        "modality": _TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 2, "maxItems": 2},
        "dtype": _TEXT,
        "value_range": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": _TEXT},
    },
}
_TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": _TENSOR}
# What the zoo's metadata schema of 2024-07-25 asks for, and a little more that it only recommends.
METADATA_SCHEMA = {
    "type": "object",
    "required": [
        *("schema", "name", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "supported_apps", "task", "description", "authors", "copyright"),
        *("data_source", "data_type", "intended_use", "references", "network_data_format"),
    ],
    "properties": {
        "schema": {"type": "string", "pattern": r"meta_schema_20240725\.json$"},
        **{key: _VERSION for key in ("version", "monai_version", "pytorch_version", "numpy_version")},
        **{key: _TEXT for key in ("name", "task", "description", "authors", "copyright")},
        **{key: _TEXT for key in ("data_source", "data_type", "image_classes", "label_classes", "pred_classes")},
        "intended_use": _TEXT,
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": _TEXT},
        "required_packages_version": {"type": "object", "additionalProperties": _VERSION},
        "supported_apps": {"type": "object"},
        "eval_metrics": {"type": "object"},
        "references": {"type": "array", "items": _TEXT},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": _TENSORS, "outputs": _TENSORS, "post_processed_outputs": _TENSORS},
        },
    },
}


class BundleError(Exception):
    """A check that did not pass; the message says what is wrong."""


def check_files(bundle: Path, with_train: bool) -> str:
    """Check that every file that the zoo and MONAI Label ask for is there."""
    wanted = [*REQUIRED_FILES, *(["configs/train.json"] if with_train else [])]
    missing = [name for name in wanted if not (bundle / name).is_file()]
    if missing:
        raise BundleError(f"missing: {', '.join(missing)}")
    return f"{len(wanted)} files"


def check_sizes(bundle: Path) -> str:
    """Check that no file is larger than the zoo stores."""
    sizes = {path: path.stat().st_size for path in bundle.rglob("*") if path.is_file()}
    large = [path.relative_to(bundle).as_posix() for path, size in sizes.items() if size > MAX_FILE_BYTES]
    if large:
        raise BundleError(f"larger than 25 MB: {', '.join(sorted(large))}")
    return f"largest {max(sizes.values(), default=0) / 2**20:.1f} MB"


def check_no_code(bundle: Path) -> str:
    """Check that configs name components of installed packages and that the bundle itself holds no code."""
    code = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.suffix in CODE_SUFFIXES)
    if code:
        raise BundleError(f"code inside the bundle: {', '.join(code)}")
    return "configs and text only"


def check_json_layout(bundle: Path) -> str:
    """Check that every JSON file is written with an indent of 4, without duplicate keys."""
    files = sorted(bundle.rglob("*.json"))
    for path in files:
        name = path.relative_to(bundle).as_posix()
        text = path.read_text(encoding="utf-8")
        try:
            # numbers keep the way they are written (1e-4), so only the layout is compared
            content = json.loads(text, parse_float="\0{}".format, object_pairs_hook=_unique_keys)
        except ValueError as error:
            raise BundleError(f"{name}: {error}") from error
        layouts = (json.dumps(content, indent=4, ensure_ascii=ascii_) for ascii_ in (True, False))
        if text.rstrip("\n") not in {re.sub(r'"\\u0000([^"]*)"', r"\1", layout) for layout in layouts}:
            raise BundleError(f"{name}: not laid out with an indent of 4 (one item a line)")
    return f"{len(files)} files"


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"key {key!r} is there twice")
    return dict(pairs)


def check_version(bundle: Path) -> str:
    """Check that the version is the package's and has an entry in the changelog."""
    metadata = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    version = metadata["version"]
    if version not in metadata["changelog"]:
        raise BundleError(f"version {version} has no entry in the changelog")
    if version != monai_kwtl.__version__:
        raise BundleError(f"version {version} differs from the package's, {monai_kwtl.__version__}")
    return version


def check_metadata(bundle: Path, scratch: Path) -> str:
    """Run MONAI's own verify_metadata, with our statement of the zoo's schema in place of the download."""
    schema = scratch / "schema.json"
    text = json.dumps(METADATA_SCHEMA).encode()
    schema.write_bytes(text)
    # a file that is there already, with the right hash, is not downloaded
    verify_metadata(
        meta_file=str(bundle / "configs/metadata.json"),
        filepath=str(schema),
        hash_val=hashlib.sha256(text).hexdigest(),
        hash_type="sha256",
    )
    return "follows the schema of 2024-07-25"


def check_properties(bundle: Path, scratch: Path, config: str, workflow_type: str) -> str:
    """Check that the config defines the ids that MONAI's tools look for, and that each of them can be built."""
    data = _make_data(scratch / "data")
    path = bundle / "configs" / config
    options = json.loads(path.read_text(encoding="utf-8"))
    wanted = {"dataset_dir": str(data), "labels": str(data / "labels"), "output_dir": str(scratch / f"out_{config}")}
    with _chdir(bundle):
        workflow = ConfigWorkflow(
            config_file=f"configs/{config}",
            workflow_type=workflow_type,
            **{key: value for key, value in wanted.items() if key in options},
        )
        ids = {prop["id"] for prop in workflow.properties.values() if prop["required"]}
        missing = sorted(id_ for id_ in ids if id_ not in workflow.parser)
        if missing:
            raise BundleError(f"{config} does not define {', '.join(missing)}")
        workflow.initialize()
        wrong = workflow.check_properties()
        if wrong:
            raise BundleError(f"{config} defines these properties under another id: {', '.join(wrong)}")
    return f"{len(ids)} ids"


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    # contextlib.chdir needs Python 3.11
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _make_data(folder: Path) -> Path:
    """Write two images of bright discs and their masks, so that data sets can be built."""
    if not folder.exists():
        rows, columns = np.mgrid[:256, :320]
        for index in range(2):
            disc = (rows - 90 - 40 * index) ** 2 + (columns - 150) ** 2 < 50**2
            for name, pixels in (("images", 60 + 120 * disc), ("labels", 255 * disc)):
                (folder / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:02d}.png")
    return folder


def check_weights(bundle: Path) -> str:
    """Check that models/model.pt is a plain state dict, read without running code, and fits network_def."""
    state = torch.load(bundle / "models/model.pt", map_location="cpu", weights_only=True)
    network = _network(bundle)
    network.load_state_dict(state)
    return f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def _network(bundle: Path) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    parser.read_meta(str(bundle / "configs/metadata.json"))
    parser["bundle_root"] = str(bundle)
    return parser.get_parsed_content("network_def").cpu().eval()


def check_net_in_out(bundle: Path) -> str:
    """Check that channels and dtypes of network_def are those that the metadata states."""
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        device="cpu",
        bundle_root=str(bundle),
    )
    return "as in network_data_format"


def check_torchscript(bundle: Path, scratch: Path) -> str:
    """Check that the weights export to TorchScript, which computes the same, at an odd size too."""
    target = scratch / "model.ts"
    ckpt_export(
        net_id="network_def",
        filepath=str(target),
        ckpt_file=str(bundle / "models/model.pt"),
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
    )
    exported = load_net_with_metadata(str(target))[0].eval()
    network = _network(bundle)
    network.load_state_dict(torch.load(bundle / "models/model.pt", map_location="cpu", weights_only=True))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for height, width in ((256, 256), (123, 77)):
            image = torch.rand(1, 1, height, width, generator=generator) * 2 - 1
            if not torch.allclose(exported(image), network(image), atol=1e-4):
                raise BundleError(f"the exported network computes something else at {height} x {width}")
    return "same output at 256 x 256 and 123 x 77"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence third-party logging and warnings, and put the logging handlers back afterwards."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost error: MONAI wraps what went wrong in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line if isinstance(error, BundleError) else f"{type(error).__name__}: {line}"


def verify(bundle: Path, with_train: bool = True) -> int:
    """Run every check on a copy of a bundle, and print one line each and a closing summary.

    Args:
        bundle: the bundle's folder.
        with_train: whether configs/train.json is asked for.

    Returns:
        The number of checks that failed.
    """
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder).resolve()
        # A copy elsewhere: the bundle must work alone, and nothing is written into the original.
        copy = scratch / bundle.resolve().name
        shutil.copytree(bundle, copy)
        checks: list[tuple[str, Callable[[], str]]] = [
            ("required files", lambda: check_files(copy, with_train)),
            ("file sizes", lambda: check_sizes(copy)),
            ("no code", lambda: check_no_code(copy)),
            ("JSON layout", lambda: check_json_layout(copy)),
            ("version and changelog", lambda: check_version(copy)),
            ("verify_metadata", lambda: check_metadata(copy, scratch)),
            ("ids of inference.json", lambda: check_properties(copy, scratch, "inference.json", "infer")),
            ("model.pt", lambda: check_weights(copy)),
            ("verify_net_in_out", lambda: check_net_in_out(copy)),
            ("ckpt_export", lambda: check_torchscript(copy, scratch)),
        ]
        if with_train:
            checks.append(("ids of train.json", lambda: check_properties(copy, scratch, "train.json", "train")))
        for name, check in checks:
            try:
                with _quiet():
                    detail, verdict = check(), "ok  "
            except Exception as error:  # whatever breaks inside MONAI is a finding about the bundle
                detail, verdict = _reason(error), "FAIL"
                failed += 1
            print(f"{verdict}  {name:<24}{detail.replace(str(copy), bundle.name)}", flush=True)
    print(f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, verify, and return the exit status."""
    parser = argparse.ArgumentParser(prog="verify_bundle.sh", description=__doc__)
    default = Path(__file__).resolve().parent.parent / "bundles/kwtl"
    parser.add_argument("bundle", nargs="?", type=Path, default=default, help="the bundle's folder (bundles/kwtl)")
    parser.add_argument("--without-train", action="store_true", help="do not ask for configs/train.json")
    options = parser.parse_args(arguments)
    if not options.bundle.is_dir():
        print(f"{options.bundle} is not a folder: name the bundle's folder.", file=sys.stderr)
        return 1
    return int(verify(options.bundle, not options.without_train) > 0)


if __name__ == "__main__":
    sys.exit(main())
