"""Folders without images, files that are no images, images that are odd."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from PIL import Image

from bad_input.cases import ALL, WITHOUT_LABELS, case, noise


def _alone(write: Callable[[Path], object], name: str) -> Callable[[Path], None]:
    """Make my_images a flat folder of what is written under a name."""

    def prepare(folder: Path) -> None:
        shutil.rmtree(folder / "my_images")
        (folder / "my_images").mkdir()
        write(folder / "my_images" / name)

    return prepare


def _a_file(folder: Path) -> None:
    shutil.rmtree(folder / "my_images")
    (folder / "my_images").write_text("no folder")


def _texts(path: Path) -> None:
    for suffix in (".csv", ".txt"):
        path.with_suffix(suffix).write_text("text")


def _cut_tiff(path: Path) -> None:
    tifffile.imwrite(path, noise(48, 60))
    path.write_bytes(path.read_bytes()[:-700])


def _nan_tiff(path: Path) -> None:
    pixels = noise(40, 50).astype(np.float32)
    pixels[3, 4] = np.nan
    tifffile.imwrite(path, pixels)


def _nifti(*shape: int) -> Callable[[Path], None]:
    return lambda path: nibabel.save(nibabel.Nifti1Image(noise(*shape), np.eye(4)), path)


def _black(path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 50), dtype=np.uint8)).save(path.with_name(name))


def _one_pixel(path: Path) -> None:
    Image.fromarray(np.array([[7]], dtype=np.uint8)).save(path)


IMAGES = [
    case(
        (*WITHOUT_LABELS, "train", "evaluate"),
        "the folder does not exist",
        lambda folder: shutil.rmtree(folder / "my_images"),
        names="my_images",
    ),
    case(WITHOUT_LABELS, "an empty folder", _alone(lambda path: None, "-"), names="my_images"),
    case(WITHOUT_LABELS, "a folder with only text files", _alone(_texts, "a"), names="my_images"),
    case(WITHOUT_LABELS, "a file instead of the folder", _a_file, names="my_images"),
    case(
        WITHOUT_LABELS,
        "only a text file named .png",
        _alone(lambda path: path.write_text("text"), "a.png"),
        names="a.png",
    ),
    case(WITHOUT_LABELS, "only a file of 0 bytes", _alone(lambda path: path.write_bytes(b""), "a.png"), names="a.png"),
    case(WITHOUT_LABELS, "only a truncated TIFF", _alone(_cut_tiff, "a.tif"), names="a.tif"),
    case(
        WITHOUT_LABELS,
        "a truncated TIFF among good images",
        lambda folder: _cut_tiff(folder / "my_images" / "images" / "cut.tif"),
        names="images/cut.tif",
        status=0,
    ),
    case(WITHOUT_LABELS, "only an image with a NaN", _alone(_nan_tiff, "a.tif"), names="a.tif"),
    case(WITHOUT_LABELS, "only a NIfTI of 4 dimensions", _alone(_nifti(40, 50, 3, 2), "a.nii.gz"), names="a.nii.gz"),
    case(
        "select",
        "a NIfTI of 3 slices: each is an image",
        _alone(_nifti(40, 50, 3), "a.nii.gz"),
        names="1 of 3 images",
        status=0,
        budget_windows=1,
    ),
    case(
        "inference",
        "a NIfTI of 3 slices: each is an image",
        _alone(_nifti(40, 50, 3), "a.nii.gz"),
        names="masks: 3 in out",
        status=0,
    ),
    case(
        "select",
        "an image of 1 x 1 pixel: one window",
        _alone(_one_pixel, "a.png"),
        names="1 of 1 image",
        status=0,
    ),
    case("inference", "an image of 1 x 1 pixel", _alone(_one_pixel, "a.png"), names="masks: 1 in out", status=0),
    case(
        WITHOUT_LABELS,
        "only black images",
        _alone(_black, "-"),
        names="a.png",
        status=0,
    ),
    case(WITHOUT_LABELS, rescale="[5,1]"),
    case("select", rescale="bright"),
    case("pretext", test_dir="elsewhere"),
    case("evaluate", norm_dir="elsewhere"),
    case(
        ALL[:-1],
        "a folder that the command line takes for a number",
        names="dataset_dir",
        dataset_dir="2023_01",
    ),
]
