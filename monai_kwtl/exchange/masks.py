"""Imported masks on disk: nothing is overwritten unless told, and what was there is kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.exchange.annotation import Annotation
from monai_kwtl.project.file_names import region_file_names
from monai_kwtl.project.mask_index import MaskRecord, has_record, read_record, write_record
from monai_kwtl.project.region_masks import write_mask
from monai_kwtl.readers.decoding import UnreadableError
from monai_kwtl.readers.image_files import SUFFIXES, has_suffix, read_pixels
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.atomic import atomic_write
from monai_kwtl.utils.hashing import file_sha256

__all__ = ["write_masks"]

REPLACED = "replaced"


def write_masks(
    output: str | os.PathLike,
    regions: Sequence[Region],
    chosen: Mapping[int, Annotation],
    selection_sha256: str,
    source: str,
    force: bool = False,
) -> tuple[int, int]:
    """Write the masks of finished regions, PNG with 0 and 255, named like the crops, and ``regions.json``.

    Args:
        output: folder of the masks; made if absent. Masks of other regions, of former rounds, stay.
        regions: all regions of the selection.
        chosen: the annotation of each finished region, by rank.
        selection_sha256: of the ``selection.json``.
        source: the tool.
        force: whether masks that are there and differ may be replaced; they are moved to ``replaced/``.

    Returns:
        How many masks were written, and how many were replaced.

    Raises:
        KWTLError: when other masks are there and must stay, or the folder cannot be written; nothing is changed then.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise KWTLError(f"{output} is a file: give a folder for the masks with --output")
    former = {record.region.key: record for record in read_record(output)} if has_record(output) else {}
    owners = {record.mask.casefold(): record.region.key for record in former.values()}
    records, new, stale = dict(former), {}, []
    for region, name in zip(regions, region_file_names(regions), strict=True):
        if region.rank not in chosen:
            continue
        record = MaskRecord(name, region, selection_sha256, source)
        if record.region.key in former:
            record = MaskRecord(former[record.region.key].mask, region, selection_sha256, source)
        else:  # another round may have used the name for another image
            spare = chain([name], (f"{name[:-4]}_{number}.png" for number in count(2)))
            free = next(candidate for candidate in spare if candidate.casefold() not in owners)
            record = MaskRecord(free, region, selection_sha256, source)
            owners[free.casefold()] = record.region.key
        records[record.region.key] = record
        there = output / record.mask
        # a mask of another file type under the same base name would be one too many
        stale += [path for path in _of_stem(output, there.stem) if path.name != there.name]
        if not _same(there, chosen[region.rank].mask):
            new[record.mask] = chosen[region.rank].mask
            stale += [there] if there.exists() or there.is_symlink() else []
    if stale and not force:
        raise KWTLError(
            f"{output} holds other masks of {len(stale)} of these regions, such as {stale[0].name}: add --force to "
            f"replace them (they are kept in {output / REPLACED}), or choose another --output"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".import.", suffix=".unfinished") as folder:
            unfinished = Path(folder)
            for name, mask in new.items():
                write_mask(unfinished / name, mask)
            for path in stale:
                _keep(path, output / REPLACED)
                if path.name not in new:
                    path.unlink()
            for name in new:
                os.replace(unfinished / name, output / name)
    except OSError as error:
        raise KWTLError(f"{output} cannot be written ({error.strerror or error}): choose another --output") from error
    if new or list(records.values()) != list(former.values()):
        write_record(output, records.values())
    return len(new), len(stale)


def _of_stem(folder: Path, stem: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if path.stem == stem and has_suffix(path.name, SUFFIXES)]


def _same(path: Path, mask: np.ndarray) -> bool:
    if not path.is_file():
        return False
    try:
        return np.array_equal(read_pixels(path), mask.astype(np.uint8) * 255)
    except UnreadableError:
        return False


def _keep(path: Path, folder: Path) -> None:
    """Copy a file that is about to be replaced, under a name that tells its content apart; once."""
    folder.mkdir(exist_ok=True)
    digest = file_sha256(path)[:12]
    copy = folder / f"{path.stem}_{digest}{path.suffix}"
    if not copy.exists():
        with atomic_write(copy, None, durable=False) as unfinished:
            shutil.copy2(path, unfinished)
