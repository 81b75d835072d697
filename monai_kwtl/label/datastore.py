"""MONAI Label's local datastore with KWTL's image formats, checked names and labels. Needs monailabel."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from monai_kwtl.errors import KWTLError
from monai_kwtl.label.answers import answered, harmless_name, refuse
from monai_kwtl.label.label_import import MASK_SUFFIXES, import_label, read_masks, write_masks
from monai_kwtl.label.outlines import OUTLINE_SUFFIXES
from monai_kwtl.label.sidecar import Sidecar
from monai_kwtl.label.studies import Studies, split_suffix
from monai_kwtl.readers import SUFFIXES, has_suffix

__all__ = ["FINAL", "KWTLDatastore"]

FINAL = "final"  # the tag of labels that are trained on


class KWTLDatastore(LocalDatastore):
    """Images of a folder, and what clients send for them.

    Args:
        studies: the images.
        sidecar: knows which regions were given out and which are labelled.
        auto_reload: whether MONAI Label watches the folder for new files.
    """

    def __init__(self, studies: Studies, sidecar: Sidecar, auto_reload: bool = True) -> None:
        self.studies, self.sidecar = studies, sidecar
        inner = studies.image_dir != studies.folder
        extensions = [f"*{suffix}" for suffix in SUFFIXES]
        super().__init__(
            str(studies.folder),
            images_dir="images" if inner else ".",
            extensions=[*extensions, *(extension.upper() for extension in extensions)],
            auto_reload=auto_reload,
        )

    def _to_id(self, file: str) -> tuple[str, str]:
        for suffix in OUTLINE_SUFFIXES:
            if file.lower().endswith(suffix):
                return file[: -len(suffix)], file[-len(suffix) :]
        return split_suffix(file)

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        return {name: name for name in names if has_suffix(name, SUFFIXES) and not name.startswith(".")}

    # --- images -------------------------------------------------------------------------------------------------------

    def _known_image(self, image_id: str) -> None:
        if image_id not in self._datastore.objects:
            self.refresh()  # a file that came a moment ago
        if image_id not in self._datastore.objects:
            raise refuse(404, f"there is no image {str(image_id)[:60]!r}; GET /datastore/?output=all lists them.")

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image; nothing that is there is replaced."""
        identity, suffix = self._to_id(os.path.basename(image_filename))
        identity = harmless_name(image_id or identity, "the id of an image")
        if suffix.lower() not in SUFFIXES:
            raise refuse(
                400, f"an image cannot be a {suffix or 'file without suffix'}: send one of {', '.join(SUFFIXES)}."
            )
        if identity in self._datastore.objects or (self.studies.image_dir / f"{identity}{suffix}").exists():
            raise refuse(409, f"there is an image {identity!r} already: choose another id.")
        return super().add_image(identity, image_filename, image_info)

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels."""
        self._known_image(image_id)
        super().remove_image(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is noted of an image."""
        self._known_image(image_id)
        super().update_image_info(image_id, info)

    # --- labels -------------------------------------------------------------------------------------------------------

    def label_file(self, image_id: str, tag: str = FINAL) -> Path | None:
        """The mask of an image under a tag; None where there is none."""
        folder = Path(self._datastore.label_path(tag))
        found = [folder / f"{image_id}{suffix}" for suffix in (*MASK_SUFFIXES, *map(str.upper, MASK_SUFFIXES))]
        return next((path for path in found if path.is_file()), None)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label, make one mask of it, and keep that; a label that cannot be used changes nothing.

        A mask of whole images stays byte for byte as it came. Outlines are rasterised by pixel centres, and kept
        beside the mask as they came.
        """
        tag = harmless_name(getattr(label_tag, "value", label_tag), "the tag of a label")
        self._known_image(image_id)
        source = Path(label_filename)
        params = label_info if isinstance(label_info, dict) else {}
        with answered():
            pages = self.studies.pages(image_id)
            if not pages:
                raise KWTLError(f"the image {image_id!r} cannot be read, so that a label cannot be checked against it.")
            path = self.label_file(image_id, tag)
            former = None if path is None else read_masks(path, pages)
            leases = {page["page"]: self.sidecar.leases(page) for page in pages} if tag == FINAL else {}
            known = self.sidecar.known() if tag == FINAL else {}
            try:
                label = import_label(source, pages, params, former, known, leases)
            except OSError as error:
                raise KWTLError(f"the label cannot be read ({error.strerror}).") from error
        with tempfile.TemporaryDirectory() as folder:
            mask = source
            if not label.as_it_came:
                mask = Path(folder) / f"{image_id}{'.png' if len(pages) == 1 else '.tif'}"
                write_masks(mask, label.masks)
            super().save_label(image_id, str(mask), tag, params)
        kept = self.label_file(image_id, tag)
        if path is not None and kept is not None and path.suffix != mask.suffix:
            path.unlink(missing_ok=True)  # the former label; two files of one name would both claim to be the mask
        if source.suffix.lower() in OUTLINE_SUFFIXES:
            shutil.copyfile(source, Path(self._datastore.label_path(tag)) / f"{image_id}{source.suffix.lower()}")
        if tag == FINAL:
            with answered(500):
                for page, boxes in zip(pages, label.known, strict=True):
                    self.sidecar.set_known(page, boxes)
                    covered = set(boxes)
                    done = [out.id for out in leases[page["page"]] if out.box in covered or out.mode == "image"]
                    self.sidecar.end_leases(done)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; what was known of its image is forgotten."""
        tag = harmless_name(getattr(label_tag, "value", label_tag), "the tag of a label")
        if not self._datastore.label(label_id, tag):
            raise refuse(404, f"there is no label {str(label_id)[:60]!r} with the tag {tag!r}.")
        super().remove_label(label_id, tag)
        if tag == FINAL:
            for page in self.studies.pages(label_id):
                self.sidecar.set_known(page, [])

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is noted of a label."""
        if not self._datastore.label(label_id, label_tag):
            raise refuse(404, f"there is no label {str(label_id)[:60]!r} with the tag {str(label_tag)[:60]!r}.")
        super().update_label_info(label_id, label_tag, info)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Images and labels as a ZIP."""
        if not self.datalist():
            raise refuse(404, "nothing is labelled yet, so that there is nothing to put into an archive.")
        return super().get_dataset_archive(limit_cases)

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        try:
            super()._init_from_datastore_file(throw_exception)
        except (ValueError, json.JSONDecodeError) as error:
            raise KWTLError(
                f"{self._datastore_config_path} is broken ({str(error).splitlines()[0]}): move it away; labels stay."
            ) from error
