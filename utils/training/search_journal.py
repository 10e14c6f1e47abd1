"""Where a search keeps its trials: Optuna's journal on the local disk, and snapshots of it on a mirror.

Knows files, locks and Optuna's storage; leaves what a trial is to `search_study`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils._extras import require
from utils.errors import ConfigError
from utils.training.engine.mirror_folder import (
    Commit,
    FileSystem,
    MirrorFolder,
    folder_of,
    mirror_path,
    require_mounted,
)
from utils.training.run_lock import FolderLock

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

JOURNAL_FILE = "journal.log"
"""One line for each change of a study, as Optuna writes them."""

PAUSE = 0.005
"""Seconds between two attempts at a lock that another process holds for milliseconds."""

KEPT_COMMITS = 2
"""Snapshots that stay on a mirror: the newest, and the one before it."""


class JournalLock:
    """Keeps other processes from writing the journal. Optuna's own locks are files, which a killed process leaves behind and
    others wait for half a minute; this one is the operating system's, which ends with the process.

    Args:
        folder: carries the lock; it is made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: FolderLock | None = None

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock = waited_for(self._folder)
        return True

    def release(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def waited_for(folder: Path) -> FolderLock:
    """The lock of a folder, which is made where there is none, once nobody else holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock.acquire(folder)
    while lock is None:
        time.sleep(PAUSE)
        lock = FolderLock.acquire(folder)
    return lock


def open_journal(folder: Path, locks: Path) -> optuna.storages.JournalStorage:
    """The journal of a study, made where there is none; half a line that a crash of the machine left is cut off.

    Args:
        folder: of the study.
        locks: carries the lock.
    """
    require("optuna", extra="search", feature="Hyper-parameter search")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path, lock = folder / JOURNAL_FILE, JournalLock(locks)
    lock.acquire()
    try:
        path.touch()
        _cut_half_a_line(path)
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))  # type: ignore[arg-type] # has what it asks of one


def whole_lines(path: Path) -> bytes:
    """The journal as it is now, without a line that is being written."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Keep other processes out of the block, waiting for them first.

    Args:
        folder: carries the lock; it is made.
    """
    lock = waited_for(folder)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Hold back Optuna's line for each trial: the progress display says it."""
    log = logging.getLogger("optuna")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


class StudyMirror:
    """Snapshots of a study on a mirror, in the form in which runs lie there; `run_folder.open_experiment` brings them back.

    Args:
        path: the study's folder.
        run_id: of its run.json.
        mirror_dir: where mirrors lie.
        files: the file system of the mirror.

    Raises:
        ConfigError: `mirror_dir` lies on a Google Drive that is not mounted.
    """

    def __init__(self, path: Path, run_id: str, mirror_dir: str | Path, files: FileSystem | None = None) -> None:
        self._files = files if files is not None else FileSystem()
        root = mirror_path(mirror_dir)
        require_mounted(root, self._files)
        self._path, self._run_id, self._folder = path, run_id, folder_of(root, path.name, run_id)
        self.problem: str | None = None

    def snapshot(self, number: int, finished: bool) -> bool:
        """Copy the study as it is now; False where the mirror refused, which ends no search and is tried after the next trial.

        One process at a time may call it.

        Args:
            number: of finished trials.
            finished: whether the search has come to its end.
        """
        try:
            self._copy(number, finished)
        except (OSError, ConfigError) as error:
            if str(error) != self.problem:  # once a kind
                logger.warning(
                    "the mirror %s failed (%s); the search goes on, and its journal is on the local disk",
                    self._folder,
                    error,
                )
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def _copy(self, number: int, finished: bool) -> None:
        mirror = MirrorFolder(self._folder, self._files)  # a new one: other processes write there, too
        mirror.open()
        entries = []
        for name, content in self._contents().items():
            sha256 = hashlib.sha256(content).hexdigest()
            entries.append(mirror.known(sha256, name) or mirror.put(name, (content,)))
        mirror.commit(Commit(self._run_id, self._path.name, number, number, 0, finished, tuple(entries)))
        mirror.collect(KEPT_COMMITS)

    def _contents(self) -> Mapping[str, bytes]:
        """The files of a study that a new machine needs, and those that a person would look at."""
        files = sorted(path for path in self._path.iterdir() if path.is_file() and path.suffix in (".json", ".csv"))
        return {
            JOURNAL_FILE: whole_lines(self._path / JOURNAL_FILE),
            **{path.name: path.read_bytes() for path in files},
        }


def _cut_half_a_line(path: Path) -> None:
    size = path.stat().st_size
    whole = len(whole_lines(path))
    if whole < size:
        logger.warning("%s ended in half a line, which is cut off: the study goes on from what came before", path)
        os.truncate(path, whole)
