"""Brings runs back from a mirror: whole ones onto a new machine, newer generations into damaged ones.

Knows run folders and what lies on a mirror; whether a run may continue is `run_folder`'s to say.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import TrainingError
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.mirror_folder import (
    Commit,
    FileSystem,
    MirrorFolder,
    folder_of,
    folders_on,
    mirror_path,
    require_mounted,
)
from utils.training.run_lock import FolderLock

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""File of a run folder that says which run it is."""

TRIES, PAUSE = 3, 1.0
"""Attempts at reading a mirror, and seconds between them: Drive raises errors that pass."""

_UNFINISHED = ".restoring-"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class MirroredRun:
    """A run on a mirror.

    Attributes:
        name: of the run; run: what its run.json holds.
        commits: whole states, newest first.
    """

    name: str
    run: Mapping[str, Any]
    folder: MirrorFolder
    commits: tuple[Commit, ...]

    @property
    def finished(self) -> bool:
        """Whether the newest state is that of a finished run."""
        return self.commits[0].finished


def mirrored_runs(mirror_dir: str | Path, files: FileSystem | None = None, pause: float = PAUSE) -> list[MirroredRun]:
    """The runs on a mirror, the newest name first.

    Raises:
        ConfigError: it lies on a Google Drive that is not mounted.
        TrainingError: it cannot be read, after all attempts.
    """
    files = files if files is not None else FileSystem()
    root = mirror_path(mirror_dir)
    require_mounted(root, files)
    folders = _patiently(lambda: folders_on(root, files), root, pause)
    found = (_read(folder, root, pause) for folder in folders)
    return sorted((run for run in found if run is not None), key=lambda run: run.name, reverse=True)


def mirrored_run(folder: Path, files: FileSystem | None = None, pause: float = PAUSE) -> MirroredRun | None:
    """The run in one folder of a mirror; None where the folder holds none."""
    files = files if files is not None else FileSystem()
    require_mounted(folder, files)
    return _read(MirrorFolder(folder, files), folder.parent, pause) if folder.is_dir() else None


def restore_run(run: MirroredRun, workspace: Path, pause: float = PAUSE) -> Path | None:
    """Copy a run into the workspace: the newest state that verifies. The folder appears whole or not at all.

    Returns:
        The run's folder; None where no state of it verifies.

    Raises:
        TrainingError: the mirror cannot be read, or the workspace has another run of that name.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(workspace)
    target = workspace / run.name
    for commit in run.commits:
        with _building(workspace) as building:
            if not _fetched(run, commit, building, pause):
                continue
            try:
                os.replace(building, target)  # an empty folder gives way, one with content does not
            except OSError as error:
                raise TrainingError(
                    f"{target} exists already, so the mirrored run cannot be put there: {error}."
                ) from error
            logger.warning("run %s is restored from the mirror %s, at step %d", run.name, run.folder.path, commit.step)
            return target
    logger.warning("no state of the run %s on the mirror %s is whole: it cannot be restored", run.name, run.folder.path)
    return None


def top_up(store: CheckpointStore, run_name: str, mirror_dir: str | Path, files: FileSystem | None = None) -> None:
    """Fetch the newest generation that verifies where the local disk has none as new; errors are told, not raised."""
    files = files if files is not None else FileSystem()
    root = mirror_path(mirror_dir)
    require_mounted(root, files)
    try:
        run = _read(MirrorFolder(folder_of(root, run_name, store.run_id), files), root, PAUSE)
    except TrainingError as error:
        logger.warning("%s The run goes on from the local disk", error)
        return
    newest = store.newest()
    for commit in run.commits if run is not None else ():
        if newest is not None and newest.sequence >= commit.sequence:
            return
        if run is not None and _generation_fetched(run, commit, store):
            logger.warning(
                "the checkpoint of step %d comes from the mirror: the local disk has none as new", commit.step
            )
            return


def _read(folder: MirrorFolder, root: Path, pause: float) -> MirroredRun | None:
    try:
        commits = _patiently(folder.read_commits, root, pause)
    except FileNotFoundError:
        return None
    for place, commit in enumerate(commits):
        entry = commit.entry(RUN_FILE)
        if entry is None:
            continue
        try:
            run = json.loads(folder.read_text(entry))
        except (OSError, ValueError) as error:
            logger.warning("a state of %s on the mirror is not used: %s", commit.run_name, error)
            continue
        right = (
            isinstance(run, dict) and run.get("run_id") == commit.run_id and isinstance(run.get("fingerprint"), dict)
        )
        if right and Path(commit.run_name).name == commit.run_name:
            return MirroredRun(commit.run_name, run, folder, tuple(commits[place:]))
    return None


def _fetched(run: MirroredRun, commit: Commit, target: Path, pause: float) -> bool:
    """Copy all files of a state; False where one does not verify after all attempts."""
    for entry in commit.files:
        for attempt in range(TRIES):
            try:
                run.folder.fetch(entry, target / entry.name)
                break
            except OSError as error:
                logger.warning("%s of step %d on the mirror: %s", entry.name, commit.step, error)
                if attempt + 1 == TRIES:
                    return False
                time.sleep(pause)
    return True


def _generation_fetched(run: MirroredRun, commit: Commit, store: CheckpointStore) -> bool:
    """Copy the newest generation of a state into the store: the checkpoint first, its manifest last."""
    ending = f"-{commit.sequence:06d}"
    entries = [item for item in commit.files if Path(item.name).stem.endswith(ending)]
    try:
        for entry in sorted(entries, key=lambda item: item.name.endswith(".json")):
            run.folder.fetch(entry, store.folder / Path(entry.name).name)
    except OSError as error:
        logger.warning("the generation of step %d on the mirror is not used: %s", commit.step, error)
        return False
    newest = store.newest()
    return newest is not None and newest.sequence == commit.sequence


@contextlib.contextmanager
def _building(workspace: Path) -> Iterator[Path]:
    """A hidden folder that goes away again unless it was moved to its place."""
    building = workspace / f"{_UNFINISHED}{uuid.uuid4().hex[:12]}"
    building.mkdir()
    lock = FolderLock.acquire(building)
    try:
        yield building
    finally:
        if lock is not None:
            lock.release()
        shutil.rmtree(building, ignore_errors=True)


def _remove_unfinished(workspace: Path) -> None:
    """Delete what killed restorations left."""
    for path in workspace.glob(f"{_UNFINISHED}*"):
        lock = FolderLock.acquire(path) if path.is_dir() and not path.is_symlink() else None
        if lock is not None:
            lock.release()
            shutil.rmtree(path, ignore_errors=True)


def _patiently(read: Callable[[], _Result], root: Path, pause: float) -> _Result:
    for attempt in range(TRIES):
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt + 1 == TRIES:
                raise TrainingError(
                    f"The mirror {root} cannot be read ({error}). Mount it anew, or pass resume='never' to begin a new run."
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")
