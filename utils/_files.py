"""Files that are there completely or not at all, and their hashes. The one home of writing: every room uses it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO


@contextlib.contextmanager
def whole_file(path: str | Path, durable_name: bool = True) -> Iterator[BinaryIO]:
    """Open a file for writing so that no reader ever sees half of it: temporary name beside it, fsync, rename, fsync.

    Folders on the way are made. An earlier file of that name stays until the new one is complete, and for good where the
    block raises.

    Args:
        path: the file.
        durable_name: fsync the folder after the rename. False where another file of that folder, without which this one
            is worth nothing, is written next.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp keeps others out; the folder's other files do not
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable_name:
        sync_folder(target.parent)


def sync_folder(folder: str | Path) -> None:
    """Make renames in a folder durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(file: IO[bytes]) -> None:
    """Lock an open file until it is closed or the process ends in whatever way, without waiting.

    `fcntl.flock` on Linux and macOS, `msvcrt.locking` on Windows.

    Raises:
        OSError: somebody else holds the lock, or the file system knows none.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, completely or not at all."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))
    return Path(path)


def write_json(path: str | Path, content: Any) -> Path:
    """As `write_text`, for JSON; refuses NaN and infinities, which are no JSON."""
    return write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(folder: str | Path) -> list[dict[str, Any]]:
    """Every file below a folder for a manifest: relative name, size in bytes, SHA-256; hidden files are left out."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = [path.relative_to(root) for path in files]
    return [
        {"name": name.as_posix(), "bytes": (root / name).stat().st_size, "sha256": sha256_of(root / name)}
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    ]
