"""Where documents are kept: in memory while they are few, in an Arrow file of the cache once they are many.

A store is filled once and then read any number of times. An Arrow file gets its name when it is complete, so that a fault on
the way leaves nothing. Knows no file formats that people upload.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

from utils._extras import require
from utils._files import sync_folder
from utils.errors import ConfigError, DataError
from utils.loading.cache import cache_root, private_folder

if TYPE_CHECKING:
    import pyarrow as pa

MEMORY_BYTES = 64 << 20
"""Text above this size goes to disk: Colab has 12.7 GB of memory, and the model, the tokenizer and the blocks need it."""
BATCH_BYTES = 4 << 20
"""Text of one record batch of the Arrow file: what is in memory at a time while documents are walked."""
BATCH_ROWS = 10_000
"""Rows of one record batch, where they are short."""
SPARE_BYTES = 1 << 30
"""Room that is left on the disk: a full disk would stop the checkpoints too."""


class ArrowTexts(Sequence[str]):
    """One text column of an Arrow file, read batch by batch; never the whole file in memory.

    Slices and single rows cost one batch of about `BATCH_BYTES`; walking in order is the fast way. Safe to pickle and to
    use after a fork: every process opens the file for itself.

    Args:
        path: an Arrow IPC file as `DocumentStore` writes it.
        column: name of the column.
        ends: number of rows up to the end of each batch.
    """

    def __init__(self, path: Path, column: str, ends: Sequence[int]) -> None:
        self.path, self.column, self._ends = path, column, list(ends)
        self._reader: Any = None
        self._process = 0
        self._cached: tuple[int, list[str]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for number in range(len(self._ends)):
            yield from self._batch(number)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        number = bisect_right(self._ends, place)
        if self._cached[0] != number:
            self._cached = (number, self._batch(number))
        return self._cached[1][place - (self._ends[number - 1] if number else 0)]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "column": self.column, "_ends": self._ends}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["column"], state["_ends"])  # type: ignore[misc]

    def _batch(self, number: int) -> list[str]:
        if self._reader is None or self._process != os.getpid():
            self._reader, self._process = self._open(), os.getpid()
        texts: list[str] = self._reader.get_batch(number).column(self.column).to_pylist()
        return texts

    def _open(self) -> pa.RecordBatchFileReader:
        import pyarrow as pa

        try:
            return pa.ipc.open_file(pa.OSFile(str(self.path)))  # no memory map: mapped pages would count as our memory
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"The text in {self.path} is gone or damaged ({error}); read the data again.") from error


class DocumentStore:
    """Takes documents one by one, and gives them back as sequences once all are there.

    Used as a context manager: a block that raises leaves no file.

    Args:
        columns: names of the text columns, such as ("text",) or ("text", "target").
        memory_bytes: size of the text from which on it goes to disk.
    """

    def __init__(self, columns: Sequence[str] = ("text",), memory_bytes: int = MEMORY_BYTES) -> None:
        self.columns, self.memory_bytes = tuple(columns), memory_bytes
        self.count = self.size = 0
        self._rows: list[tuple[str, ...]] = []
        self._waiting = 0
        self._digest = hashlib.sha256()
        self._file: _ArrowFile | None = None

    def __enter__(self) -> DocumentStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.discard()

    def add(self, *texts: str) -> None:
        """Take one document; one text for each column. The texts are valid Unicode."""
        for text in texts:
            raw = text.encode("utf-8")
            self._waiting += len(raw)
            self._digest.update(len(raw).to_bytes(8, "little") + raw)
        self.count += 1
        self._rows.append(texts)
        full = self._waiting >= BATCH_BYTES or len(self._rows) >= BATCH_ROWS
        if self._waiting >= self.memory_bytes or (self._file is not None and full):
            self._spill()

    def finish(self) -> tuple[list[Sequence[str]], str]:
        """The columns as sequences, and the SHA-256 over their texts."""
        fingerprint = self._digest.hexdigest()
        self.size += self._waiting
        if self._file is None:
            return [tuple(row[i] for row in self._rows) for i in range(len(self.columns))], fingerprint
        if self._rows:
            self._file.write(self._rows)
        path, ends = self._file.commit(fingerprint)
        return [ArrowTexts(path, name, ends) for name in self.columns], fingerprint

    def _spill(self) -> None:
        if self._file is None:
            self._file = _ArrowFile(self.columns)
        self._file.write(self._rows)
        self.size += self._waiting
        self._rows, self._waiting = [], 0


class _ArrowFile:
    """An Arrow IPC file under a temporary name, and its name once it is complete."""

    def __init__(self, columns: Sequence[str]) -> None:
        require("pyarrow", extra="training", feature=f"Text of more than {MEMORY_BYTES >> 20} MB")
        import pyarrow as pa

        self.folder = _data_folder()
        self.schema = pa.schema([(name, pa.large_string()) for name in columns])
        handle, name = tempfile.mkstemp(prefix="documents-", suffix=".tmp", dir=self.folder)
        os.close(handle)
        self.temporary: Path | None = Path(name)
        self._sink = pa.OSFile(name, "wb")
        self._writer = pa.ipc.new_file(self._sink, self.schema)
        self._ends: list[int] = []

    def write(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Append rows, in batches of about `BATCH_BYTES`."""
        import pyarrow as pa

        start = size = 0
        for place, row in enumerate(rows, 1):
            size += sum(map(len, row))
            if size >= BATCH_BYTES or place - start >= BATCH_ROWS or place == len(rows):
                self._check_room()
                part = rows[start:place]
                arrays = [pa.array([row[i] for row in part], pa.large_string()) for i in range(len(self.schema))]
                self._guarded(self._writer.write_batch, pa.record_batch(arrays, schema=self.schema))
                self._ends.append((self._ends[-1] if self._ends else 0) + len(part))
                start, size = place, 0

    def commit(self, fingerprint: str) -> tuple[Path, list[int]]:
        """Give the file its name, which is that of its content."""
        assert self.temporary is not None
        self._guarded(self._writer.close)
        self._guarded(self._sink.close)
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        path = self.folder / f"documents-{'-'.join(self.schema.names)}-{fingerprint[:32]}.arrow"
        os.replace(self.temporary, path)
        self.temporary = None
        sync_folder(self.folder)
        return path, self._ends

    def discard(self) -> None:
        """Remove what is not complete; does nothing after `commit`."""
        if self.temporary is not None:
            self._sink.close()
            self.temporary.unlink(missing_ok=True)
            self.temporary = None

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < SPARE_BYTES:
            raise DataError(
                f"The disk of {self.folder} has {free / 2**30:.1f} GB left, too little for the text that is read into it. Make "
                "room, read fewer documents (max_documents=), or move the cache: TRANSFORMER_BUILDER_CACHE."
            )

    def _guarded(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            raise DataError(f"The text cannot be written to {self.folder}: {error}. Nothing was kept.") from error


def _data_folder() -> Path:
    try:
        return private_folder(private_folder(cache_root()) / "data")
    except ConfigError as error:
        raise DataError(str(error)) from error
