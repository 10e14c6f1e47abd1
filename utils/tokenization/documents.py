"""Documents: anything that gives texts again and again and knows how many. Read in slices, never held as a whole.

Knows lists and columns of `datasets.Dataset`; leaves files, uploads and the Hub to `training.dataset_utilities`, and tokens
to `encoding`.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable

import numpy as np

from utils.errors import DataError

TEXT_COLUMNS = ("text", "content", "document")
"""Column names that are taken for the text of a dataset, in this order."""

SLICE_CHARACTERS = 1 << 21
"""Characters that are read at once. Tokenising takes about thirty times as many bytes, which lie beside nothing else."""

FIRST_ROWS, MOST_ROWS = 64, 4096
"""Rows of the first read of a column, before the length of its texts is known, and of the largest."""


@runtime_checkable
class Documents(Protocol):
    """Texts that can be gone through more than once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...


class ColumnView(Sequence[str]):
    """The texts of one column of a `datasets.Dataset`, read from its Arrow files in slices.

    Args:
        dataset: rows, in memory or memory-mapped.
        column: name of the column that holds text.
    """

    def __init__(self, dataset: Any, column: str) -> None:
        self.column = column
        self._rows = dataset.select_columns([column]).with_format("arrow")

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def __iter__(self) -> Iterator[str]:
        for part in self.slices():
            yield from part

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self._read(place, place + 1)[0]

    def slices(self) -> Iterator[list[str]]:
        """Texts in lists of about `SLICE_CHARACTERS` characters."""
        begin, rows = 0, FIRST_ROWS
        while begin < len(self):
            texts = self._read(begin, begin + rows)
            yield texts
            begin += len(texts)
            per_row = max(sum(map(len, texts)) / len(texts), 1.0)
            rows = int(min(max(SLICE_CHARACTERS / per_row, 1), MOST_ROWS))

    def _read(self, begin: int, end: int) -> list[str]:
        table = self._rows[begin : min(end, len(self))]
        texts = table.column(self.column).to_pylist()
        _page_out(self._rows)
        for place, text in enumerate(texts, start=begin):
            if not isinstance(text, str):
                raise DataError(
                    f"Row {place} of column {self.column!r} holds {'nothing' if text is None else type(text).__name__}, "
                    "not text. Leave such rows out: dataset.filter(lambda row: isinstance(row[column], str))."
                )
        return texts


class Selection:
    """Some of the documents, in their order.

    Args:
        documents: all of them.
        kept: (number of documents,) bool.
    """

    def __init__(self, documents: Documents, kept: np.ndarray) -> None:
        self.documents, self.kept = documents, kept

    def __len__(self) -> int:
        return int(self.kept.sum())

    def __iter__(self) -> Iterator[str]:
        return (text for text, keep in zip(self.documents, self.kept) if keep)


def as_documents(data: Any, column: str | None = None) -> Documents:
    """What was passed as texts, as documents.

    Args:
        data: one text, a list of texts, a `datasets.Dataset`, or anything else that gives texts again and again and has a
            length.
        column: the column of a dataset that holds the text; None takes the first of `TEXT_COLUMNS`, or the only column.

    Raises:
        DataError: no texts, a column that is not there, or something that can be gone through only once.
    """
    if isinstance(data, str):
        return (data,)
    if hasattr(data, "column_names"):
        return _from_dataset(data, column)
    if isinstance(data, Iterator):
        raise DataError(
            f"A {type(data).__name__} can be gone through only once, and text is read more than once (to find its cache, and "
            "to tokenise it). Pass a list, or a datasets.Dataset: datasets.Dataset.from_generator(…)."
        )
    if isinstance(data, (Mapping, Set)) or hasattr(data, "itertuples"):  # their items are keys, unordered, column names
        raise DataError(
            f"A {type(data).__name__} is no list of documents. Pass the texts as a list, e.g. list(table['text']) or "
            "sorted(texts), or let DatasetLoader.from_anything read it."
        )
    if isinstance(data, (bytes, bytearray)) or not isinstance(data, Documents):
        raise DataError(f"Documents are texts in a list or a datasets.Dataset; got {type(data).__name__}.")
    if isinstance(data, (list, tuple)):
        wrong = next(((place, item) for place, item in enumerate(data) if not isinstance(item, str)), None)
        if wrong is not None:
            raise DataError(f"Item {wrong[0]} of the documents is of type {type(wrong[1]).__name__}, not text.")
    return data


def slices(documents: Documents) -> Iterator[list[str]]:
    """Documents in lists of about `SLICE_CHARACTERS` characters; a longer document is a list of its own."""
    gathered: list[str] = []
    size = 0
    for text in documents:
        if gathered and size + len(text) > SLICE_CHARACTERS:
            yield gathered
            gathered, size = [], 0
        gathered.append(text)
        size += len(text) + 1  # empty ones count too, or a million of them were one slice
    if gathered:
        yield gathered


def text_fingerprint(documents: Iterable[str]) -> str:
    """SHA-256 over documents with their lengths, so that other cuts of the same text differ."""
    digest = hashlib.sha256()
    for text in documents:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def _from_dataset(data: Any, column: str | None) -> ColumnView:
    names = data.column_names
    if isinstance(names, dict):
        raise DataError(
            f"A DatasetDict holds several splits ({', '.join(map(str, names))}); pass one of them: dataset['train']."
        )
    if not hasattr(data, "select_columns") or not hasattr(data, "num_rows"):
        raise DataError(
            f"A {type(data).__name__} has no length, and text is read more than once here. utils.train reads it as a stream; for "
            "anything else write it to disk first: datasets.Dataset.from_generator(lambda: iter(streamed))."
        )
    return ColumnView(data, chosen_column(list(names or []), column))


def chosen_column(names: list[str], column: str | None) -> str:
    """The column that holds the text: the named one, else the only one, else the first of `TEXT_COLUMNS`.

    Raises:
        DataError: there is no such column.
    """
    if column is None and len(names) == 1:
        return names[0]
    chosen = next((name for name in TEXT_COLUMNS if name in names), None) if column is None else column
    if chosen is None or chosen not in names:
        raise DataError(
            f"The dataset has the columns {', '.join(map(repr, names))} and none named "
            f"{', '.join(map(repr, TEXT_COLUMNS if column is None else (column,)))}. Name the one that holds the text: "
            "column='…'."
        )
    return chosen


PAGE_OUT = 21
"""MADV_PAGEOUT of Linux: pages of a file leave memory; pages that belong to no file stay untouched."""


def _page_out(dataset: Any) -> None:
    """Let go of the pages of memory-mapped Arrow files that were read, or a large text would seem to fill the memory.

    Only advice: where the system does not know it, nothing happens.
    """
    if not sys.platform.startswith("linux") or not getattr(dataset, "cache_files", None):
        return
    for column in dataset.data.columns:
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                if buffer is not None and buffer.size >= SLICE_CHARACTERS:
                    begin = -(-buffer.address // mmap.PAGESIZE) * mmap.PAGESIZE
                    length = buffer.address + buffer.size - begin
                    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), PAGE_OUT)
