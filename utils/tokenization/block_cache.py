"""Token files: the ids of a text in one file, memory-mapped, written completely or not at all and read only when proven.

A file holds a header of one page (JSON: what made it, how much, SHA-256), the ids one after another, and where each document
ends. Two processes that write the same file at once write the same bytes, and the later rename wins. What a killed process
left is deleted by the next writer. Knows bytes, no text and no blocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import mmap
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils._files import lock_file, whole_file
from utils.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the file's form."""

HEADER_BYTES = 4096
"""One page, mostly blank: the header is written last, into the place that was kept for it."""

_MAGIC = "transformer builder tokens"
_CHUNK = 1 << 22
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LET_LIVE = 60.0
"""Seconds in which another process's temporary file is left alone even where it is not locked: it may just begin."""


@dataclass
class TokenStream:
    """The ids of all documents, one after another.

    Attributes:
        ids: (number of ids,) uint16 or int32, in memory or memory-mapped.
        ends: (number of documents,) int64: where each document ends in `ids`; its end-of-text is its last id.
        key: hash of what the ids were made from.
        path: the file behind it; None in memory.
    """

    ids: np.ndarray
    ends: np.ndarray
    key: str
    path: Path | None = None
    _map: mmap.mmap | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def release(self) -> None:
        """Let go of pages of the file that were read; they come back when they are read again."""
        if self._map is not None and hasattr(self._map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return TokenStream, (self.ids, self.ends, self.key)
        return _mapped, (self.path, self.key)  # a worker process maps the file instead of being sent its bytes


def in_memory(chunks: Iterable[tuple[np.ndarray, list[int]]], dtype: np.dtype[Any], key: str) -> TokenStream:
    """A stream without a file; `chunks` as for `write_stream`."""
    raw, ends = bytearray(), array("q")
    for ids, lengths in chunks:
        raw += ids.astype(dtype, copy=False).tobytes()
        _extend(ends, lengths)
    return TokenStream(np.frombuffer(raw, dtype=dtype), np.frombuffer(ends, dtype=np.int64), key)


def write_stream(
    path: Path, chunks: Iterable[tuple[np.ndarray, list[int]]], dtype: np.dtype[Any], key: str
) -> TokenStream:
    """Write a token file and map it.

    Args:
        path: where it belongs.
        chunks: (ids of some documents, length of each of them), in order.
        dtype: of the ids in the file.
        key: hash of what the ids are made from; a file is read only under its key.

    Raises:
        DataError: the disk is full, or the folder cannot be written to. No part of the file stays.
    """
    written, begun = 0, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans(path.parent)
        with whole_file(path) as file:
            with contextlib.suppress(OSError):  # a file system without locks: then only its age protects the file
                lock_file(file)
            begun = True
            for count in _written(file, chunks, dtype, key):
                written = count
    except OSError as error:
        if begun and error.errno not in _FULL:
            raise  # it came from where the text is read
        raise _explained(error, path, written) from error
    return _mapped(path, key)


def read_stream(path: Path, key: str) -> TokenStream | None:
    """Map a token file whose header, size and SHA-256 agree; None where there is none or it does not agree (logged)."""
    if not path.is_file():
        return None
    try:
        problem = _problem_of(path, key)
        found = _mapped(path, key) if problem is None else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem, found = str(error), None
    if found is None:
        logger.warning("cached tokens %s are not used: %s; tokenising again", path.name, problem)
    return found


def _written(
    file: BinaryIO, chunks: Iterable[tuple[np.ndarray, list[int]]], dtype: np.dtype[Any], key: str
) -> Iterator[int]:
    """Write all chunks, then the ends, then the header in front; gives the bytes written so far."""
    digest, ends, count = hashlib.sha256(), array("q"), 0
    file.write(b"\0" * HEADER_BYTES)
    for ids, lengths in chunks:
        raw = ids.astype(dtype, copy=False).tobytes()
        digest.update(raw)
        file.write(raw)
        count += len(ids)
        _extend(ends, lengths)
        yield count * dtype.itemsize
    tail = b"\0" * (-count * dtype.itemsize % 8) + ends.tobytes()  # ends begin at a multiple of eight bytes
    digest.update(tail)
    file.write(tail)
    facts = {
        "magic": _MAGIC,
        "format": FORMAT,
        "key": key,
        "dtype": dtype.str,
        "ids": count,
        "documents": len(ends),
    }
    digest.update(json.dumps(facts).encode())
    file.seek(0)
    file.write(json.dumps({**facts, "sha256": digest.hexdigest()}).encode().ljust(HEADER_BYTES))


def _extend(ends: array[int], lengths: list[int]) -> None:
    at = ends[-1] if ends else 0
    for length in lengths:
        at += length
        ends.append(at)


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(HEADER_BYTES).decode("utf-8", "strict"))
    if not isinstance(header, dict) or header.get("magic") != _MAGIC:
        raise ValueError("it is no token file of this package")
    return header


def _problem_of(path: Path, key: str) -> str | None:
    header = _header(path)
    if header["format"] != FORMAT:
        return f"it has format version {header['format']}, this package reads {FORMAT}"
    if header["key"] != key:
        return "it was made from other text or by another tokenizer"
    _, size = _place_of_ends(header)
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes instead of {size}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    digest.update(json.dumps({name: value for name, value in header.items() if name != "sha256"}).encode())
    return None if digest.hexdigest() == header["sha256"] else "its SHA-256 differs from its header"


def _place_of_ends(header: dict[str, Any]) -> tuple[int, int]:
    """Where the ends begin, and the size of the whole file."""
    used = int(header["ids"]) * np.dtype(header["dtype"]).itemsize
    begin = HEADER_BYTES + used + -used % 8
    return begin, begin + 8 * int(header["documents"])


def _mapped(path: Path, key: str) -> TokenStream:
    header = _header(path)
    begin, _ = _place_of_ends(header)
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ids = np.frombuffer(whole, dtype=np.dtype(header["dtype"]), count=header["ids"], offset=HEADER_BYTES)
    ends = np.frombuffer(whole, dtype=np.int64, count=header["documents"], offset=begin)
    return TokenStream(ids, ends, key, path, whole)


def _remove_orphans(folder: Path) -> None:
    """Delete temporary files of writers that are gone; those of living ones are locked."""
    for path in folder.glob(".tokens-*.tmp"):
        with contextlib.suppress(OSError):  # gone meanwhile, or locked: its writer lives
            if time.time() - path.stat().st_mtime < _LET_LIVE:
                continue
            with path.open("r+b") as file:
                lock_file(file)
                path.unlink()


def _explained(error: OSError, path: Path, written: int) -> DataError:
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return DataError(
            f"The disk is full: {written:,} bytes of tokens were written to {path.parent}, {free:,} bytes are free now. "
            "Nothing of the file stays. Make room, or choose a folder on another disk (workspace= or cache_dir=)."
        )
    return DataError(
        f"Tokens cannot be kept in {path.parent}: {error.strerror or error}. Choose a folder that can be written to "
        "(workspace= or cache_dir=)."
    )
