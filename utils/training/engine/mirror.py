"""Copies each committed generation of a run to another folder, such as one on Google Drive, while training goes on.

Local disk is the truth. A background thread takes the newest generation only, so that a slow mirror skips some and never
holds up a step; errors are retried with growing pauses and end nothing. "Safe up to step N" is said only after every byte
was read back. The form on the mirror is `engine.mirror_folder`'s.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError
from utils.progress import ProgressCallback, ignore_progress
from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore
from utils.training.engine.mirror_folder import (
    CHUNK,
    MARGIN,
    Commit,
    FileSystem,
    MirroredFile,
    MirrorFolder,
    ReadBackError,
    folder_of,
    mirror_path,
    require_mounted,
    watched,
)

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first retry, and at most."""

CLOSING_TRIES = 5
"""Failed attempts after which the end of a run waits no longer."""

CLOSING_TIMEOUT = 300.0
"""Seconds that the end of a run waits for its mirror."""

CHECKPOINTS, FINISHED = "checkpoints", "manifest.json"
LARGEST_BESIDE = 64 << 20
"""Bytes of the largest file beside the checkpoints that is mirrored."""

KEPT_FOLDERS = ("tokenizer", "source")
"""Folders of a run that are mirrored besides its checkpoints and the files beside them."""


@dataclass(frozen=True)
class MirrorStatus:
    """How far a mirror is.

    Attributes:
        folder: the run's folder on the mirror.
        safe_step: newest optimizer step of which every byte was read back from the mirror; None where none was yet.
        newest_step: newest optimizer step that was saved locally; None where none was.
        state: "idle", "copying", "retrying" (after an error), "closed" or "stopped" (the copying ended unexpectedly).
        problem: the last error, where it has not been overcome.
        failures: failed attempts so far.
        skipped: generations that were passed over for a newer one.
    """

    folder: str
    safe_step: int | None
    newest_step: int | None
    state: str
    problem: str | None = None
    failures: int = 0
    skipped: int = 0

    def summary(self) -> str:
        """One line for people."""
        safe = (
            "nothing is on the mirror yet"
            if self.safe_step is None
            else f"safe on the mirror up to step {self.safe_step}"
        )
        behind = "" if self.safe_step == self.newest_step else f" of {self.newest_step}"
        trouble = "" if self.problem is None else f"; {self.state}: {self.problem}"
        return f"{safe}{behind}{trouble}"


class Mirror:
    """Mirrors one run in the background.

    Args:
        store: the run's checkpoints.
        run_path: the run's folder.
        mirror_dir: where mirrors of runs lie.
        files: the file system of the mirror.
        pauses: seconds before the first retry, and at most; each retry doubles them. None takes the usual ones.

    Raises:
        ConfigError: `mirror_dir` lies on a Google Drive that is not mounted.
    """

    def __init__(
        self,
        store: CheckpointStore,
        run_path: Path,
        mirror_dir: str | Path,
        files: FileSystem | None = None,
        pauses: tuple[float, float] | None = None,
    ) -> None:
        self.files = files if files is not None else FileSystem()
        root = mirror_path(mirror_dir)
        require_mounted(root, self.files)
        self.store, self.run_path = store, run_path
        self._pauses = pauses if pauses is not None else (FIRST_PAUSE, LONGEST_PAUSE)
        self.folder = MirrorFolder(folder_of(root, run_path.name, store.run_id), self.files)
        self._changed = threading.Condition()
        self._offered: CheckpointMetadata | None = None
        self._done_sequence, self._safe_step = 0, -1
        self._problem: str | None = None
        self._state, self._failures, self._in_a_row, self._skipped = "idle", 0, 0, 0
        self._retry_at = -math.inf
        self._closing = self._final_done = self._stop = False
        self._bytes_done = self._bytes_total = 0
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    # ---- from the training ------------------------------------------------------------------------------------------
    def offer(self, metadata: CheckpointMetadata) -> None:
        """Have a committed generation copied; returns at once. An older one that still waits is passed over."""
        with self._changed:
            if self._offered is not None and self._offered.sequence > self._done_sequence:
                self._skipped += 1
            self._offered = metadata
            self._changed.notify_all()

    @property
    def status(self) -> MirrorStatus:
        """How far the mirror is now."""
        with self._changed:
            state, problem = self._state, self._problem
            return MirrorStatus(
                str(self.folder.path),
                None if self._safe_step < 0 else self._safe_step,
                None if self._offered is None else self._offered.step,
                state,
                problem,
                self._failures,
                self._skipped,
            )

    def close(self, timeout: float = CLOSING_TIMEOUT, progress: ProgressCallback = ignore_progress) -> MirrorStatus:
        """Copy what is left, files that were written at the end included; the same status as ever says how far it came.

        Args:
            timeout: seconds to wait; a mirror that keeps failing is given up earlier.
            progress: called with bytes copied, bytes in total and a note.
        """
        until = time.monotonic() + timeout
        with self._changed:
            self._closing, self._in_a_row = True, 0
            self._retry_at = min(self._retry_at, time.monotonic() + self._pauses[0])
            self._changed.notify_all()
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(min(0.2, max(timeout / 10, 0.01)))
            progress(self._bytes_done, self._bytes_total or None, "mirror: " + self.status.summary())
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(min(1.0, timeout))  # one that hangs in the mirror is left alone: it ends with the process
        with self._changed:
            if self._thread.is_alive():
                self._problem = self._problem or f"the mirror did not finish within {timeout:.0f} s"
            self._state = "closed"
        status = self.status
        whole = status.problem is None and status.safe_step == status.newest_step
        logger.log(logging.INFO if whole else logging.WARNING, "mirror %s: %s", status.folder, status.summary())
        return status

    # ---- in the background ------------------------------------------------------------------------------------------
    def _work(self) -> None:
        try:
            while self._has_work():
                try:
                    self._copy()
                except (OSError, ConfigError) as error:
                    self._failed(error)
        except _StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever ends the thread is told by the status, and ends no training
            with self._changed:
                self._state, self._problem = "stopped", f"the copying ended unexpectedly: {_words(error)}"
            logger.warning("mirror %s: %s", self.folder.path, self._problem)

    def _has_work(self) -> bool:
        """Wait for something to do; False at the end."""
        with self._changed:
            while not self._stop:
                if self._closing and (self._final_done or self._in_a_row >= CLOSING_TRIES or self._offered is None):
                    return False
                pause = self._retry_at - time.monotonic()
                wanted = self._offered is not None and self._offered.sequence > self._done_sequence
                if (wanted or self._closing) and pause <= 0:
                    self._state = "copying"
                    return True
                self._changed.wait(pause if pause > 0 else None)
            return False

    def _copy(self) -> None:
        with self._changed:
            newest, final = self._offered, self._closing
        assert newest is not None
        self.folder.open()
        with contextlib.ExitStack() as opened:
            sources = self._sources(newest, opened)
            self._bytes_done, self._bytes_total = 0, sum(source.size for source in sources)
            self._make_room(sources)
            entries = tuple(self._placed(source) for source in sources)
        finished = any(entry.name == FINISHED for entry in entries)
        self.folder.commit(
            Commit(self.store.run_id, self.run_path.name, newest.step, newest.sequence, 0, finished, entries)
        )
        self._succeeded(newest, final)
        self.folder.collect(self.store.keep)

    def _sources(self, newest: CheckpointMetadata, opened: contextlib.ExitStack) -> list[_Source]:
        """Everything that a new machine needs; checkpoints are open from now on, so that they may be deleted meanwhile."""
        best = self.store.best()
        older = best is not None and best.sequence < newest.sequence
        generations = [newest, best] if best is not None and older else [newest]
        found = []
        for metadata in generations:
            path = self.store.folder / metadata.file
            if metadata is best and self.store.problem_of(metadata) is not None:
                continue  # damaged here: the newest one is what matters
            file = opened.enter_context(path.open("rb"))
            chunks = iter(functools.partial(file.read, CHUNK), b"")
            found.append(_Source(f"{CHECKPOINTS}/{path.name}", metadata.size, metadata.sha256, chunks))
            manifest = metadata.to_text().encode("utf-8")
            found.append(_Source.of(f"{CHECKPOINTS}/{path.with_suffix('.json').name}", manifest))
        beside = [path for path in self.run_path.iterdir() if path.is_file()]
        inside = [path for name in KEPT_FOLDERS for path in (self.run_path / name).rglob("*") if path.is_file()]
        for path in sorted([*beside, *inside]):
            if not path.name.startswith(".") and path.stat().st_size <= LARGEST_BESIDE:
                found.append(_Source.of(path.relative_to(self.run_path).as_posix(), path.read_bytes()))
        return found

    def _placed(self, source: _Source) -> MirroredFile:
        there = self.folder.known(source.sha256, source.name)
        if there is not None:
            self._tell(source.size)
            return there
        entry = self.folder.put(source.name, watched(source.chunks, self._tell))
        if entry.sha256 != source.sha256:
            raise ReadBackError(errno.EIO, "the local file differs from its manifest", source.name)
        return entry

    def _make_room(self, sources: Iterable[_Source]) -> None:
        needed = MARGIN + sum(item.size for item in sources if not self.folder.has(item.sha256))
        if self.files.free(self.folder.path) < needed:
            self.folder.collect(1)
        free = self.files.free(self.folder.path)
        if free < needed:
            raise OSError(errno.ENOSPC, f"{free:,} bytes are free, {needed:,} are needed", str(self.folder.path))

    def _tell(self, count: int) -> None:
        self._bytes_done += count
        if self._stop:
            raise _StoppedError

    def _succeeded(self, newest: CheckpointMetadata, final: bool) -> None:
        with self._changed:
            if self._problem is not None:
                logger.info("the mirror works again: safe up to step %d", newest.step)
            self._done_sequence = max(self._done_sequence, newest.sequence)
            self._safe_step = max(self._safe_step, newest.step)
            self._state, self._problem, self._in_a_row, self._retry_at = "idle", None, 0, -math.inf
            self._final_done = final and self._offered is newest

    def _failed(self, error: OSError | ConfigError) -> None:
        self.folder.forget()
        kind = "readback" if isinstance(error, ReadBackError) else str(getattr(error, "errno", type(error).__name__))
        with self._changed:
            self._failures += 1
            self._in_a_row += 1
            longest = self._pauses[0] if self._closing else self._pauses[1]
            pause = min(self._pauses[0] * 2 ** min(self._in_a_row - 1, 30), longest)
            self._state, self._problem, self._retry_at = "retrying", _words(error), time.monotonic() + pause
            first = kind not in self._warned
            self._warned.add(kind)
        if first:
            logger.warning(
                "the mirror %s failed (%s); training goes on, checkpoints stay on the local disk, and copying is tried again. "
                "Further errors of this kind are counted, not printed",
                self.folder.path,
                _words(error),
            )


@dataclass(frozen=True)
class _Source:
    """A file to be copied: its place in the run folder, bytes, SHA-256, and content."""

    name: str
    size: int
    sha256: str
    chunks: Iterable[bytes]

    @classmethod
    def of(cls, name: str, content: bytes) -> _Source:
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), (content,))


def _words(error: Exception) -> str:
    """An error in one line."""
    name = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    text = getattr(error, "strerror", None) or str(error)
    return f"{name}: {text}" if name else text


class _StoppedError(Exception):
    """The end of the run waits no longer."""


@contextlib.contextmanager
def mirroring(
    store: CheckpointStore,
    run_path: Path,
    mirror_dir: str | Path | None,
    progress: ProgressCallback = ignore_progress,
    timeout: float = CLOSING_TIMEOUT,
    files: FileSystem | None = None,
) -> Iterator[Mirror | None]:
    """Mirror a run while the block trains it; None where there is no `mirror_dir`. The end waits for the last copy."""
    if mirror_dir is None:
        yield None
        return
    mirror = Mirror(store, run_path, mirror_dir, files)
    newest = store.newest()
    if newest is not None:
        mirror.offer(newest)
    store.on_commit = mirror.offer
    try:
        yield mirror
    finally:
        store.on_commit = None
        mirror.close(timeout, progress)


def flush_drive(folder: str | Path, files: FileSystem | None = None) -> bool:
    """Send everything to Google Drive and unmount it, at the very end of a notebook; False where nothing is mounted.

    Raises:
        ConfigError: `folder` lies on a Drive that is not mounted, so nothing was written there.
    """
    files = files if files is not None else FileSystem()
    require_mounted(mirror_path(folder), files)
    if not files.is_mount(files.drive_mount):
        return False
    from google.colab import drive

    drive.flush_and_unmount()
    return True
