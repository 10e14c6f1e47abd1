"""Exclusive use of a folder by one training at a time. Knows files and the operating system's locks, no runs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import weakref
from pathlib import Path
from typing import IO

from utils._files import lock_file

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""Empty hidden file in the folder that carries the lock; it stays, and means nothing while nobody holds it."""

_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}

_GLANCE = (0.01, 0.05)
"""Seconds before a held lock is asked for again: whoever only looks is gone by then."""

_held_here: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """A lock on a folder, held until `release` or until the process ends in whatever way, `kill -9` included.

    A file system without locks (some network mounts) is used unlocked, with a warning: there, two trainings in one folder
    are not kept apart.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        _held_here.add(self)

    @classmethod
    def acquire(cls, folder: Path) -> FolderLock | None:
        """The lock of an existing folder; None where another training holds it."""
        file = (folder / LOCK_FILE).open("ab")
        for wait in (*_GLANCE, None):
            try:
                lock_file(file)
                break
            except OSError as error:
                if error.errno not in _HELD:
                    logger.warning("%s cannot be locked (%s): let no second training use it", folder, error)
                    break
            if wait is None:
                file.close()
                return None
            time.sleep(wait)  # somebody may only be looking, see `is_held`
        return cls(file)

    @staticmethod
    def is_held(folder: Path) -> bool:
        """Whether a training holds the lock of a folder; a look that changes nothing and lasts microseconds.

        False also where the file system knows no locks.
        """
        try:
            file = (folder / LOCK_FILE).open("rb")
        except OSError:  # none was ever taken, or it is not ours to read
            return False
        with file:
            try:
                lock_file(file)  # ends with the block
            except OSError as error:
                return error.errno in _HELD
        return False

    def release(self) -> None:
        """Let others use the folder; a second call does nothing."""
        with contextlib.suppress(OSError):  # closing ends the lock; a file of a vanished mount has none left
            self._file.close()


def _drop_inherited() -> None:
    """Let go of locks in a forked process: workers outlive a killed training by seconds, and would keep its run closed."""
    for lock in list(_held_here):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_inherited)
