"""What is installed is whole: the wheel has all that the stages and the label server need, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "kwtl"

pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("pip")


def _made(folder: Path, program: str, *arguments: str) -> Path:
    """Run a program of the build backend on a copy of the sources, without network; the one file that it leaves."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    for name in ("monai_kwtl", "bundles"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    # what a user's bundle may hold besides: results and weights of their own
    (sources / "bundles" / "kwtl" / "models" / "mine.pt").write_bytes(b"")
    return _built(sources, folder / "made", program, *arguments)


def _built(sources: Path, target: Path, program: str, *arguments: str) -> Path:
    command = [sys.executable, "-c", program, str(target), *arguments]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = target.iterdir()
    return made


WHEEL = """
import subprocess, sys
options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "wheel", *options, "-w", sys.argv[1], "."]))
"""
SDIST = "import os, sys; from setuptools import build_meta; os.mkdir(sys.argv[1]); build_meta.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return _made(tmp_path_factory.mktemp("wheel"), WHEEL)


def _contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def _wanted() -> dict[str, bytes]:
    """Every file of the package but the benchmark's, and the bundle's, by its name in the wheel."""
    house = ROOT / "monai_kwtl"
    found = {str(path.relative_to(ROOT)): path for path in house.rglob("*") if path.is_file()}
    parts = [BUNDLE / "LICENSE", BUNDLE / "models" / "model.pt", *BUNDLE.glob("configs/*"), *BUNDLE.glob("docs/*")]
    found |= {f"monai_kwtl/bundles/kwtl/{path.relative_to(BUNDLE)}": path for path in parts}
    return {
        Path(name).as_posix(): path.read_bytes()
        for name, path in found.items()
        if "benchmark" not in Path(name).parts and "__pycache__" not in Path(name).parts
    }


def test_the_wheel_holds_the_package_and_the_bundle_and_no_benchmark(wheel):
    contents, wanted = _contents(wheel), _wanted()
    assert sorted(contents) == sorted(wanted)
    assert contents == wanted
    for name in ("bundles/kwtl/configs/select.json", "bundles/kwtl/models/model.pt", "project/selection.schema.json"):
        assert f"monai_kwtl/{name}" in contents
    assert {"report/report.html", "report/report.css", "label/client/app_folder.py"} <= {n[11:] for n in contents}


def test_a_wheel_of_the_source_archive_is_the_same(wheel, tmp_path):
    archive = _made(tmp_path, SDIST)
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (sources,) = (tmp_path / "unpacked").iterdir()
    assert _contents(_built(sources, tmp_path / "again", WHEEL)) == _contents(wheel)


@pytest.mark.slow  # three processes that load PyTorch; test_the_wheel_holds_... is its short twin
def test_stages_and_the_label_app_run_from_the_wheel_in_an_empty_folder(wheel, tmp_path, rng):
    site, here = tmp_path / "site", tmp_path / "here"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("images", "labels"):
        (here / "cells" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (64, 64)) if name == "images" else 255 * (rng.random((64, 64)) > 0.7)
            Image.fromarray(pixels.astype(np.uint8)).save(here / "cells" / name / f"{number}.png")
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def kwtl(command: str) -> str:
        program = "import sys; from monai_kwtl.cli.main import main; sys.exit(main())"
        call = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-c", program, *command.split()]
        done = subprocess.run(call, cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    quick = "--device cpu --amp false --tensorboard false"
    assert str(site / "monai_kwtl" / "bundles" / "kwtl") in kwtl("doctor")
    kwtl(f"select cells --pretext skip --window 32 --step 16 --report false {quick}")
    kwtl(f"train cells --labels cells/labels --steps 2 --crop 32 --batch_size 2 {quick}")
    kwtl("inference cells --ckpt output/cells/train/model.pt --device cpu --amp false")
    assert len(list((here / "output" / "cells" / "inference").glob("**/*.png"))) == 3
    kwtl("label start --studies cells --app app --pretext skip --prepare-only")
    assert (here / "app" / "configs" / "train.json").read_bytes() == (BUNDLE / "configs" / "train.json").read_bytes()
