"""``kwtl doctor``: whether this installation works, and what to fix."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import tempfile
from collections.abc import Iterable, Iterator

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from monai_kwtl.bundle.paths import find_bundle
from monai_kwtl.errors import KWTLError
from monai_kwtl.networks.autocast import native_bfloat16
from monai_kwtl.networks.choice import load_network
from monai_kwtl.networks.device import choose_device
from monai_kwtl.utils.checks import NOTE, OK, WRONG, Check, print_checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the bundle is."""
    parser.add_argument("--bundle", default=None, help="folder of the bundle; default: that of this installation")


def _needed(package: str, extras: Iterable[str] = ("",)) -> Iterator[Requirement]:
    """What a package needs on this system, and what those packages need for the extras that it asks of them.

    ``pip check`` passes over extras.
    """
    try:
        found = map(Requirement, importlib.metadata.requires(package) or [])
    except importlib.metadata.PackageNotFoundError:
        return
    for requirement in found:
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement
            if requirement.extras:
                yield from _needed(requirement.name, requirement.extras)


def _looked_up(requirement: Requirement) -> Check:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return WRONG, requirement.name, f"is not installed: pip install '{_wanted(requirement)}'"
    fits = requirement.specifier.contains(version, prereleases=True)
    fix = "" if fits else f": pip install '{_wanted(requirement)}'"
    return OK if fits else WRONG, requirement.name, version + fix


def _wanted(requirement: Requirement) -> str:
    return str(requirement).split(";")[0].strip()


def packages() -> list[Check]:
    """Check that each package that monai-kwtl needs is installed in a version that it takes."""
    found: dict[str, Check] = {}
    for requirement in _needed("monai-kwtl"):
        check, name = _looked_up(requirement), canonicalize_name(requirement.name)
        if name not in found or check[0] == WRONG:
            found[name] = check
    return list(found.values())


def machine() -> list[Check]:
    """Report what computes, and whether results can be written here."""
    device = choose_device()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    fast = "bfloat16" if native_bfloat16(device) else "float32 (no native bfloat16)"
    found = [
        (OK, "Python", platform.python_version()),
        (OK if device.type == "cuda" else NOTE, "device", f"{device.type}, {where}, {fast}"),
    ]
    try:
        with tempfile.TemporaryFile(dir="."):
            found.append((OK, "current folder", "can be written"))
    except OSError as error:
        found.append((NOTE, "current folder", f"cannot be written ({error.strerror}): give --output_dir elsewhere"))
    return found


def bundle(given: str | None = None) -> list[Check]:
    """Whether the bundle, of this installation or as given, and its weights are there and belong together."""
    try:
        root = find_bundle(given)
    except KWTLError as error:
        return [(WRONG, "bundle", str(error))]
    weights = root / "models" / "model.pt"
    try:
        load_network(weights)
    except KWTLError as error:
        return [(OK, "bundle", str(root)), (WRONG, "weights", str(error))]
    return [(OK, "bundle", str(root)), (OK, "weights", str(weights))]


def run(options: argparse.Namespace) -> int:
    """Print a line for each check; status 1 where something is wrong."""
    return print_checks([*machine(), *packages(), *bundle(options.bundle)])
