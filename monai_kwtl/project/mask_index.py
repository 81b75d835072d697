"""The note in a folder of masks on what they are of: ``regions.json``, which mask is of which part of which image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.selection_file import read_region, region_to_dict
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.json_documents import read_document, short, write_text

__all__ = ["MaskRecord", "RECORD_NAME", "has_record", "read_record", "write_record"]

RECORD_NAME = "regions.json"
FORMAT = "kwtl-masks/1"
MEND = "write it again with kwtl import"


@dataclass(frozen=True)
class MaskRecord:
    """One mask of a folder.

    Args:
        mask: file name in the folder; the mask has the size of the region.
        region: what it is of; all of it was looked at, so that what the mask leaves empty is background.
        selection_sha256: of the ``selection.json`` that the region comes from.
        source: the tool it was drawn with.
    """

    mask: str
    region: Region
    selection_sha256: str
    source: str


def has_record(folder: str | os.PathLike | None) -> bool:
    """Return True if a folder of masks has a record of their regions."""
    return folder is not None and Path(folder, RECORD_NAME).is_file()


def read_record(folder: str | os.PathLike) -> list[MaskRecord]:
    """Read which regions the masks of a folder are of; no mask is opened.

    Args:
        folder: with ``regions.json`` in it.

    Returns:
        A record for each mask, in the order of the file; no two of the same region.

    Raises:
        KWTLError: one line with file and field, when it is not as :func:`write_record` writes it.
    """
    path = Path(folder, RECORD_NAME)
    document, check = read_document(path, RECORD_NAME, MEND, FORMAT)
    records: list[MaskRecord] = []
    places: set[tuple] = set()
    masks: set[str] = set()
    for index, entry in enumerate(check.get(document, "regions", list, "")):
        where = f"regions[{index}]."
        region = read_region(check, entry, where)
        mask = check.image_name(entry, where, "mask")
        if "/" in mask or "\\" in mask:
            raise check.fail(f"{where}mask must be the name of a file in this folder, not {short(mask)}")
        sha256 = check.sha256(entry, "selection_sha256", where)
        record = MaskRecord(mask, region, sha256, check.get(entry, "source", str, where))
        if region.key in places or mask.casefold() in masks:
            raise check.fail(f"regions[{index}] repeats an earlier region or mask")
        places.add(region.key)
        masks.add(mask.casefold())
        records.append(record)
    return records


def write_record(folder: str | os.PathLike, records: Iterable[MaskRecord]) -> Path:
    """Write ``regions.json`` into a folder of masks, at once.

    Raises:
        KWTLError: when it cannot be written; the former file then stays.
    """
    entries = [
        {
            "mask": record.mask,
            **region_to_dict(record.region),
            "selection_sha256": record.selection_sha256,
            "source": record.source,
        }
        for record in records
    ]
    path = Path(folder, RECORD_NAME)
    try:
        write_text(path, json.dumps({"format": FORMAT, "regions": entries}, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise KWTLError(f"{path} cannot be written ({error.strerror or error}): choose another --output") from error
    return path
