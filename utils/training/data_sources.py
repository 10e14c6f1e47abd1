"""Which files are data: their kind, their limits, and what a folder of them holds. Reads no row.

A file is known by its suffix, and its first bytes must not contradict it. Nothing is unpacked: a compressed file is refused
with the way out, so that a small upload cannot become terabytes.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from utils.errors import DataError

MAX_FILE_BYTES = 64 << 30
"""Larger than any disk that Colab lends; a size beyond it is a mistake or an attack."""
MAX_FILES = 100_000
"""Files below one folder."""

KINDS = {
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Suffix → kind of file."""
BINARY_KINDS = ("parquet", "arrow")
BESIDE_THE_DATA = re.compile(r"(?:readme|licen[cs]e|notice|changelog|citation|dataset_info|state)\b.*", re.IGNORECASE)
"""Names of files that describe data and are none, where they lie beside a table."""

_UNPACK = "unpack it first (nothing is unpacked here, so that a small file cannot fill the disk) and give what it holds"
_REFUSED = {
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar", ".tgz"), f"is compressed: {_UNPACK}"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet: save the sheet as CSV (UTF-8)"),
    **dict.fromkeys(
        (".docx", ".doc", ".odt", ".rtf", ".epub"), "is a word processor's file: save it as plain text (UTF-8)"
    ),
    **dict.fromkeys(
        (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz"), "may run code when opened, or is no text"
    ),
    ".pdf": "is a PDF: extract its text into a .txt file first",
    ".html": "is a web page: save its text as a .txt file",
}
_MAGIC = (
    (b"\x1f\x8b\x08", f"is compressed (gzip): {_UNPACK}"),
    (b"PK\x03\x04", f"is a zip archive (or a file of Word or Excel): {_UNPACK}"),
    (b"BZh91AY&SY", f"is compressed (bzip2): {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"is compressed (xz): {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"is compressed (zstd): {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"is compressed (7z): {_UNPACK}"),
    (b"Rar!\x1a\x07", f"is compressed (rar): {_UNPACK}"),
    (b"%PDF-", "is a PDF: extract its text into a .txt file first"),
    (b"\x89PNG\r\n", "is a picture (PNG)"),
    (b"\xff\xd8\xff", "is a picture (JPEG)"),
    (b"GIF8", "is a picture (GIF)"),
    (b"\x7fELF", "is a program"),
    (b"SQLite format 3\x00", "is an SQLite database: export the table as CSV"),
    (b"PAR1", "is a Parquet file: call it .parquet"),
    (b"ARROW1", "is an Arrow file: call it .arrow"),
)


@dataclass(frozen=True)
class DataFile:
    """One file of data, on disk or in memory.

    Attributes:
        name: for people; a path inside its folder where it came from one.
        kind: a value of `KINDS`.
        size: bytes.
        path: where it lies; None for content in memory.
        content: its bytes; used where there is no path.
    """

    name: str
    kind: str
    size: int
    path: Path | None = None
    content: bytes = field(default=b"", repr=False)

    def open(self) -> BinaryIO:
        """The bytes, from the beginning.

        Raises:
            DataError: the file cannot be opened.
        """
        if self.path is None:
            return io.BytesIO(self.content)
        try:
            return self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}.") from error


def file_on_disk(path: Path, name: str = "", kind: str | None = None) -> DataFile:
    """A file of a path, checked.

    Args:
        path: where it lies.
        name: what people call it; empty takes the file's name.
        kind: a value of `KINDS`; None reads it off the suffix.

    Raises:
        DataError: there is no such file, it is no ordinary one (a pipe would wait for ever), too large, empty, of a kind
            that is not read, or its content is not what its name says.
    """
    shown = name or path.name
    try:
        status = path.stat()
    except FileNotFoundError as error:
        what = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
        raise DataError(f"{shown} {what}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{shown} is a folder, not a file: DatasetLoader.from_folder(path) reads what it holds.")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown} is no ordinary file (a pipe, socket or device); copy its content into a file.")
    file = DataFile(shown, kind or kind_of(shown), status.st_size, path)
    return _checked(file)


def file_in_memory(name: str, content: bytes, kind: str | None = None) -> DataFile:
    """Content that was uploaded, checked as `file_on_disk` does."""
    return _checked(DataFile(name, kind or kind_of(name), len(content), None, content))


def kind_of(name: str) -> str:
    """The kind of a file, by its suffix.

    Raises:
        DataError: the suffix stands for nothing that is read; the message says what to do.
    """
    suffix = Path(name).suffix.lower()
    if suffix in KINDS:
        return KINDS[suffix]
    why = _REFUSED.get(suffix, f"is of kind {suffix or 'unknown (no suffix)'!r}, which is not read")
    raise DataError(f"{name} {why}. Read are {', '.join(KINDS)}.")


def is_data_name(name: str) -> bool:
    """Whether a name ends like a file of data or one that is refused by its kind, so that a path is what is meant."""
    suffix = Path(name).suffix.lower()
    return suffix in KINDS or suffix in _REFUSED


def known_kind(file_format: str) -> str:
    """The kind that a person means by "txt", ".CSV" or "jsonl".

    Raises:
        DataError: it is none of `KINDS`.
    """
    suffix = "." + file_format.lower().lstrip(".")
    if suffix not in KINDS:
        return kind_of(f"file_format={suffix}")
    return KINDS[suffix]


def _checked(file: DataFile) -> DataFile:
    if file.size > MAX_FILE_BYTES:
        raise DataError(f"{file.name} holds {file.size:,} bytes; at most {MAX_FILE_BYTES:,} are read.")
    if file.size == 0:
        raise DataError(f"{file.name} is empty (0 bytes).")
    with file.open() as opened:
        head = opened.read(32)
    if file.kind not in BINARY_KINDS:
        for magic, what in _MAGIC:
            if head.startswith(magic):
                raise DataError(f"{file.name} {what}. Read are {', '.join(KINDS)}.")
    return file


_PARTS = {
    "train": re.compile(r"(?:^|[^a-z])(?:train|training)(?:[^a-z]|$)"),
    "validation": re.compile(r"(?:^|[^a-z])(?:validation|valid|val|dev|eval)(?:[^a-z]|$)"),
    "test": re.compile(r"(?:^|[^a-z])(?:test|testing)(?:[^a-z]|$)"),
}


def part_of(name: str) -> str | None:
    """Which part of a data set a file name or path speaks of: "train", "validation", "test", or None."""
    for piece in reversed(re.split(r"[/\\]", name.lower())):
        found = [part for part, pattern in _PARTS.items() if pattern.search(piece)]
        if len(found) == 1:
            return found[0]
    return None


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Attributes:
        files: part ("" where the names speak of none) → paths and names, all of one kind, in the order of their names.
        kind: that kind.
        skipped: notes on what was left out.
    """

    files: dict[str, list[tuple[Path, str]]]
    kind: str
    skipped: tuple[str, ...]


def list_folder(root: Path, pattern: str = "*") -> Folder:
    """Walk a folder: links to other folders are not followed, hidden files are left out, one kind of data must remain.

    Raises:
        DataError: no data, several kinds of it, too many files, or a folder that cannot be read.
    """
    found, skipped = _walk(root, pattern)
    found, kind, beside = one_kind(found, str(root), f"matching {pattern!r}" if pattern != "*" else "", skipped)
    groups, notes = by_part(found)
    files = {part: [(root / name, name) for name in names] for part, names in groups.items()}
    return Folder(files, kind, tuple(skipped + beside + notes))


def one_kind(
    names: Sequence[str], where: str, which: str = "", notes: Sequence[str] = ()
) -> tuple[list[str], str, list[str]]:
    """The files that are data: all of one kind. A README beside tables describes them and is none.

    Args:
        names: names of files of known kinds.
        where: what holds them, for the message.
        which: how they were chosen, for the message.
        notes: on other files, for the message.

    Returns:
        The names, their kind, and notes on what was left out.

    Raises:
        DataError: none, or several kinds.
    """
    beside = [name for name in names if BESIDE_THE_DATA.fullmatch(Path(name).name)]
    found = [name for name in names if name not in set(beside)]
    if all(KINDS[Path(name).suffix.lower()] == "txt" for name in names) or not found:
        found, beside = list(names), []
    kinds = Counter(KINDS[Path(name).suffix.lower()] for name in found)
    if not kinds:
        parts = [where, "holds no file", which, f"that is read ({', '.join(KINDS)})."]
        raise DataError(" ".join([*filter(None, parts), *notes]))
    if len(kinds) > 1:
        listed = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
        raise DataError(f"{where} holds several kinds of data ({listed}). Say which: pattern='*{_suffix_of(found)}'.")
    return found, next(iter(kinds)), [f"left out, as they describe data: {_some(beside)}"] if beside else []


def matches(name: str, pattern: str) -> bool:
    """Whether a path inside a folder, or its last part, fits a pattern."""
    return fnmatch.fnmatch(PurePosixPath(name).name, pattern) or fnmatch.fnmatch(name, pattern)


def _walk(root: Path, pattern: str) -> tuple[list[str], list[str]]:
    """Relative names of the files of known kinds, sorted; and notes on the others."""
    faults: list[OSError] = []
    found: list[str] = []
    other: list[str] = []
    links = 0
    for folder, folders, names in os.walk(root, onerror=faults.append, followlinks=False):
        here = Path(folder)
        links += sum((here / name).is_symlink() for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            relative = (here / name).relative_to(root).as_posix()
            if name.startswith(".") or not matches(relative, pattern):
                continue
            (found if Path(name).suffix.lower() in KINDS else other).append(relative)
            if len(found) + len(other) > MAX_FILES:
                raise DataError(f"{root} holds more than {MAX_FILES:,} files; give a folder below it, or a pattern=.")
    if faults and not found:
        raise DataError(f"{root} cannot be read: {faults[0].strerror}.")
    notes = [f"not read, as their kind is unknown: {_some(other)}"] if other else []
    notes += [f"{links} links to folders were not followed"] if links else []
    notes += [f"{fault.filename} cannot be read: {fault.strerror}" for fault in faults[:5]]
    return sorted(found), notes


def by_part(names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Names of files by the part that they speak of, and notes; one part "" where they do not speak of a training part."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(part_of(name) or "", []).append(name)
    if "train" not in parts or len(parts) == 1:
        return {"": list(names)}, []
    notes = [
        f"by their names, {len(group)} files are the part {part!r}"
        if part
        else f"left out, as they name no part: {_some(group)}"
        for part, group in parts.items()
    ]
    return {part: group for part, group in parts.items() if part}, notes


def _some(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(ascii, names[:most])) + more


def _suffix_of(names: Sequence[str]) -> str:
    return Counter(Path(name).suffix for name in names).most_common(1)[0][0]
