"""What happens between two system calls of a save: a process that ends there, or a disk that is full from there on."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

DIED = 77
"""Exit code of a process that ended at its boundary."""


class Boundaries:
    """Counts what lies between system calls that change files, and acts at one of them.

    A write counts before it, in its middle (half of the bytes are there) and after it; other calls before and after.

    Args:
        at: number of the boundary, from 1; None only counts.
        act: what happens there.
    """

    def __init__(self, at: int | None = None, act: Callable[[], None] = lambda: os._exit(DIED)) -> None:
        self.at, self.act, self.count = at, act, 0

    def cross(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()

    @contextlib.contextmanager
    def watch(self) -> Iterator[Boundaries]:
        """Stand between this process and its system calls."""
        with contextlib.ExitStack() as stack:
            for name in ("open", "close", "fsync", "replace", "chmod", "unlink", "truncate", "mkdir"):
                stack.enter_context(mock.patch.object(os, name, self._around(getattr(os, name))))
            stack.enter_context(mock.patch.object(os, "fdopen", self._fdopen))
            yield self

    def _around(self, call):
        def between(*arguments, **options):
            self.cross()
            answer = call(*arguments, **options)
            self.cross()
            return answer

        return between

    def _fdopen(self, handle, mode="r", *rest, **options):
        assert mode == "wb"
        return io.BufferedWriter(_Raw(handle, self))


class _Raw(io.FileIO):
    def __init__(self, handle: int, boundaries: Boundaries) -> None:
        super().__init__(handle, "wb")
        self._boundaries = boundaries

    def write(self, data):
        view = memoryview(data).cast("B")
        self._boundaries.cross()
        half = super().write(view[: len(view) // 2])
        self._boundaries.cross()
        rest = super().write(view[half:])
        self._boundaries.cross()
        return half + rest


def in_child(work: Callable[[], None]) -> int:
    """Exit code of a forked process that did the work: 0 at its end, `DIED` where it ended at a boundary."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path | None]:
    """A tmpfs of `size` bytes; None where this process may not mount one."""
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
