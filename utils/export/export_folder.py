"""The folder that exports share with each other and with people: whose files are whose, and who may write now.

A manifest says which files an export wrote, and their hashes tell whether they are still as it wrote them. Only such files
are ever removed; anything else in the way is kept under another name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from utils._files import lock_file, sha256_of
from utils.errors import ConfigError, ExportError
from utils.export.formats import MANIFEST

logger = logging.getLogger(__name__)

KIND = "transformer-builder-export"
_LOCK = ".publishing.lock"


def check_folder(out: str | Path) -> Path:
    """The folder, where an export may write there at all.

    Raises:
        ConfigError: it is a file or can be no folder, or holds a manifest of something else.
    """
    folder, nearest = located(out, "out", "folder")
    if not nearest.is_dir():
        raise ConfigError(f"out={str(folder)!r}: {nearest} is a file; name a folder.")
    if os.path.lexists(folder / MANIFEST) and own_manifest(folder) is None:
        raise ConfigError(
            f"{folder / MANIFEST} was written by something else and would be overwritten; choose another out=."
        )
    return folder


def check_file(given: str | Path, setting: str) -> Path:
    """The path of a file that is about to be written; one that is there may be replaced.

    Args:
        given: the path.
        setting: by which people gave it, for messages.

    Raises:
        ConfigError: no file can be there.
    """
    path, nearest = located(given, setting, "file")
    if nearest != path and not nearest.is_dir():
        raise ConfigError(f"{setting}={str(path)!r}: {nearest} is a file; name a file in a folder.")
    return path


def located(given: str | Path, setting: str, kind: str) -> tuple[Path, Path]:
    """A path, and what is there of it: itself, or the nearest above it.

    Raises:
        ConfigError: no path can be like that.
    """
    try:
        path = Path(given)
        return path, next(there for there in (path, *path.parents, Path()) if _is_there(there))
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{setting}={given!r} can be no {kind}: {error}.") from error


def _is_there(path: Path) -> bool:
    """Whether there is something, a link to nowhere included; names that no file can have are errors."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def own_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that an earlier export left here; None where there is none of ours."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("kind") == KIND else None


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[None]:
    """Let nobody else move files into the folder until the block ends, so that a manifest lists one export's files.

    On a file system without locks nothing keeps others out.

    Raises:
        ExportError: another export is doing so at this moment.
    """
    path = folder / _LOCK
    with open(path, "ab") as lock:
        try:
            lock_file(lock)
            held = path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat())
        except (BlockingIOError, PermissionError):
            held = False
        except OSError as error:
            logger.debug("%s cannot be locked: %s", path, error)
            held = True
        if not held:
            raise ExportError(
                f"Another export is moving its files into {folder} at this moment; nothing of this one was put there. Export "
                "again when the other has finished, or choose another out=."
            )
        try:
            yield
        finally:
            if os.name != "nt":  # before the lock is let go, so that nobody who waits for it gets one without a name
                path.unlink(missing_ok=True)
    if os.name == "nt":
        with contextlib.suppress(PermissionError):  # somebody else has it open, and will remove it
            path.unlink(missing_ok=True)


def make_room(folder: Path, names: Sequence[str]) -> None:
    """Void the old manifest, remove what its export wrote and nobody changed, and set aside what else is in the way.

    Files that get a successor of the same name stay until it comes.

    Args:
        folder: of the export.
        names: files and folders that are about to come, right inside `folder`.
    """
    listed = _listed_in(folder)
    ours = {path for path, digest in listed.items() if path.is_file() and sha256_of(path) == digest}
    (folder / MANIFEST).unlink(missing_ok=True)
    for torn in folder.glob(f".{MANIFEST}.*.tmp"):  # of an export that was killed while it wrote its manifest
        torn.unlink()
    for name in sorted({*names, *(path.relative_to(folder).parts[0] for path in listed)}):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not _files_of(path) <= ours:
            set_aside(path)
        elif path.is_dir():
            shutil.rmtree(path)
        elif name not in names:
            path.unlink()


def _listed_in(folder: Path) -> dict[Path, str]:
    """Files of the earlier export and their hashes; a manifest speaks for nothing outside of its folder."""
    entries = (own_manifest(folder) or {}).get("files")
    listed = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    hashes = {PurePosixPath(str(entry.get("name"))): str(entry.get("sha256")) for entry in listed}
    inside = {name: digest for name, digest in hashes.items() if name.parts and ".." not in name.parts}
    return {folder / name: digest for name, digest in inside.items() if not name.is_absolute()}


def _files_of(path: Path) -> set[Path]:
    """The file, or all below the folder; a link is a file, wherever it leads."""
    if path.is_symlink() or not path.is_dir():
        return {path}
    return {file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}


def set_aside(path: Path) -> Path:
    """Keep what lies there under a free name with `.previous`, and say so in the log."""
    kept = free_name(path.with_name(f"{path.name}.previous"))
    os.rename(path, kept)
    logger.warning("%s is not as an export listed here wrote it; it is kept as %s", path, kept.name)
    return kept


def free_name(path: Path) -> Path:
    """The path, or with the first number at its end that is free."""
    candidate, number = path, 1
    while os.path.lexists(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
