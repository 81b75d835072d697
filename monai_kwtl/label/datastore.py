"""MONAI Label's local datastore with KWTL's image formats, checked names and durable labels. Needs monailabel.

Each label is first written as a new file below ``label_versions``; then one transaction of the sidecar says that this
version counts, and where it is known; then it is put into ``labels/<tag>``, where MONAI Label and the training read it.
Whatever dies in between, the next start, or the next look at the label, puts there what the sidecar names.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore

from monai_kwtl.data.pool import scan_file
from monai_kwtl.errors import KWTLError
from monai_kwtl.label.http_errors import answered, harmless_name, refuse
from monai_kwtl.label.state.database import Kept, Sidecar
from monai_kwtl.label.state.labels import CONFIRM, MASK_SUFFIXES, import_label, mask_bytes, read_masks, whole
from monai_kwtl.label.state.outlines import OUTLINE_SUFFIXES
from monai_kwtl.label.state.studies import Studies, image_id, split_suffix
from monai_kwtl.readers.image_files import SUFFIXES, has_suffix
from monai_kwtl.utils.atomic import atomic_write, remove_leftovers, sync_folder, write_text
from monai_kwtl.utils.hashing import file_sha256
from monai_kwtl.windows.box import Box

__all__ = ["FINAL", "KWTLDatastore"]

logger = logging.getLogger("monai_kwtl")

FINAL = "final"  # the tag of labels that are trained on
FORMER = 3  # versions of a label that are kept besides the one that counts
VERSIONS, SET_ASIDE = "label_versions", "set_aside"
HINT = "make room, or fix its permissions."


def _one_at_a_time(name: str) -> Any:
    """Wrap MONAI Label's method of that name, with the other threads waiting: none is made for several."""
    inherited = getattr(LocalDatastore, name)

    @functools.wraps(inherited)
    def method(self: KWTLDatastore, *arguments: Any, **named: Any) -> Any:
        with self._guard:
            return inherited(self, *arguments, **named)

    return method


class KWTLDatastore(LocalDatastore):
    """Images of a folder, and what clients send for them.

    Args:
        studies: the images.
        sidecar: knows which regions were given out, which version of a label counts, and what is known by it.
        auto_reload: whether MONAI Label watches the folder for new files.
    """

    def __init__(self, studies: Studies, sidecar: Sidecar, auto_reload: bool = True) -> None:
        self.studies, self.sidecar = studies, sidecar
        self._guard = threading.RLock()  # of what MONAI Label holds in memory and in its file
        self._labelling: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)  # one upload an image
        self._agreed: dict[tuple[str, str], tuple] = {}
        inner = studies.image_dir != studies.folder
        extensions = [f"*{suffix}" for suffix in SUFFIXES]
        super().__init__(
            str(studies.folder),
            images_dir="images" if inner else ".",
            extensions=[*extensions, *(extension.upper() for extension in extensions)],
            auto_reload=auto_reload,
        )
        self._tidy()
        self.settle()

    _reconcile_datastore = _one_at_a_time("_reconcile_datastore")
    datalist = _one_at_a_time("datalist")
    get_image_uri = _one_at_a_time("get_image_uri")
    get_image_info = _one_at_a_time("get_image_info")
    get_label_uri = _one_at_a_time("get_label_uri")
    get_labels_by_image_id = _one_at_a_time("get_labels_by_image_id")
    get_label_info = _one_at_a_time("get_label_info")
    list_images = _one_at_a_time("list_images")
    json = _one_at_a_time("json")

    def _to_id(self, file: str) -> tuple[str, str]:
        for suffix in OUTLINE_SUFFIXES:
            if file.lower().endswith(suffix):
                return file[: -len(suffix)], file[-len(suffix) :]
        return split_suffix(file)

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        return {name: name for name in names if has_suffix(name, SUFFIXES) and not name.startswith(".")}

    # --- MONAI Label's own file ---------------------------------------------------------------------------------------

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        with self._guard:
            try:
                super()._init_from_datastore_file(throw_exception)
            except ValueError:  # MONAI Label makes it again out of the folder
                self._move_aside(Path(self._datastore_config_path), "")
                logger.warning(f"{self._datastore_config_path} was broken: it is in {SET_ASIDE}, and was made again")

    def _update_datastore_file(self, lock: bool = True) -> None:
        with self._guard:
            text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
            write_text(self._datastore_config_path, text, HINT)
            self._config_ts = os.stat(self._datastore_config_path).st_mtime

    # --- images -------------------------------------------------------------------------------------------------------

    def _known_image(self, image_id: str) -> None:
        with self._guard:
            if image_id not in self._datastore.objects:
                self._reconcile_datastore()  # a file that came a moment ago
            if image_id not in self._datastore.objects:
                raise refuse(404, f"there is no image {str(image_id)[:60]!r}; GET /datastore/?output=all lists them.")

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an image that can be read; nothing that is there is replaced."""
        identity, suffix = self._to_id(os.path.basename(image_filename))
        identity = harmless_name(image_id or identity, "the id of an image")
        if suffix.lower() not in SUFFIXES:
            raise refuse(
                400, f"an image cannot be a {suffix or 'file without suffix'}: send one of {', '.join(SUFFIXES)}."
            )
        name = f"{identity}{suffix}"
        readable, broken, _ = scan_file({"image": str(image_filename), "name": name, "page": None})
        if not readable:
            raise refuse(400, f"the image cannot be read: {', '.join(broken[:3])}; save it anew as PNG or TIFF.")
        with self._guard:
            path = self.studies.image_dir / name
            if identity in self._datastore.objects or path.exists():
                raise refuse(409, f"there is an image {identity!r} already: choose another id.")
            with answered(500), atomic_write(path, HINT) as unfinished:
                shutil.copyfile(image_filename, unfinished)
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            self._datastore.objects[identity] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
            self._update_datastore_file()
        return identity

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels; the versions of the labels stay."""
        self._known_image(image_id)
        super().remove_image(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Add to what is noted of an image."""
        self._known_image(image_id)
        with self._guard:
            super().update_image_info(image_id, info)

    def _complete(self) -> tuple[set[str], set[str]]:
        """Return the ids of the images that are wholly labelled, and of those that are in part."""
        try:
            items, known = self.studies.items(), self.sidecar.known()
        except KWTLError:  # no image can be read
            return set(), set()
        boxes = [(image_id(item["name"]), whole(item), known.get((item["sha256"], item["page"]), [])) for item in items]
        begun = {identity for identity, _, there in boxes if there}
        left = {identity for identity, everything, there in boxes if everything not in there}
        return begun - left, begun & left

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images that are wholly labelled."""
        complete = self._complete()[0]
        return [identity for identity in self.list_images() if identity in complete]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images of which something is left to label."""
        complete = self._complete()[0]
        return [identity for identity in self.list_images() if identity not in complete]

    def status(self) -> dict[str, Any]:
        """Count the images: all, ``completed``, labelled ``in_part``; and name those that are ``unreadable``."""
        self.settle()
        complete, begun = self._complete()
        with self._guard:
            status = super().status()
        return {
            **status,
            "completed": len(complete),
            "in_part": len(begun),
            "unreadable": self.studies.unreadable,
        }

    # --- labels -------------------------------------------------------------------------------------------------------

    def _folder(self, tag: str) -> Path:
        return Path(self._datastore.label_path(tag))

    def _masks(self, tag: str) -> dict[str, list[Path]]:
        """Return {id: the masks of an image under a tag}; more than one only until :meth:`settle` has seen it."""
        folder, found = self._folder(tag), defaultdict(list)
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in names:
            identity, suffix = split_suffix(name)
            if suffix.lower() in MASK_SUFFIXES and not name.startswith(".") and (folder / name).is_file():
                found[identity].append(folder / name)
        return found

    def label_file(self, image_id: str, tag: str = FINAL) -> Path | None:
        """Return the mask of an image under a tag; None where there is none."""
        return next(iter(self._masks(tag).get(image_id, [])), None)

    def _version(self, label: Kept) -> Path:
        folder = self.studies.folder / VERSIONS / label.tag / label.id
        return folder / f"{label.version:06d}_{label.sha256[:16]}{label.suffix}"

    def _versions(self, identity: str, tag: str) -> dict[Path, tuple[int, str]]:
        """Return {file: number and begin of the SHA-256} of the versions that are kept of a label."""
        folder, found = self.studies.folder / VERSIONS / tag / identity, {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            number, _, rest = path.name.partition("_")
            if number.isdecimal():
                found[path] = int(number), rest[:16]
        return found

    def _keep(self, identity: str, tag: str, former: int, content: bytes, suffix: str) -> Kept:
        """Write a new version of a label; it does not count yet."""
        numbers = [number for number, _ in self._versions(identity, tag).values()]
        digest = hashlib.sha256(content).hexdigest()
        label = Kept(identity, tag, max([former, *numbers]) + 1, suffix, digest, False)
        path = self._version(label)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in path.parents[1:4]:
                sync_folder(folder)
        with atomic_write(path, HINT) as unfinished:
            unfinished.write_bytes(content)
        return label

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Check a label, make one mask of it, and keep that; a label that cannot be used changes nothing.

        A mask of whole images stays byte for byte as it came. Outlines are rasterised by pixel centres, and kept
        beside the mask as they came.
        """
        tag = harmless_name(getattr(label_tag, "value", label_tag), "the tag of a label")
        self._known_image(image_id)
        source = Path(label_filename)
        params = label_info if isinstance(label_info, dict) else {}
        with answered(), self._labelling[image_id]:
            pages = self.studies.pages(image_id)
            if not pages:
                raise KWTLError(f"the image {image_id!r} cannot be read, so that a label cannot be checked against it.")
            while not self._save(image_id, pages, source, tag, params):
                pass  # another process has labelled the image meanwhile: the label goes on top of that
            if source.suffix.lower() in OUTLINE_SUFFIXES:
                with atomic_write(self._folder(tag) / f"{image_id}{source.suffix.lower()}", HINT) as unfinished:
                    shutil.copyfile(source, unfinished)
        return image_id

    def _save(
        self, identity: str, pages: Sequence[dict[str, Any]], source: Path, tag: str, params: dict[str, Any]
    ) -> bool:
        kept = self._agree(identity, tag, {})
        if tag != FINAL:  # a prediction, which may be anything
            params = {**params, "confirm": list(CONFIRM)}
        leases = {page["page"]: self.sidecar.leases(page) for page in pages} if tag == FINAL else {}
        before = None
        if kept is not None and kept.sha256:
            before = read_masks(self._version(kept), pages)
        try:
            label = import_label(source, pages, params, before, self.sidecar.known() if tag == FINAL else {}, leases)
            suffix = source.suffix.lower() if label.as_it_came else ".png" if len(pages) == 1 else ".tif"
            content = source.read_bytes() if label.as_it_came else mask_bytes(label.masks, suffix)
        except OSError as error:
            raise KWTLError(f"the label cannot be read ({error.strerror}).") from error
        former = kept.version if kept is not None else 0
        new = self._keep(identity, tag, former, content, suffix)
        known, ended = [], []
        if tag == FINAL:
            known = list(zip(pages, label.known, strict=True))
            for page, boxes in known:
                out = leases[page["page"]]
                ended += [lease.id for lease in out if lease.box in set(boxes) or lease.mode == "image"]
        if not self.sidecar.commit_label(new, former, known, ended):
            self._version(new).unlink(missing_ok=True)
            return False
        self._place(identity, tag, params)
        for path, (number, _) in self._versions(identity, tag).items():
            if number < new.version - FORMER:
                path.unlink(missing_ok=True)
        return True

    def _place(self, identity: str, tag: str, info: dict[str, Any] | None = None) -> None:
        """Put the version that counts where it is looked for; what lies there is a former version, or is set aside."""
        digests = {digest for _, digest in self._versions(identity, tag).values()}
        with self.sidecar.placing(identity, tag) as label:
            target = None
            if label.sha256:
                target = self._folder(tag) / f"{identity}{label.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
            for path in self._masks(tag).get(identity, []):
                if file_sha256(path)[:16] not in digests:
                    self._move_aside(path, tag)
            if target is not None:
                with atomic_write(target, HINT) as unfinished:
                    shutil.copyfile(self._version(label), unfinished)
            for path in self._masks(tag).get(identity, []):
                if path != target:
                    path.unlink(missing_ok=True)  # two files of one name would both claim to be the mask
        self._register(label, info)

    def _register(self, label: Kept, info: dict[str, Any] | None = None) -> None:
        """Tell MONAI Label of a label, and in its file, as a second record, where the label is known."""
        known = self.sidecar.known() if label.tag == FINAL else {}
        boxes = [known.get((page["sha256"], page["page"]), []) for page in self.studies.pages(label.id)]
        name = f"{label.id}{label.suffix}"
        info = {**(info or {}), "ts": int(time.time()), "name": name, "kwtl": {"sha256": label.sha256, "known": boxes}}
        with self._guard:
            there = self._datastore.objects.get(label.id)
            if there is not None:
                there.labels.pop(label.tag, None)
                if label.sha256:
                    there.labels[label.tag] = DataModel(info=info, ext=label.suffix)
                self._update_datastore_file()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label; what was known of its image is forgotten. Its versions stay."""
        tag = harmless_name(getattr(label_tag, "value", label_tag), "the tag of a label")
        with answered(), self._labelling[label_id]:
            while True:
                kept = self._agree(label_id, tag, {})
                if kept is None or not kept.sha256:
                    raise refuse(404, f"there is no label {str(label_id)[:60]!r} with the tag {tag!r}.")
                if self._forget(kept, placed=False):
                    break
            self._place(label_id, tag)

    def _forget(self, kept: Kept, placed: bool) -> bool:
        known = [(page, []) for page in self.studies.pages(kept.id)] if kept.tag == FINAL else []
        gone = kept._replace(version=kept.version + 1, suffix="", sha256="", placed=placed)
        return self.sidecar.commit_label(gone, kept.version, known)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Add to what is noted of a label."""
        with self._guard:
            if not self._datastore.label(label_id, label_tag):
                raise refuse(404, f"there is no label {str(label_id)[:60]!r} with the tag {str(label_tag)[:60]!r}.")
            super().update_label_info(label_id, label_tag, info)

    # --- what lies in the folders and what is on record ---------------------------------------------------------------

    def _tidy(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        labels, versions = Path(self._datastore.label_path(None)), self.studies.folder / VERSIONS
        folders = [self.studies.folder, self.studies.image_dir, *labels.glob("*/"), *versions.glob("*/*/")]
        for folder in folders:
            remove_leftovers(folder)

    def settle(self) -> None:
        """Make the labels that lie in the folders and those on record agree, and say in one line what was done.

        What was killed before it came to its place is put there. A mask that was put there by hand counts as complete;
        one that was changed by hand is taken over, known where it was. What cannot be used is set aside.
        """
        rows, said = self.sidecar.labels(), defaultdict(list)
        with self._guard:
            images = set(self._datastore.objects)
        labels = Path(self._datastore.label_path(None))
        tags = {tag for _, tag in rows} | {path.name for path in labels.iterdir() if path.is_dir()}
        for tag in sorted(tags):
            there = self._masks(tag)
            on_record = {row.id for row in rows.values() if row.tag == tag and (row.sha256 or not row.placed)}
            for identity in sorted((there.keys() | on_record) & images):
                state = self._state(rows.get((identity, tag)), there.get(identity, []))
                if self._agreed.get((identity, tag)) != state:
                    self._agree(identity, tag, said)
        words = [f"{len(names)} {what} ({', '.join(names[:5])}{' ...' if len(names) > 5 else ''})"
                 for what, names in said.items()]  # fmt: skip
        if words:
            logger.warning(f"labels: {'; '.join(words)}")

    @staticmethod
    def _state(kept: Kept | None, there: Sequence[Path]) -> tuple:
        """Return what :meth:`_agree` depends on, but for the content of files, which change with their time or size."""
        files = []
        for path in there:
            try:
                state = path.stat()
                files.append((path, state.st_mtime_ns, state.st_size))
            except OSError:
                files.append((path, 0, -1))
        return kept, tuple(files)

    def _agree(self, identity: str, tag: str, said: dict[str, list[str]]) -> Kept | None:
        """Make what lies in the folder and what is on record agree for one label; returns what counts."""
        with self._labelling[identity]:
            while True:
                kept, there = self.sidecar.label(identity, tag), self._masks(tag).get(identity, [])
                state = self._state(kept, there)
                if self._agreed.get((identity, tag)) == state or self._compared(identity, tag, kept, there, said):
                    self._agreed[identity, tag] = state
                    return kept

    def _compared(
        self, identity: str, tag: str, kept: Kept | None, there: list[Path], said: dict[str, list[str]]
    ) -> bool:
        """Return True if a label agrees; where not, something was done about it, and it is to be looked at again."""
        say = lambda what: said.setdefault(what, []).append(f"{tag}/{identity}")  # noqa: E731
        if kept is not None and not kept.placed:
            self._place(identity, tag)
            say("put in place after an interruption")
            return False
        counts = kept is not None and bool(kept.sha256)
        own = self._folder(tag) / f"{identity}{kept.suffix}" if counts else None
        if counts and not there:
            self._forget(kept, placed=True)
            say("forgotten, whose files are not there any more")
            return False
        if not there:
            return True
        if own in there and file_sha256(own) == kept.sha256:
            if not self._version(kept).is_file():
                self._version(kept).parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self._version(kept), HINT) as unfinished:
                    shutil.copyfile(own, unfinished)
            for other in there:
                if other != own:
                    self._set_aside(other, kept, identity, tag)
                    say(f"moved to {SET_ASIDE}, because there is another mask of the image")
            if tag == FINAL and self._note(identity, tag).get("sha256") != kept.sha256:
                self._register(kept, self._info(identity, tag))
            return len(there) == 1
        return self._adopt(own if own in there else there[0], identity, tag, kept, say)

    def _info(self, identity: str, tag: str) -> dict[str, Any]:
        with self._guard:
            label = self._datastore.label(identity, tag)
            return dict(label.info) if label else {}

    def _note(self, identity: str, tag: str) -> dict[str, Any]:
        note = self._info(identity, tag).get("kwtl")
        return note if isinstance(note, dict) else {}

    def _adopt(self, path: Path, identity: str, tag: str, kept: Kept | None, say: Any) -> bool:
        """Take over a mask that is not the one on record; returns False where it is to be looked at again."""
        try:
            pages = self.studies.pages(identity)
            if not pages:
                return True  # an image that cannot be read at present: nothing is known against its labels
            content = path.read_bytes()
            read_masks(path, pages)
        except FileNotFoundError:
            return False
        except (KWTLError, OSError):
            if kept is None or not kept.sha256:
                say("left out, because the file cannot be used")
                return True
            self._set_aside(path, kept, identity, tag)
            self._place(identity, tag)
            say(f"put in place again; the file there could not be used and is in {SET_ASIDE}")
            return False
        known: list[tuple[dict[str, Any], list[Box]]] = []
        if kept is not None and kept.sha256:
            say("changed by hand and taken over, known where they were")
        elif tag == FINAL:
            on_record, note = self.sidecar.known(), self._note(identity, tag)
            if any((page["sha256"], page["page"]) in on_record for page in pages):
                pass  # of a version of KWTL that knew no versions of labels
            elif note.get("sha256") == hashlib.sha256(content).hexdigest() and len(note["known"]) == len(pages):
                known = [(page, [Box(*box) for box in boxes]) for page, boxes in zip(pages, note["known"], strict=True)]
                say("taken over as MONAI Label's file has them")
            elif self._info(identity, tag).keys() - {"ts", "name", "kwtl"}:
                self._set_aside(path, kept, identity, tag)
                say(f"moved to {SET_ASIDE}, because their upload never came to its end")
                return False
            else:
                known = [(page, [whole(page)]) for page in pages]
                say("put there by hand, complete")
        former = kept.version if kept is not None else 0
        label = self._keep(identity, tag, former, content, path.suffix)._replace(placed=True)
        self.sidecar.commit_label(label, former, known)
        return False

    def _set_aside(self, path: Path, kept: Kept | None, identity: str, tag: str) -> None:
        """Move a file away, unless another version counts by now, which it may be."""
        with self.sidecar.placing(identity, tag) as now:
            if now == kept:
                self._move_aside(path, tag)

    def _move_aside(self, path: Path, tag: str) -> None:
        folder = self.studies.folder / SET_ASIDE / tag
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            target = folder / (path.name if number == 1 else f"{path.stem}_{number}{path.suffix}")
            if not target.exists():
                break
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, target)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Return images and labels as a ZIP."""
        if not self.datalist():
            raise refuse(404, "nothing is labelled yet, so that there is nothing to put into an archive.")
        return super().get_dataset_archive(limit_cases)
