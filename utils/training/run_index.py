"""The runs of a workspace in one SQLite file beside them. A memory of what the folders say, never the truth itself.

The truth lies in the run folders: a file that is lost, damaged or of another release is made again from them, a folder that was
copied in or deleted by hand is seen by the next look, and whoever cannot have the file gets the same answer without it. Several
processes may write at once. No error of the index ever reaches a training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from utils.errors import TrainingError
from utils.training.run_mirror import RUN_FILE
from utils.training.run_record import COLUMNS, RunRecord, stamp_of

logger = logging.getLogger(__name__)

INDEX_FILE = ".runs.sqlite"
"""Name of the index in the workspace; hidden, as `.cache` is, for nobody needs to keep it."""

PATIENCE = 5.0
"""Seconds that one process waits for another that is writing; each write takes milliseconds."""

_KINDS = {"str": "TEXT", "int": "INTEGER", "float": "REAL", "bool": "INTEGER"}
_STAMP = "stamp"
_NAMES = (*COLUMNS, _STAMP)

ROOM = 10_000_000
"""Free bytes below which nothing is noted: what is left belongs to checkpoints, and the folders tell the same."""


class RunIndex:
    """The index of one workspace.

    Args:
        workspace: folder that holds one folder per run.
        patience: seconds to wait for other writers.

    Example:
        >>> [record.name for record in RunIndex("runs").refresh()]
    """

    def __init__(self, workspace: str | Path, patience: float = PATIENCE) -> None:
        self.workspace, self.patience = Path(workspace).expanduser(), patience

    @property
    def path(self) -> Path:
        """The SQLite file; its table `runs` has one row per run with the fields of `RunRecord`."""
        return self.workspace / INDEX_FILE

    def record(self, folder: str | Path) -> bool:
        """Note what a run's folder says now; whether that was possible. What fails is a warning: the next look finds the run.

        Args:
            folder: of a run in this workspace.
        """
        path = Path(folder)
        try:
            if shutil.disk_usage(self.workspace).free < ROOM:
                raise OSError(f"less than {ROOM // 10**6} MB of the disk are free, which the training needs")
            stamp, found = stamp_of(path), RunRecord.of_folder(path)
            with self._opened() as connection, _writing(connection):
                _put(connection, found, stamp)
        except (TrainingError, OSError, sqlite3.Error) as error:
            logger.warning(
                "the run %s is not in the index yet (%s); the next look at the runs adds it", path.name, error
            )
            return False
        return True

    def refresh(self) -> list[RunRecord]:
        """All runs of the workspace as their folders are now, the newest first. Reads only folders that have changed.

        A folder that cannot be read is named in the log and left out.
        """
        try:
            with self._opened() as connection:
                return self._in_step(connection)
        except (sqlite3.Error, OSError) as error:
            logger.warning("%s cannot be used (%s): the runs are read from their folders", self.path, error)
        with contextlib.closing(_made(":memory:", self.patience)) as connection:
            return self._in_step(connection)

    def snapshot(self) -> bytes:
        """The whole index, as the folders are now, as the bytes of an SQLite file."""
        return snapshot_of(self.refresh())

    # ---- inside -----------------------------------------------------------------------------------------------------
    def _in_step(self, connection: sqlite3.Connection) -> list[RunRecord]:
        """Add, renew and drop rows so that they are what the folders say. Folders are read before anything is locked."""
        known = {str(name): str(stamp) for name, stamp in connection.execute(f"SELECT name, {_STAMP} FROM runs")}
        seen, changed = set(), []
        for folder in self._folders():
            stamp = stamp_of(folder)
            if known.get(folder.name) != stamp:
                try:
                    changed.append((RunRecord.of_folder(folder), stamp))
                except TrainingError as error:
                    logger.warning("%s", error)
                    continue
            seen.add(folder.name)
        gone = [(name,) for name in known if name not in seen]
        if changed or gone:
            with _writing(connection):
                for record, stamp in changed:
                    _put(connection, record, stamp)
                connection.executemany("DELETE FROM runs WHERE name = ?", gone)
        return _records(connection)

    def _folders(self) -> list[Path]:
        """Folders of runs; hidden ones are being restored or deleted."""
        if not self.workspace.is_dir():
            return []
        return sorted(
            file.parent for file in self.workspace.glob(f"*/{RUN_FILE}") if not file.parent.name.startswith(".")
        )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The file, open; one that SQLite calls damaged is thrown away and made anew."""
        if not self.workspace.is_dir():
            raise FileNotFoundError(f"there is no folder {self.workspace}")
        try:
            connection = self._checked()
        except sqlite3.OperationalError:  # locked, or cannot be opened: nobody says that it is damaged
            raise
        except sqlite3.DatabaseError as error:
            self._discard(error)
            connection = self._checked()
        with contextlib.closing(connection):
            yield connection

    def _checked(self) -> sqlite3.Connection:
        connection = _made(self.path, self.patience)
        found = connection.execute("PRAGMA quick_check").fetchone()
        if found != ("ok",):
            connection.close()
            raise sqlite3.DatabaseError(f"its check says {found[0]}")
        return connection

    def _discard(self, error: Exception) -> None:
        logger.warning("%s is damaged (%s) and is made anew from the run folders", self.path, error)
        for ending in ("", "-journal", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)


def snapshot_of(records: list[RunRecord]) -> bytes:
    """Rows as the bytes of an SQLite file of its own."""
    with tempfile.TemporaryDirectory(prefix="runs-index-") as folder:
        path = Path(folder) / INDEX_FILE
        with contextlib.closing(_made(path, PATIENCE)) as connection, _writing(connection):
            for record in records:
                _put(connection, record, "")
        return path.read_bytes()


def read_snapshot(content: bytes) -> list[RunRecord]:
    """The rows of a snapshot, the newest first.

    Raises:
        TrainingError: it is no index, is damaged, or comes from another release.
    """
    with tempfile.TemporaryDirectory(prefix="runs-index-") as folder:
        path = Path(folder) / INDEX_FILE
        path.write_bytes(content)
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                if _columns(connection) != list(_NAMES):
                    raise TrainingError("The snapshot of an index comes from another release and is left aside.")
                return _records(connection)
        except sqlite3.Error as error:
            raise TrainingError(f"The snapshot of an index is damaged and left aside: {error}.") from error


def _made(path: Path | str, patience: float) -> sqlite3.Connection:
    """A connection whose table has the columns of this release; a table of another one is dropped, for it is only a memory."""
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
    try:
        found = _columns(connection)
        if found != list(_NAMES):
            with _writing(connection):
                if _columns(connection) != list(_NAMES):  # nobody made it while this waited
                    connection.execute("DROP TABLE IF EXISTS runs")
                    connection.execute(f"CREATE TABLE runs ({_declared()})")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is written whole or not at all; waits for others that write."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _columns(connection: sqlite3.Connection) -> list[str]:
    return [str(row[1]) for row in connection.execute("PRAGMA table_info(runs)")]


def _declared() -> str:
    kinds = {field.name: _KINDS[str(field.type).split(" |")[0]] for field in dataclasses.fields(RunRecord)}
    listed = [f"{name} {kind}{' PRIMARY KEY' if name == 'name' else ''}" for name, kind in kinds.items()]
    return ", ".join([*listed, f"{_STAMP} TEXT"])


def _put(connection: sqlite3.Connection, record: RunRecord, stamp: str) -> None:
    places = ", ".join("?" * len(_NAMES))
    values = (*dataclasses.astuple(record), stamp)
    connection.execute(f"INSERT OR REPLACE INTO runs ({', '.join(_NAMES)}) VALUES ({places})", values)


def _records(connection: sqlite3.Connection) -> list[RunRecord]:
    """All rows, the newest first; runs that do not say when they began come last, by name."""
    rows = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM runs ORDER BY begun DESC, name DESC").fetchall()
    records = [RunRecord(**dict(zip(COLUMNS, row))) for row in rows]
    return [dataclasses.replace(record, finished=bool(record.finished)) for record in records]
