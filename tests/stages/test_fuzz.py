"""Damaged files of all kinds that are read: a one-line error or a right result, in time, and nothing is changed."""

from __future__ import annotations

import copy
import gzip
import io
import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from fuzzing import Reader, damage, fingerprint, fix_png
from PIL import Image, ImageOps

from monai_kwtl.data.loading import read_image, read_label
from monai_kwtl.data.pool import load_pool
from monai_kwtl.project.selection_file import dump_selection, read_selection
from monai_kwtl.selection.regions import Region

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the worker's memory is limited as Linux does it")

CASES = 500
SHORT = 100


# ---- what reads


def _read_pool(path: str) -> str:
    """Read every image of a folder, as the stages do, and its mask where it has one."""
    masks = Path(path, "labels")
    items = load_pool(path, str(masks) if masks.is_dir() else None)
    for item in items:
        image = read_image(item)
        assert image.dtype == np.uint8 and image.shape == (1, item["height"], item["width"]), (image.shape, item)
        if item["name"].endswith((".png", ".bmp", ".jpg")):
            with Image.open(item["image"]) as other:
                if other.mode in ("L", "RGB") and image.size < 1 << 20 and not _deep(Path(item["image"])):
                    assert np.array_equal(image[0], np.asarray(ImageOps.exif_transpose(other).convert("L")))
        if item.get("label"):
            label = read_label(item)
            assert label.dtype == np.uint8 and label.shape == image.shape and label.max() <= 1
    return f"{len(items)}"


def _deep(path: Path) -> bool:
    """Whether a file is a PNG of 16 bit, which Pillow cuts to 8."""
    start = path.read_bytes()[:25]
    return start[:4] == b"\x89PNG" and start[24] == 16


def _read_selection(path: str) -> str:
    document = read_selection(path)
    regions = document["regions"]
    assert [region.rank for region in regions] == list(range(1, len(regions) + 1))
    for region in regions:
        assert isinstance(region, Region) and region.width > 0 and region.height > 0 and np.isfinite(region.score)
        assert ".." not in Path(region.image).parts and not Path(region.image).is_absolute()
    again = Path(path).with_name("again.json")
    again.write_text(dump_selection(regions, budget={}, cost=document["cost"], created_with={}), encoding="ascii")
    try:
        assert read_selection(again)["regions"] == [replace(r, score=float(f"{r.score:.9g}")) for r in regions]
    finally:
        again.unlink()
    return f"{len(regions)}"


def read_anything(path: str) -> str:
    """Read a selection file, or a folder of images."""
    return _read_selection(path) if path.endswith(".json") else _read_pool(path)


# ---- files to damage


def _saved(pixels: np.ndarray, form: str, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def _nifti(pixels: np.ndarray, packed: bool = False) -> bytes:
    content = nibabel.Nifti1Image(pixels, np.eye(4)).to_bytes()
    return gzip.compress(content, mtime=0) if packed else content


def _images() -> dict[str, list[bytes]]:
    """Sound files by suffix."""
    rng = np.random.default_rng(11)
    grey = rng.integers(0, 256, (23, 37), dtype=np.uint8)
    grey[5:15, 8:30] //= 4
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)
    deep = grey.astype(np.uint16) * 257
    stack = np.stack([grey, grey // 2, 255 - grey])
    return {
        ".png": [
            _saved(grey, "PNG"),
            _saved(colour, "PNG"),
            _saved(deep, "PNG"),
            _saved(colour, "PNG", "P"),
            _saved(colour, "PNG", "RGBA"),
            _saved(grey, "PNG", "1"),
        ],
        ".jpg": [_saved(grey, "JPEG"), _saved(colour, "JPEG"), _saved(colour, "JPEG", progressive=True)],
        ".bmp": [_saved(grey, "BMP"), _saved(colour, "BMP"), _saved(grey, "BMP", "1")],
        ".tif": [
            _tiff(grey),
            _tiff(deep, byteorder=">"),
            _tiff(colour, photometric="rgb", compression="zlib"),
            _tiff(stack, photometric="minisblack", compression="lzw"),
            _tiff(grey, tile=(16, 16), compression="zstd"),
            _tiff(grey.astype(np.float32), bigtiff=True, compression="zlib", predictor=True),
            _tiff(stack, imagej=True),
            _tiff(stack, ome=True, photometric="minisblack"),
            _tiff(grey, compression="jpeg"),
            _saved(colour, "TIFF", "P"),
            _saved(grey, "TIFF", "1", compression="group4"),
            _saved(colour, "TIFF", compression="tiff_lzw"),
        ],
        ".nii": [_nifti(grey.T), _nifti(stack.T.astype(np.int16)), _nifti(stack.T.astype(np.float64))],
        ".nii.gz": [_nifti(grey.T, True), _nifti(stack.T.astype(np.float32), True)],
    }


def _selection() -> dict:
    regions = [
        Region(1, "images/a.png", None, "a" * 64, 0, 0, 16, 12, 0.5),
        Region(2, "images/b.tif", 1, "b" * 64, 7, 3, 16, 12, 0.25),
        Region(3, "images/a.png", None, "a" * 64, 9, 5, 16, 12, 0.125),
    ]
    cost = {"windows": 3, "images": 2, "unique_pixels": 500}
    return json.loads(dump_selection(regions, budget={"windows": 3}, cost=cost, created_with={"seed": 0}))


ODD_VALUES = [
    None,
    True,
    0,
    -1,
    1,
    2,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "a" * 64,
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\a.png",
    "images/../../a.png",
    "a\0b",
    "images/\ud800.png",
    [],
    {},
    [1],
    {"rank": 1},
    "NaN",
]


def _places(node, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def damaged_selection(rng: np.random.Generator) -> bytes:
    """A selection with odd values, missing or additional fields; one in three is damaged as bytes instead."""
    document = copy.deepcopy(_selection())
    if rng.random() < 1 / 3:
        text = json.dumps(document, indent=2).encode()
        return damage(text, rng, [text, b"[" * 100_000, b'{"a":' * 5000, b"NaN", b"1e999", b"\xff\xfe"])
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(document))
        *way, key = places[int(rng.integers(len(places)))]
        node = document
        for step in way:
            node = node[step]
        kind = rng.integers(4)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif kind == 1:
            node[f"{key}2"] = node[key]
        else:
            node[key] = copy.deepcopy(ODD_VALUES[int(rng.integers(len(ODD_VALUES)))])
        if not document:
            break
    return json.dumps(document).encode()


def write_case(number: int, folder: Path) -> Path:
    """Write one damaged file, the same for the same number, and return what is to be read."""
    rng = np.random.default_rng([7, number])
    if number % 5 == 4:
        folder.mkdir(parents=True)
        (folder / "selection.json").write_bytes(damaged_selection(rng))
        return folder / "selection.json"
    files = _images()
    suffix = list(files)[int(rng.choice(len(files), p=(0.24, 0.13, 0.1, 0.33, 0.12, 0.08)))]
    sound = files[suffix][int(rng.integers(len(files[suffix])))]
    if suffix == ".nii.gz" and rng.random() < 0.7:  # below the compression
        content = gzip.compress(damage(gzip.decompress(sound), rng, files[".nii"]), mtime=0)
    else:
        content = damage(sound, rng, [other for kind in files.values() for other in kind])
    if suffix == ".png" and rng.random() < 0.7:
        content = fix_png(content)
    masks = rng.random() < 0.25
    place = folder / ("labels" if masks else "images")
    place.mkdir(parents=True)
    (place / f"a{suffix}").write_bytes(content)
    if masks:
        (folder / "images").mkdir()
        (folder / "images" / f"a{suffix}").write_bytes(sound)
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(read_anything, tmp_path_factory.mktemp("reader") / "said")
    yield reader
    reader.close()
    assert "Traceback" not in reader.log.read_text()


def fuzz(reader: Reader, folder: Path, numbers: range) -> Counter:
    """Read the cases of these numbers; how many ended how."""
    ended: Counter = Counter()
    bad = []
    for number in numbers:
        case = folder / f"case{number}"
        target = write_case(number, case)
        before = fingerprint(case)
        kind, text = reader(target)
        ended[kind] += 1
        if kind not in ("right", "refused") or (kind == "refused" and ("\n" in text or len(text) > 600)):
            bad.append(f"case {number}: {kind}: {text[-1500:]}")
        elif fingerprint(case) != before:
            bad.append(f"case {number}: a file was changed")
    assert not bad, f"{len(bad)} of {len(numbers)}\n" + "\n".join(bad[:5])
    return ended


def test_the_worker_notices_hanging_dying_and_exceptions(tmp_path: Path, monkeypatch):
    import fuzzing

    monkeypatch.setattr(fuzzing, "PATIENCE", 1.0)
    reader = Reader(misbehave, tmp_path / "said")
    try:
        assert reader(Path("hang"))[0] == "hangs"
        assert reader(Path("die")) == ("dead", "status 7")
        kind, text = reader(Path("raise"))
        assert kind == "wrong" and "ZeroDivisionError" in text
        kind, text = reader(Path("eat"))
        assert kind == "wrong" and "MemoryError" in text
        assert reader(Path("work")) == ("right", "done")
    finally:
        reader.close()


def misbehave(path: str) -> str:
    import os
    import time

    if path == "hang":
        time.sleep(60)
    elif path == "die":
        os._exit(7)
    elif path == "raise":
        return str(1 / 0)
    elif path == "eat":
        return str(np.ones(1 << 32, np.uint8).sum())
    return "done"


def test_sound_files_are_read(reader: Reader, tmp_path: Path):
    for suffix, contents in _images().items():
        for number, content in enumerate(contents):
            folder = tmp_path / f"{suffix}{number}"
            folder.mkdir()
            (folder / f"a{suffix}").write_bytes(content)
            assert reader(folder)[0] == "right", (suffix, number, reader(folder))
    (tmp_path / "selection.json").write_text(json.dumps(_selection()))
    assert reader(tmp_path / "selection.json") == ("right", "3")


def test_damage_is_the_same_for_the_same_number(tmp_path: Path):
    for number in range(20):
        contents = [
            {p.name: p.read_bytes() for p in (tmp_path / turn / str(number)).rglob("*") if p.is_file()}
            for turn in ("a", "b")
            if write_case(number, tmp_path / turn / str(number))
        ]
        assert contents[0] == contents[1]


def test_a_hundred_damaged_files_are_refused_in_a_line_or_read(reader: Reader, tmp_path: Path):
    ended = fuzz(reader, tmp_path, range(SHORT))
    assert ended["right"] >= SHORT // 20 and ended["refused"] >= SHORT // 3  # both happen


@pytest.mark.slow
def test_five_hundred_damaged_files_are_refused_in_a_line_or_read(reader: Reader, tmp_path: Path):
    ended = fuzz(reader, tmp_path, range(SHORT, SHORT + CASES))
    assert ended["right"] >= CASES // 20 and ended["refused"] >= CASES // 3


# ---- headers that claim more than there is


def png_bomb(side: int, filled: bool) -> bytes:
    """A PNG that claims so many pixels; filled, its compressed zeros really are so many."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = (
        packer.compress(bytes(side + 1)) if not filled else b"".join(packer.compress(bytes(1 << 20)) for _ in "x" * 64)
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")


def tiff_bomb(side: int, kind: str) -> bytes:
    """A TIFF that claims so many pixels, in one strip."""
    compression = {"plain": 1, "zlib": 8, "lzw": 5, "zstd": 50000, "jpeg": 7, "packbits": 32773}[kind]
    data = zlib.compress(bytes(1000))
    tags = [
        (256, 4, 1, side),
        (257, 4, 1, side),
        (258, 3, 1, 8),
        (259, 3, 1, compression),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 4, 1, side),
        (279, 4, 1, len(data)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def nifti_bomb(side: int, packed: bool) -> bytes:
    content = bytearray(_nifti(np.zeros((5, 4), np.uint8)))
    content[40:48] = struct.pack("<4h", 3, 30_000, 30_000, side // 10)
    return gzip.compress(bytes(content)) if packed else bytes(content)


BOMBS = {
    "claims.png": lambda: png_bomb(100_000, False),
    "filled.png": lambda: png_bomb(100_000, True),
    **{f"{kind}.tif": lambda kind=kind: tiff_bomb(100_000, kind) for kind in ("plain", "zlib", "lzw", "zstd", "jpeg")},
    "packbits.tif": lambda: tiff_bomb(100_000, "packbits"),
    "smaller.tif": lambda: tiff_bomb(8_000, "zlib"),
    "volume.nii": lambda: nifti_bomb(100_000, False),
    "volume.nii.gz": lambda: nifti_bomb(100_000, True),
    "claims.bmp": lambda: _saved(np.zeros((3, 4), np.uint8), "BMP").replace(
        struct.pack("<ii", 4, 3), struct.pack("<ii", 100_000, 100_000)
    ),
    "claims.jpg": lambda: _saved(np.zeros((3, 4), np.uint8), "JPEG").replace(
        b"\xff\xc0\0\x0b\x08\0\x03\0\x04", b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff"
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_that_claims_too_much_is_refused_in_a_line(reader: Reader, tmp_path: Path, name: str):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / name).write_bytes(BOMBS[name]())
    assert (folder / name).stat().st_size < 1_000_000
    kind, text = reader(tmp_path)
    assert kind == "refused", (kind, text[-3000:])
    assert name in text and "\n" not in text and len(text) < 300
    if name not in ("zstd.tif", "jpeg.tif"):  # whose compression has no limit; they are found out when they are read
        assert text.startswith("the only image cannot be read")  # before anything is computed


@pytest.mark.parametrize(
    "name", ["zlib.tif", "lzw.tif", "packbits.tif", "zstd.tif", "tiles.tif", "volume.nii.gz", "a.png"]
)
def test_an_empty_image_that_is_as_large_as_it_claims_is_read(reader: Reader, tmp_path: Path, name: str):
    empty = np.zeros((3000, 4000), np.uint8)
    path = tmp_path / name
    if name == "tiles.tif":
        path.write_bytes(_tiff(empty, tile=(512, 512), compression="zlib"))
    elif name.endswith(".tif"):
        path.write_bytes(_tiff(empty, compression=path.stem, rowsperstrip=3000))
    else:
        path.write_bytes(_nifti(empty.T, True) if name.endswith(".gz") else _saved(empty, "PNG"))
    assert path.stat().st_size < 200_000
    assert reader(tmp_path) == ("right", "1")
