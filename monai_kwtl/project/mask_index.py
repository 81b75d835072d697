"""The note in a folder of masks on what they are of: ``regions.json``, which mask is of which part of which image."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from monai_kwtl.errors import KWTLError
from monai_kwtl.project.selection_file import region_of, region_to_dict
from monai_kwtl.selection.regions import Region
from monai_kwtl.utils.atomic import write_text
from monai_kwtl.utils.json_documents import read_document

__all__ = ["MaskRecord", "RECORD_NAME", "has_record", "read_record", "write_record"]

RECORD_NAME = "regions.json"
FORMAT = "kwtl-masks/1"
FIX = "write it again with kwtl import"
SCHEMA = Path(__file__).with_name("regions.schema.json")


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
    document = read_document(path, RECORD_NAME, FIX, SCHEMA)
    records: list[MaskRecord] = []
    places: set[tuple] = set()
    masks: set[str] = set()
    for index, entry in enumerate(document["regions"]):
        record = MaskRecord(entry["mask"], region_of(entry), entry["selection_sha256"], entry["source"])
        if record.region.key in places or record.mask.casefold() in masks:
            raise KWTLError(f"{path}: regions[{index}] repeats an earlier region or mask; {FIX}")
        places.add(record.region.key)
        masks.add(record.mask.casefold())
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
    text = json.dumps({"format": FORMAT, "regions": entries}, indent=2, allow_nan=False) + "\n"
    write_text(path, text, "choose another --output")
    return path
