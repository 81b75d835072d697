"""Small archives with the structure of the publishers', and what they hold."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping

import numpy as np
import tifffile
from PIL import Image

Files = dict[str, bytes]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w:gz", members: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in members:
            archive.addfile(info)
    return stream.getvalue()


def _noise(seed: int, dtype: type, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, np.iinfo(dtype).max, shape, dtype=dtype)


def _blob(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[seed % 5 : 8 + seed % 5, 3 : 10 + seed % 7] = True
    return mask


def bbbc005() -> tuple[list[bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Two archives; of the names only F1 is in focus and has a mask."""
    images, masks, expected = {}, {}, {}
    for n, name in enumerate(f"SIMCEPImages_A0{k}_C1_F{f}_s01_w{w}" for k, f, w in [(1, 1, 1), (1, 1, 2), (2, 17, 1)]):
        pixels = _noise(n, np.uint8, 20, 30)
        images[f"BBBC005_v1_images/{name}.TIF"] = tiff(pixels)
        if "_F1_" in name:
            masks[f"synthetic_2_ground_truth/{name}.TIF"] = tiff(_blob(n).astype(np.uint8) * 255)
            expected[name] = pixels, _blob(n)
    images["BBBC005_v1_images/.htaccess"] = b"no image"
    return [zipped(dict(reversed(images.items()))), zipped(masks)], expected


def bbbc039() -> tuple[list[bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Two archives: 16 bit images, and masks in which each nucleus has a small colour of its own."""
    images, masks, expected = {}, {}, {}
    for n in range(3):
        name, pixels, mask = f"IXMtest_A0{n}_s1_w1F89", _noise(n, np.uint16, 20, 30), _blob(n)
        colours = np.zeros((20, 30, 4), dtype=np.uint8)
        colours[..., 3] = 255
        if n < 2:
            colours[mask, n] = 1 + n
        expected[name] = pixels, mask if n < 2 else np.zeros_like(mask)  # some fields are empty
        images[f"images/{name}.tif"] = tiff(pixels)
        masks[f"masks/{name}.png"] = png(colours)
    return [zipped(images), zipped(masks)], expected


def tnbc() -> tuple[list[bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """One archive with a folder of images and one of masks for each patient, packed on a Mac."""
    files, expected = {"TNBC_NucleiSegmentation/.DS_Store": b"x"}, {}
    for patient, field in ((1, 1), (1, 2), (11, 1)):
        name, folder = f"{patient:02d}_{field}", f"{patient:02d}"
        pixels, mask = _noise(patient + field, np.uint8, 20, 30, 3), _blob(patient + field)
        files[f"TNBC_NucleiSegmentation/Slide_{folder}/{name}.png"] = png(pixels)
        files[f"TNBC_NucleiSegmentation/GT_{folder}/{name}.png"] = png(mask.astype(np.uint8) * 255)
        files[f"__MACOSX/TNBC_NucleiSegmentation/Slide_{folder}/._{name}.png"] = b"fork"
        expected[name] = pixels, mask
    return [zipped(files)], expected


def sstem() -> tuple[list[bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """One archive: of two stacks only the first has masks, and of several kinds; masks are grey or 1 bit."""
    root, files, expected = "groundtruth-drosophila-vnc-master", {}, {}
    for n in range(3):
        name, pixels, mask = f"{n:02d}", _noise(n, np.uint8, 20, 30), _blob(n)
        grey = np.where(mask, 250, 40).astype(np.uint8)  # antialiased edges are below the threshold
        files[f"{root}/stack1/raw/{name}.tif"] = tiff(pixels)
        files[f"{root}/stack2/raw/{name}.tif"] = tiff(_noise(9, np.uint8, 20, 30))
        files[f"{root}/stack1/membranes/{name}.png"] = png(grey)
        files[f"{root}/stack1/mitochondria/{name}.png"] = png(grey if n == 0 else mask)
        expected[name] = pixels, mask
    return [zipped(files)], expected


def hippocampus() -> tuple[list[bytes], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Two multi-page TIFFs."""
    pixels, masks = _noise(0, np.uint8, 4, 20, 30), np.stack([_blob(n) for n in range(4)])
    expected = {f"{n:03d}": (pixels[n], masks[n]) for n in range(4)}
    stacks = [tiff(stack, photometric="minisblack") for stack in (pixels, masks.astype(np.uint8) * 255)]
    return stacks, expected


PUBLISHERS = {"B5": bbbc005, "B39": bbbc039, "TNBC": tnbc, "ssTEM": sstem, "EM": hippocampus}
