"""File systems of a mirror that fail, and a small store with a known content."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from utils.training.engine.checkpoint import CheckpointMetadata, CheckpointStore
from utils.training.engine.mirror import Mirror
from utils.training.engine.mirror_folder import FileSystem

PAUSES = (0.01, 0.05)


class FaultyFileSystem(FileSystem):
    """Real files, with faults on demand.

    Attributes:
        fault: called with (operation, path) before each operation; it may raise or wait.
        lie: turns what is read into something else; None reads what is there.
        room: free bytes; None asks the disk.
    """

    def __init__(
        self, fault: Callable[[str, Path], None] | None = None, lie: Callable[[bytes], bytes] | None = None
    ) -> None:
        self.fault, self.lie, self.room = fault, lie, None
        self.calls: list[str] = []

    def _at(self, operation: str, path: Path) -> None:
        self.calls.append(operation)
        if self.fault is not None:
            self.fault(operation, path)

    def make_folder(self, folder):
        self._at("make", folder)
        super().make_folder(folder)

    def names(self, folder):
        self._at("names", folder)
        return super().names(folder)

    def free(self, folder):
        self._at("free", folder)
        return super().free(folder) if self.room is None else self.room

    def write(self, path, chunks):
        self._at("write", path)

        def watched():
            for chunk in chunks:
                self._at("chunk", path)
                yield chunk

        super().write(path, watched())
        self._at("written", path)

    def read(self, path):
        self._at("read", path)
        for chunk in super().read(path):
            yield chunk if self.lie is None else self.lie(chunk)

    def remove(self, path):
        self._at("remove", path)
        super().remove(path)


def raising(number: int, operations: tuple[str, ...] = (), times: float = float("inf")) -> Callable[[str, Path], None]:
    """A fault that raises an errno in the given operations (all where none are given), so many times."""
    left = times

    def fault(operation: str, path: Path) -> None:
        nonlocal left
        if left > 0 and (not operations or operation in operations):
            left -= 1
            raise OSError(number, os.strerror(number), str(path))

    return fault


def slow(seconds: float) -> Callable[[str, Path], None]:
    return lambda operation, path: time.sleep(seconds) if operation in ("chunk", "write") else None


ERRNOS = {
    "errno 5 (I/O error)": errno.EIO,
    "errno 107 (mount dropped)": errno.ENOTCONN,
    "errno 122 (quota)": errno.EDQUOT,
    "errno 28 (full)": errno.ENOSPC,
    "read-only": errno.EROFS,
}


class Run:
    """A run folder with a store, whose generations say which step they are of."""

    def __init__(self, root: Path, keep: int = 2, run_id: str = "0123456789abcdef") -> None:
        self.path, self.run_id, self.keep = root / "r", run_id, keep
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "run.json").write_text(f'{{"format_version": 1, "run_id": "{run_id}", "fingerprint": {{}}}}')
        (self.path / "config.json").write_text("{}")
        self.store = CheckpointStore(self.path / "checkpoints", run_id, keep)

    def save(self, step: int, val_loss: float | None = None) -> CheckpointMetadata:
        path = self.store.next_path(step)
        self.store.write(content(step), path)
        return self.store.commit(path, step, val_loss)

    def mirror(self, folder: Path, files: FileSystem | None = None) -> Mirror:
        mirror = Mirror(self.store, self.path, folder, files, PAUSES)
        self.store.on_commit = mirror.offer
        return mirror


def content(step: int) -> dict:
    return {"step": step, "weights": torch.full((50,), float(step))}


def is_content(state: dict) -> bool:
    return bool((state["weights"] == state["step"]).all())


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition became true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def strangers(folder: Path) -> list[str]:
    """Files of a checkpoint folder that belong to no generation."""
    names = {path.name for path in folder.iterdir()}
    return sorted(
        name
        for name in names
        if not (name.endswith(".json") and name[:-5] + ".ckpt" in names)
        and not (name.endswith(".ckpt") and name[:-5] + ".json" in names)
    )


def threads_of_mirrors() -> int:
    return sum(thread.name == "mirror" for thread in threading.enumerate())
