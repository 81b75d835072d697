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


_KINDS = "their names end in .png, .jpg, .jpeg, .bmp, .tif, .tiff, .nii, .nii.gz."
_ELSE = "give other files, or save them anew as PNG or TIFF."
_RANGE = "rescale must be two grey values [low, high], low below high"


def _unreadable(name: str, reason: str) -> str:
    return f"the only image cannot be read: {name} ({reason}); {_ELSE}"


IMAGES = [
    case(
        (*WITHOUT_LABELS, "train", "evaluate"),
        "there is no folder my_images: give the folder of the images with --dataset_dir.",
        "the folder does not exist",
        lambda folder: shutil.rmtree(folder / "my_images"),
    ),
    case(
        WITHOUT_LABELS,
        f"there are no images in my_images (it is empty or has only folders in it): {_KINDS}",
        "an empty folder",
        _alone(lambda path: None, "-"),
    ),
    case(
        WITHOUT_LABELS,
        f"there are no images in my_images (only .csv, .txt): {_KINDS}",
        "a folder with only text files",
        _alone(_texts, "a"),
    ),
    case(
        WITHOUT_LABELS,
        "my_images is a file: give the folder that holds the images with --dataset_dir.",
        "a file instead of the folder",
        _a_file,
    ),
    case(
        WITHOUT_LABELS,
        _unreadable("a.png", "it is no image"),
        "only a text file named .png",
        _alone(lambda path: path.write_text("text"), "a.png"),
    ),
    case(
        WITHOUT_LABELS,
        _unreadable("a.png", "the file is empty"),
        "only a file of 0 bytes",
        _alone(lambda path: path.write_bytes(b""), "a.png"),
    ),
    case(
        WITHOUT_LABELS,
        _unreadable("a.tif", "it is truncated"),
        "only a truncated TIFF",
        _alone(_cut_tiff, "a.tif"),
    ),
    case(
        WITHOUT_LABELS,
        "1 of 4 images cannot be read and are left out: images/cut.tif (it is truncated)",
        "a truncated TIFF among good images",
        lambda folder: _cut_tiff(folder / "my_images" / "images" / "cut.tif"),
        status=0,
    ),
    case(
        WITHOUT_LABELS,
        _unreadable("a.tif", "it has pixels that are NaN or infinite"),
        "only an image with a NaN",
        _alone(_nan_tiff, "a.tif"),
    ),
    case(
        WITHOUT_LABELS,
        _unreadable("a.nii.gz", "4 dimensions: save single volumes (x, y, z) or images (x, y)"),
        "only a NIfTI of 4 dimensions",
        _alone(_nifti(40, 50, 3, 2), "a.nii.gz"),
    ),
    case(
        "select",
        "cost: 1 window in 1 of 3 images, 1024 distinct pixels (17 % of the pool)",
        "a NIfTI of 3 slices: each is an image",
        _alone(_nifti(40, 50, 3), "a.nii.gz"),
        status=0,
        budget_windows=1,
    ),
    case(
        "inference",
        "masks: 3 in out",
        "a NIfTI of 3 slices: each is an image",
        _alone(_nifti(40, 50, 3), "a.nii.gz"),
        status=0,
    ),
    case(
        "select",
        "cost: 1 window in 1 of 1 image, 1 distinct pixel (100 % of the pool)",
        "an image of 1 x 1 pixel: one window",
        _alone(_one_pixel, "a.png"),
        status=0,
    ),
    case("inference", "masks: 1 in out", "an image of 1 x 1 pixel", _alone(_one_pixel, "a.png"), status=0),
    case(
        WITHOUT_LABELS,
        "every image is of one grey value, such as a.png: were they exported right?",
        "only black images",
        _alone(_black, "-"),
        status=0,
    ),
    case(WITHOUT_LABELS, f"{_RANGE}, got [5, 1].", rescale="[5,1]"),
    case("select", f"{_RANGE}, got 3.", rescale=3),
    case("select", f"{_RANGE}, got 'bright'.", rescale="bright"),
    case(
        "pretext", "there is no folder elsewhere: give the folder of the images with --test_dir.", test_dir="elsewhere"
    ),
    case(
        "evaluate", "there is no folder elsewhere: give the folder of the images with --norm_dir.", norm_dir="elsewhere"
    ),
    case(
        ALL[:-1],
        "dataset_dir must be a path, got the number 202301; put ./ before a name like that.",
        "a folder that the command line takes for a number",
        dataset_dir="2023_01",
    ),
]
