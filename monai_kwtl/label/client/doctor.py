"""Checks of an installation of the label server, and how to fix it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

from monai_kwtl.errors import KWTLError
from monai_kwtl.label.client.client import LabelServer
from monai_kwtl.label.settings import read_settings
from monai_kwtl.label.state.database import SIDECAR_NAME, Sidecar
from monai_kwtl.label.state.studies import Studies
from monai_kwtl.networks.choice import load_network
from monai_kwtl.utils.checks import NOTE, OK, WRONG, Check

__all__ = ["checks"]

SETUP = "run scripts/label_setup.sh again"
# what MONAI Label's server imports when it starts; the names of the packages where they differ
NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "pydantic_settings": "pydantic-settings",
    "multipart": "python-multipart",
    "schedule": "schedule",
    "dicomweb_client": "dicomweb-client",
    "timeloop": "timeloop",
    "expiringdict": "expiringdict",
    "cachetools": "cachetools",
    "watchdog": "watchdog",
    "pydicom": "pydicom",
    "SimpleITK": "SimpleITK",
    "nrrd": "pynrrd",
    "girder_client": "girder-client",
    "passlib": "passlib",
    "jwt": "pyjwt",
    "requests_toolbelt": "requests-toolbelt",
    "itk": "itk",
}
TESTED = "0.8.5"


def packages() -> list[Check]:
    """Check that MONAI Label is there, in the tested version, with what it imports."""
    found: list[Check] = []
    version = importlib.metadata.version("monailabel")
    same = Version(version).base_version == TESTED
    detail = version if same else f"{version}, tested with {TESTED}: pip install --no-deps monailabel=={TESTED}"
    found.append((OK if same else NOTE, "monailabel", detail))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    tested = (3, 10) <= sys.version_info[:2] <= (3, 11)
    note = python if tested else f"{python}; MONAI Label {TESTED} was tested on 3.10 and 3.11"
    found.append((OK if tested else NOTE, "Python", note))
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            found.append((WRONG, package, f"is not installed: {SETUP}"))
    if importlib.util.find_spec("pydicom_seg") is None:
        found.append((WRONG, "pydicom_seg", f"its stand-in is missing, without which the server cannot start: {SETUP}"))
    return found


def server_starts() -> Check:
    """Check that the server's program can be imported, in a process of its own."""
    command = [sys.executable, "-c", "import monailabel.app, monai_kwtl.label.app"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return OK, "server", "its program can be loaded"
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
    return WRONG, "server", f"its program cannot be loaded ({reason}): {SETUP}"


def studies_checks(folder: str) -> list[Check]:
    """Check that a folder of images can be labelled."""
    found: list[Check] = []
    try:
        items = Studies(folder).items()
        found.append((OK, "images", f"{len(items)} in {folder}"))
    except KWTLError as error:
        return [(WRONG, "images", str(error))]
    if not os.access(folder, os.W_OK):
        found.append((WRONG, "images", f"{folder} cannot be written, where labels and scores go: fix its permissions"))
    path = Path(folder) / SIDECAR_NAME
    if path.exists():
        try:
            scored = len(Sidecar(path).scorings("kwtl"))
            found.append((OK, "scores", f"{path}, of {scored} states of the weights"))
        except KWTLError as error:
            found.append((WRONG, "scores", str(error)))
    config = Path(folder) / "datastore_v2.json"
    if config.exists():
        try:
            json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.append((WRONG, "datastore", f"{config} is broken ({error}): move it away; labels stay"))
    return found


def app_checks(folder: str) -> list[Check]:
    """Check that the folder of an app is whole."""
    found: list[Check] = []
    try:
        read_settings(folder)
        found.append((OK, "settings", str(Path(folder) / "kwtl.json")))
    except KWTLError as error:
        found.append((WRONG, "settings", str(error)))
    for name in ("main.py", "configs/train.json"):
        if not (Path(folder) / name).is_file():
            found.append((WRONG, "app", f"{name} is missing in {folder}: 'kwtl label start' puts it back"))
    weights = Path(folder) / "model" / "kwtl.pt"
    try:
        load_network(weights)
        found.append((OK, "weights", str(weights)))
    except KWTLError as error:
        found.append((WRONG, "weights", f"{error} ('kwtl label start' makes them where they are missing)"))
    return found


def checks(studies: str | None, app: str | None, server: LabelServer | None) -> list[Check]:
    """Return the results of every check that was asked for."""
    found = packages()
    found.append(server_starts())
    found += studies_checks(studies) if studies else []
    found += app_checks(app) if app else []
    if server:
        try:
            info = json.loads(server.get("/info/"))
            kwtl = "kwtl" in info.get("strategies", {})
            found.append((OK if kwtl else WRONG, "running", f"{info.get('name')} at {server.url}"))
        except (KWTLError, ValueError) as error:
            found.append((WRONG, "running", str(error)))
    return found
