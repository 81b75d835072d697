"""Conversion of a publisher's files to ``images/`` and ``labels/`` of the same names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np

from monai_kwtl.benchmark.prepare.archives import open_archive
from monai_kwtl.benchmark.prepare.fetch import check_file, fetch, is_url
from monai_kwtl.benchmark.prepare.recipes import RECIPES, Checksum, Part, Recipe
from monai_kwtl.errors import KWTLError
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import open_image, read_pixels
from monai_kwtl.utils.json_documents import short

__all__ = ["prepare"]

_OURS = {"images", "labels", "SOURCE.md"}
_SAFE = re.compile(r"[\w+()-][\w .+()-]*")


class _Taken(NamedTuple):
    """A source as it was used: what it is called, and what it hashes to."""

    called: str
    digest: str
    checked: bool


def _check_folder(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise KWTLError(f"{folder} is a file; give another folder")
    found = {path.name for path in folder.iterdir()}
    if found and not overwrite:
        raise KWTLError(f"{folder} is there already and is left as it is; give another folder, or --overwrite")
    if others := sorted(found - _OURS):
        raise KWTLError(f"{folder} holds {short(others[0])}, which is no part of a data set; give another folder")


def _write_mask(pixels: np.ndarray, threshold: int, path: Path) -> bool:
    """Write a mask as PNG, 0 and 255; returns whether it has any foreground."""
    mask = pixels > threshold
    mask = mask.any(axis=2) if mask.ndim == 3 else mask
    path.write_bytes(imagecodecs.png_encode(mask.astype(np.uint8) * 255))
    return bool(mask.any())


class _Builder:
    """Writes images and masks into a folder of its own, and knows what it has."""

    def __init__(self, work: Path, threshold: int) -> None:
        self.root, self._scratch, self._threshold = work / "set", work / "scratch", threshold
        self.sizes: dict[str, dict[str, tuple[int, ...]]] = {"images": {}, "labels": {}}
        self.foreground = False
        for kind in self.sizes:
            (self.root / kind).mkdir(parents=True)

    def _note(self, kind: str, name: str, size: tuple[int, ...], called: str) -> None:
        if not _SAFE.fullmatch(name):
            raise KWTLError(f"{called}: {short(name)} cannot be a file name everywhere; rename it in the source")
        if name in self.sizes[kind]:
            raise KWTLError(f"{called}: there are two {kind} of the name {name}; give the publisher's files")
        self.sizes[kind][name] = size

    def add_file(self, kind: str, name: str, suffix: str, content: bytes, called: str) -> None:
        """Add an image, whose file stays as it is, or a mask."""
        path = self._scratch.with_suffix(suffix.lower())
        path.write_bytes(content)
        try:
            pixels = read_pixels(path)
        except UnreadableError as error:
            raise KWTLError(f"{called}: {name}{suffix} in it cannot be read ({error}); fetch it again") from error
        self._note(kind, name, pixels.shape[:2], called)
        if kind == "images":
            os.replace(path, self.root / kind / f"{name}{suffix.lower()}")
        else:
            self.foreground |= _write_mask(pixels, self._threshold, self.root / kind / f"{name}.png")
            path.unlink()

    def add_archive(self, path: Path, part: Part, called: str) -> None:
        """Add the images and masks of an archive; what else is in it is passed over."""
        patterns = {"images": part.images, "labels": part.labels}
        with open_archive(path, part.limit, called) as members:
            for member in members:
                if "__MACOSX" in member.path or member.path.rpartition("/")[2].startswith("."):
                    continue
                for kind, pattern in patterns.items():
                    if found := pattern and pattern.fullmatch(member.path):
                        suffix = os.path.splitext(member.path)[1]
                        self.add_file(kind, found["name"], suffix, member.read(), called)

    def add_stack(self, path: Path, part: Part, called: str) -> None:
        """Add the pages of a stack, each a PNG of the same pixels."""
        kind = part.stack or "images"
        try:
            with open_image(path) as file:
                pages = file.sizes()
                if sum(height * width for _, height, width in pages) > part.limit:
                    raise KWTLError(f"{called}: it would unpack to more than {part.limit >> 20} MiB; fetch it again")
                digits = max(3, len(str(len(pages) - 1)))
                for number, (page, *_) in enumerate(pages):
                    pixels, name = file.read(page), f"{number:0{digits}d}"
                    if pixels.dtype not in (np.uint8, np.uint16):
                        raise UnreadableError(f"pixels of type {pixels.dtype}, where 8 or 16 bit were expected")
                    self._note(kind, name, pixels.shape[:2], called)
                    target = self.root / kind / f"{name}.png"
                    if kind == "images":
                        target.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
                    else:
                        self.foreground |= _write_mask(pixels, self._threshold, target)
        except UnreadableError as error:
            raise KWTLError(f"{called}: cannot be read ({error}); fetch it again") from error

    def check(self) -> int:
        """Return the number of images, where each has a mask of its size and no mask is left over."""
        images, labels = self.sizes["images"], self.sizes["labels"]
        for kind, found in self.sizes.items():
            if not found:
                raise KWTLError(f"there are no {kind} in what was given; give the publisher's files")
        for name in sorted(images.keys() ^ labels.keys()):
            one, other = ("image", "mask") if name in images else ("mask", "image")
            raise KWTLError(f"the {one} {name} has no {other} of its name; give the publisher's files")
        for name, size in images.items():
            if labels[name] != size:
                raise KWTLError(f"the mask of {name} is {labels[name]}, its image {size}; give the publisher's files")
        if not self.foreground:
            raise KWTLError("no mask has any foreground; give the publisher's files")
        return len(images)


def _describe(name: str, recipe: Recipe, taken: Sequence[_Taken], count: int) -> str:
    files = "\n".join(f"  - {t.called} ({t.digest}{'' if t.checked else ', not checked'})" for t in taken)
    return (
        f"# {name}\n\n- Data set: {recipe.title}\n- Citation: {recipe.citation}\n- Taken from:\n{files}\n"
        f"- Conversion: images unchanged, pages of a stack as PNG; masks to PNG, 255 where above {recipe.threshold}\n"
        f"- Count: {count} images, each with its mask\n"
    )


def _take(part: Part, source: str | None, checksum: Checksum | None, path: Path, say: Callable) -> tuple[Path, _Taken]:
    """Return the file of a part on the disk, checked."""
    where = source or part.url
    wanted = checksum if source else part.checksum
    if is_url(where):
        fetch(where, path, part.limit, say)
        called = where
    else:
        path = Path(where)
        called = path.name
        if not path.is_file():
            raise KWTLError(f"there is no file {where}; give the publisher's file or its URL with --source")
    digest = check_file(path, wanted, where)
    if wanted is None:
        say(f"{where}: {digest}, which nothing was compared with")
    return path, _Taken(called, digest, wanted is not None)


def _put_in_place(ready: Path, folder: Path, work: Path) -> None:
    old = work / "old"
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(ready, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise


def prepare(
    name: str,
    folder: str | Path,
    sources: Sequence[str] = (),
    checksums: Sequence[Checksum] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Make a data set of the paper out of its publisher's files: ``images/*`` and ``labels/*.png`` of the same names.

    All is made in a hidden folder beside ``folder`` and renamed at the end, so that a failure leaves nothing.

    Args:
        name: one of :data:`~monai_kwtl.benchmark.prepare.recipes.RECIPES`.
        folder: to write; new, empty, or with ``overwrite`` a data set made before.
        sources: paths or URLs to take instead of the publisher's, one for each part of the recipe; empty takes those.
        checksums: of the ``sources``, in their order; empty checks none. The publisher's are checked where known.
        overwrite: whether a data set in ``folder`` is replaced; anything else there never is.
        say: is told what happens, line by line.

    Returns:
        The number of images.

    Raises:
        KWTLError: one line, when files cannot be had, have another checksum, are broken or not what they should be, or
            when the folder may not be written.
    """
    if name not in RECIPES:
        raise KWTLError(f"there is no data set {short(name)}; give one of {', '.join(RECIPES)}")
    recipe, folder = RECIPES[name], Path(os.path.abspath(folder))
    for what, given in (("--source", sources), ("--checksum", checksums)):
        if given and len(given) != len(recipe.parts):
            raise KWTLError(f"{name} is made of {len(recipe.parts)} files, but {what} was given {len(given)} times")
    if checksums and not sources:
        raise KWTLError("--checksum is of what --source gives; give both")
    work = folder.parent / f".{folder.name}.{os.getpid()}.unfinished"
    try:
        _check_folder(folder, overwrite)
        work.mkdir(parents=True)
        builder, taken = _Builder(work, recipe.threshold), []
        for number, part in enumerate(recipe.parts):
            source = sources[number] if sources else None
            checksum = checksums[number] if checksums else None
            path, found = _take(part, source, checksum, work / "fetched", say)
            taken.append(found)
            (builder.add_stack if part.stack else builder.add_archive)(path, part, source or part.url)
            (work / "fetched").unlink(missing_ok=True)
        count = builder.check()
        if count != recipe.count:
            say(f"{count} images, where the publisher's files make {recipe.count}")
        (builder.root / "SOURCE.md").write_text(_describe(name, recipe, taken, count), encoding="utf-8", newline="\n")
        _put_in_place(builder.root, folder, work)
    except OSError as error:
        where = error.filename or folder
        raise KWTLError(
            f"cannot write {where} ({error.strerror or error}); make room, or give another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count
