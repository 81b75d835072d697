"""Database of the label server, kept between calls and processes: scores, leases and labels."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_kwtl.errors import KWTLError
from monai_kwtl.scoring.store import SCORES, pack_maps, pack_scores, to_bytes, unpack, unpack_map, unpack_scores
from monai_kwtl.windows.box import Box
from monai_kwtl.windows.grid import WindowGrid
from monai_kwtl.windows.scores import ImageScores

__all__ = ["Kept", "Lease", "SIDECAR_NAME", "Scoring", "Sidecar"]

SIDECAR_NAME = "kwtl_scores.sqlite"
_VERSION = 2
_TABLES = """
CREATE TABLE IF NOT EXISTS scorings (
    id INTEGER PRIMARY KEY AUTOINCREMENT, method TEXT NOT NULL, model TEXT NOT NULL, settings TEXT NOT NULL,
    window INTEGER NOT NULL, step INTEGER NOT NULL, UNIQUE (method, model, settings));
CREATE TABLE IF NOT EXISTS scores (
    scoring INTEGER NOT NULL REFERENCES scorings (id), image TEXT NOT NULL, page INTEGER NOT NULL,
    scores BLOB NOT NULL, maps BLOB NOT NULL, PRIMARY KEY (scoring, image, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT NOT NULL, mode TEXT NOT NULL, image TEXT NOT NULL,
    page INTEGER NOT NULL, x INTEGER NOT NULL, y INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL,
    until REAL NOT NULL);
CREATE TABLE IF NOT EXISTS known (
    image TEXT NOT NULL, page INTEGER NOT NULL, x INTEGER NOT NULL, y INTEGER NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, PRIMARY KEY (image, page, x, y, width, height)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (
    id TEXT NOT NULL, tag TEXT NOT NULL, version INTEGER NOT NULL, suffix TEXT NOT NULL, sha256 TEXT NOT NULL,
    placed INTEGER NOT NULL, PRIMARY KEY (id, tag)) WITHOUT ROWID;
"""


class Lease(NamedTuple):
    """A region given to a client until a point in time, in seconds since the epoch."""

    id: int
    client: str
    mode: str
    image: str
    page: int | None
    box: Box
    until: float


class Kept(NamedTuple):
    """Version of a label in use.

    Args:
        id: of the image.
        tag: of the label.
        version: number of it, from 1.
        suffix: of its file.
        sha256: of its file; empty for a label that was taken away.
        placed: whether it lies where readers look for it, too.
    """

    id: str
    tag: str
    version: int
    suffix: str
    sha256: str
    placed: bool


class Scoring(NamedTuple):
    """Settings that scores of one kind depend on besides the image."""

    method: str
    model: str
    settings: str
    window: int
    step: int


def _page(item: Mapping[str, Any]) -> int:
    return -1 if item["page"] is None else int(item["page"])


def _key(item: Mapping[str, Any]) -> tuple[str, int]:
    return item["sha256"], _page(item)


class Sidecar:
    """A SQLite database in WAL mode beside the studies.

    Every write is one transaction: a process that is killed leaves all that it had written and nothing in halves, and
    any number of processes may read and write at once. Images are known by the SHA-256 of their file and by page, so
    that they may be renamed and moved.

    Args:
        path: of the database; made with its first use.
        wait: seconds to wait for another process's write.

    Raises:
        KWTLError: out of every method, when the file is no such database or cannot be written.
    """

    def __init__(self, path: str | os.PathLike, wait: float = 60.0) -> None:
        self.path, self.wait = Path(path), wait
        self._seen: dict[tuple, ImageScores] = {}

    @contextlib.contextmanager
    def _open(self, write: bool = False, durable: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            # closing() because sqlite3's own context manager ends the transaction only
            with contextlib.closing(sqlite3.connect(self.path, timeout=self.wait, isolation_level=None)) as database:
                self._prepare(database)
                # both survive the death of a process, FULL that of the machine as well
                database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield database
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise KWTLError(
                f"{self.path} cannot be used ({error}): move it away, start the server again, and score again."
            ) from error

    def _prepare(self, database: sqlite3.Connection) -> None:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > _VERSION:
            raise KWTLError(f"{self.path} was written by a newer version of KWTL: install that, or move it away.")
        if version < _VERSION:
            self._write_ahead(database)
            database.execute("BEGIN IMMEDIATE")
            for statement in _TABLES.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version={_VERSION}")
            database.execute("COMMIT")

    def _write_ahead(self, database: sqlite3.Connection) -> None:
        """Switch to WAL mode. SQLite does not wait where several processes do so with a new file at once: so we do."""
        deadline = time.monotonic() + self.wait
        while True:
            try:
                database.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    # --- scores -------------------------------------------------------------------------------------------------------

    def put(self, scoring: Scoring, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Keep the scores of an image.

        Args:
            scoring: what they depend on.
            item: of the pool, with ``sha256`` and ``page``.
            output: of :class:`~monai_kwtl.scoring.window_scores.WindowScoreInferer`.
        """
        scores, maps = to_bytes(pack_scores(output)), to_bytes(pack_maps(output))
        with self._open(write=True) as database:
            database.execute("INSERT OR IGNORE INTO scorings VALUES (NULL, ?, ?, ?, ?, ?)", scoring)
            number = self._number(database, scoring)
            database.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)", (number, *_key(item), scores, maps)
            )

    @staticmethod
    def _number(database: sqlite3.Connection, scoring: Scoring) -> int | None:
        row = database.execute(
            "SELECT id FROM scorings WHERE method=? AND model=? AND settings=?", scoring[:3]
        ).fetchone()
        return None if row is None else row[0]

    def scorings(self, method: str) -> list[Scoring]:
        """Return the kinds of scores there are of a method, the one begun last first."""
        query = "SELECT method, model, settings, window, step FROM scorings WHERE method=? ORDER BY id DESC"
        with self._open() as database:
            return [Scoring(*row) for row in database.execute(query, (method,))]

    def unscored(self, scoring: Scoring, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the items that have no scores of this kind."""
        with self._open() as database:
            number = self._number(database, scoring)
            found = set(database.execute("SELECT image, page FROM scores WHERE scoring=?", (number,)))
        return [item for item in items if _key(item) not in found]

    def get(self, scoring: Scoring, item: Mapping[str, Any]) -> ImageScores | None:
        """Return the scores of an image; None where there are none, or they do not belong to its size."""
        seen = (scoring, _key(item), item["name"])
        scores = self._seen.get(seen)  # another thread may empty it at any moment
        if scores is None:
            blob = self._blob(scoring, item, "scores")
            grid = WindowGrid(item["height"], item["width"], scoring.window, scoring.step)
            scores = unpack_scores(item, grid, unpack(io.BytesIO(blob), SCORES)) if blob else None
            if scores is not None:
                self._seen[seen] = scores  # what the key says does not change
        return scores

    def score_map(self, scoring: Scoring, item: Mapping[str, Any]) -> np.ndarray | None:
        """Return the score map of an image, float32 (H, W), in 256 steps; None where it was not kept."""
        blob = self._blob(scoring, item, "maps")
        return unpack_map(unpack(io.BytesIO(blob), ("score", "score_top"))) if blob else None

    def _blob(self, scoring: Scoring, item: Mapping[str, Any], column: str) -> bytes | None:
        with self._open() as database:
            number = self._number(database, scoring)
            query = f"SELECT {column} FROM scores WHERE scoring=? AND image=? AND page=?"
            row = database.execute(query, (number, *_key(item))).fetchone()
        return None if row is None else row[0]

    def forget(self, method: str, keep: int = 2) -> None:
        """Drop the scores of a method but those of the kinds begun last, so that trainings do not fill the disk."""
        with self._open(write=True) as database:
            rows = database.execute("SELECT id FROM scorings WHERE method=? ORDER BY id DESC", (method,)).fetchall()
            for (number,) in rows[keep:]:
                database.execute("DELETE FROM scores WHERE scoring=?", (number,))
                database.execute("DELETE FROM scorings WHERE id=?", (number,))
        self._seen.clear()

    # --- leases -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def leasing(self) -> Iterator[Leases]:
        """Look at all leases and grant new ones, with every other client waiting."""
        with self._open(write=True) as database:
            yield Leases(database)

    def leases(self, item: Mapping[str, Any]) -> list[Lease]:
        """Return every lease of an image that has not come back, run out or not."""
        with self._open() as database:
            return [
                lease for lease in Leases(database).all() if (lease.image, lease.page) == (_key(item)[0], item["page"])
            ]

    def end_leases(self, ids: Sequence[int]) -> None:
        """Take leases back."""
        with self._open(write=True) as database:
            database.executemany("DELETE FROM leases WHERE id=?", [(number,) for number in ids])

    # --- labels -------------------------------------------------------------------------------------------------------

    def labels(self) -> dict[tuple[str, str], Kept]:
        """Return {(id, tag): version in use} of all labels that were ever kept, those taken away too."""
        with self._open() as database:
            return {(row[0], row[1]): Kept(*row[:5], bool(row[5])) for row in database.execute("SELECT * FROM labels")}

    def label(self, identity: str, tag: str) -> Kept | None:
        """Return the version of a label in use; None where none was ever kept."""
        with self._open() as database:
            return self._label(database, identity, tag)

    @staticmethod
    def _label(database: sqlite3.Connection, identity: str, tag: str) -> Kept | None:
        row = database.execute("SELECT * FROM labels WHERE id=? AND tag=?", (identity, tag)).fetchone()
        return None if row is None else Kept(*row[:5], bool(row[5]))

    def commit_label(
        self,
        label: Kept,
        former: int,
        known: Sequence[tuple[Mapping[str, Any], Sequence[Box]]] = (),
        ended: Sequence[int] = (),
    ) -> bool:
        """Let a version of a label count, with what is known by it: all of it, or nothing.

        Args:
            label: the version; its file is on the disk already.
            former: version that counted when this one was made out of it; 0 where there was none.
            known: for each page, where everything has been outlined; replaces what was noted before.
            ended: leases that come to their end with it.

        Returns:
            False, with nothing changed, where another version counts by now.
        """
        with self._open(write=True, durable=True) as database:
            there = self._label(database, label.id, label.tag)
            if (there.version if there else 0) != former:
                return False
            database.execute("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)", label)
            for item, boxes in known:
                self._set_known(database, item, boxes)
            database.executemany("DELETE FROM leases WHERE id=?", [(number,) for number in ended])
        return True

    @contextlib.contextmanager
    def placing(self, identity: str, tag: str) -> Iterator[Kept | None]:
        """Put the version that counts where readers look for it, with every other writer waiting.

        Yields:
            Which version counts; when the body is through it counts as placed.
        """
        with self._open(write=True) as database:
            yield self._label(database, identity, tag)
            database.execute("UPDATE labels SET placed=1 WHERE id=? AND tag=?", (identity, tag))

    # --- what is labelled ---------------------------------------------------------------------------------------------

    def set_known(self, item: Mapping[str, Any], boxes: Sequence[Box]) -> None:
        """Note in which regions of an image everything has been outlined; replaces what was noted before."""
        with self._open(write=True, durable=True) as database:
            self._set_known(database, item, boxes)

    @staticmethod
    def _set_known(database: sqlite3.Connection, item: Mapping[str, Any], boxes: Sequence[Box]) -> None:
        database.execute("DELETE FROM known WHERE image=? AND page=?", _key(item))
        rows = [(*_key(item), *map(int, box)) for box in boxes]
        database.executemany("INSERT OR IGNORE INTO known VALUES (?, ?, ?, ?, ?, ?)", rows)

    def known(self) -> dict[tuple[str, int | None], list[Box]]:
        """Return {(SHA-256, page): the labelled regions} of all images that have any."""
        found: dict[tuple[str, int | None], list[Box]] = {}
        with self._open() as database:
            for image, page, *box in database.execute("SELECT * FROM known ORDER BY image, page, y, x, width, height"):
                found.setdefault((image, None if page < 0 else page), []).append(Box(*box))
        return found


class Leases:
    """The leases inside one transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def all(self) -> list[Lease]:
        """Return every lease, run out or not, the oldest first."""
        rows = self._database.execute("SELECT * FROM leases ORDER BY id")
        return [
            Lease(number, client, mode, image, None if page < 0 else page, Box(*box), until)
            for number, client, mode, image, page, *box, until in rows
        ]

    def live(self) -> list[Lease]:
        """Return the leases that have not run out."""
        now = time.time()
        return [lease for lease in self.all() if lease.until > now]

    def grant(self, client: str, mode: str, item: Mapping[str, Any], box: Box, seconds: float) -> None:
        """Give a region to a client; a former lease of the very region ends."""
        row = (*_key(item), *map(int, box))
        where = "image=? AND page=? AND x=? AND y=? AND width=? AND height=? AND mode=?"
        self._database.execute(f"DELETE FROM leases WHERE {where}", (*row, mode))
        values = (client, mode, *row, time.time() + seconds)
        self._database.execute("INSERT INTO leases VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
