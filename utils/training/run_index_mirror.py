"""Snapshots of a workspace's index on a mirror, so that another machine knows which runs there are before it copies any.

Nothing on a mirror is overwritten: each snapshot has a name of its own, is read back, and only then are older ones of the same
workspace deleted. A mirror that fails or hangs costs a training seconds and ends nothing.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import re
import sqlite3
import threading
import time
from pathlib import Path

from utils.errors import TransformerBuilderError
from utils.training.engine.mirror_folder import FileSystem, mirror_path, require_mounted
from utils.training.run_index import RunIndex, read_snapshot
from utils.training.run_record import RunRecord

logger = logging.getLogger(__name__)

SECONDS = 20.0
"""How long a training waits for its snapshot: the index is small, and what is not written now is written by the next run."""

_NAME = re.compile(r"index-(?P<workspace>[0-9a-f]{8})-(?P<time>\d{16})-(?P<hash>[0-9a-f]{16})\.sqlite")


def send_snapshot(
    index: RunIndex, mirror_dir: str | Path, files: FileSystem | None = None, seconds: float = SECONDS
) -> bool:
    """Write the index to a mirror, in a thread of its own; whether that was done in time. What fails is a warning.

    Args:
        index: of the workspace.
        mirror_dir: where mirrors of runs lie.
        files: file system of the mirror; None takes the real one.
        seconds: to wait.
    """
    done: list[bool] = []
    system = files if files is not None else FileSystem()

    def work() -> None:
        try:
            _send(index, mirror_path(mirror_dir), system)
            done.append(True)
        except (OSError, sqlite3.Error, TransformerBuilderError) as error:
            logger.warning("the index of the runs is not on the mirror %s: %s", mirror_dir, error)
            done.append(False)

    thread = threading.Thread(target=work, name="index snapshot", daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        logger.warning(
            "the index of the runs is not on the mirror %s yet: it did not answer in %g s", mirror_dir, seconds
        )
    return done == [True]


def mirrored_records(mirror_dir: str | Path, files: FileSystem | None = None) -> list[RunRecord]:
    """Runs that the snapshots on a mirror name, the newest first; of a run that several name, the furthest.

    Raises:
        ConfigError: the mirror lies on a Google Drive that is not mounted.
        OSError: it cannot be read.
    """
    system = files if files is not None else FileSystem()
    root = mirror_path(mirror_dir)
    require_mounted(root, system)
    found: dict[str, RunRecord] = {}
    for name in _snapshots(root, system):
        try:
            records = read_snapshot(_content(root / name, system))
        except (OSError, TransformerBuilderError) as error:
            logger.warning("%s on the mirror is left aside: %s", name, error)
            continue
        for record in records:
            other = found.get(record.run_id)
            if other is None or (record.finished, record.steps) > (other.finished, other.steps):
                found[record.run_id] = record
    return sorted(found.values(), key=lambda record: (record.begun, record.name), reverse=True)


def _send(index: RunIndex, root: Path, files: FileSystem) -> None:
    require_mounted(root, files)
    content = index.snapshot()
    workspace = hashlib.sha256(f"{platform.node()}:{index.workspace.resolve()}".encode()).hexdigest()[:8]
    stamp = f"{time.time_ns() // 1000:016d}"
    name = f"index-{workspace}-{stamp}-{hashlib.sha256(content).hexdigest()[:16]}.sqlite"
    files.names(root)  # the run's own mirror made it; one that has vanished since is not made anew
    files.write(root / name, [content])
    _content(root / name, files)
    for older in _snapshots(root, files):
        match = _NAME.fullmatch(older)
        if match is not None and match["workspace"] == workspace and match["time"] < stamp:
            files.remove(root / older)


def _snapshots(root: Path, files: FileSystem) -> list[str]:
    try:
        names = files.names(root)
    except FileNotFoundError:
        return []
    return [name for name in names if _NAME.fullmatch(name)]


def _content(path: Path, files: FileSystem) -> bytes:
    """The bytes of a snapshot.

    Raises:
        OSError: they are not those whose hash its name carries.
    """
    content = b"".join(files.read(path))
    match = _NAME.fullmatch(path.name)
    if match is None or hashlib.sha256(content).hexdigest()[:16] != match["hash"]:
        raise OSError(f"{path.name} is not what was written")
    return content
