"""Rows out of files: one reader for each kind, each a stream, each with its limits.

A text file is one document. One above `LARGE_TEXT_BYTES` becomes pieces of about `PIECE_CHARACTERS`, cut at blank lines or
line ends, because a tokenizer takes a document as a whole; together the pieces are the text. `split_on` cuts smaller ones.
Tables keep the rules of their libraries (csv, json, pyarrow); what is decided here is what is refused.
"""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any

from utils._extras import require
from utils.errors import ConfigError, DataError
from utils.loading.strict_json import parse_json
from utils.loading.text import Encoding, decoded, find_encoding
from utils.progress import ProgressCallback, ignore_progress
from utils.training.data_sources import DataFile
from utils.training.loaded_dataset import ReadOptions, ReadReport

LARGE_TEXT_BYTES = 16 << 20
PIECE_CHARACTERS = 1 << 20
MAX_RECORD_CHARACTERS = 16 << 20
"""One row of a table or of JSON lines; a longer one is rejected. A novel has a million characters."""
MAX_JSON_BYTES = 128 << 20
"""A .json file is read as a whole and takes about ten times its size in memory; larger data belongs into JSON lines."""
MAX_COLUMNS = 4096
LONGEST_NAME = 40
"""Characters; a longer name of a column, or a number, is rather a value, in a csv file without header."""
MAX_GROUP_BYTES = 4 << 30
"""Decoded bytes that a row group of a Parquet file may claim; it is read in parts, but its pages are not bounded otherwise."""
PARQUET_ROWS = CSV_RECORDS = 256
"""Rows that are decoded at a time."""

Row = dict[str, Any]
_FIELD_LIMIT = threading.Lock()


class QuoteError(DataError):
    """The quotes of a csv file do not pair; reading it with quotes as plain characters may still work."""


class RecordReader:
    """Reads the rows of one file.

    Args:
        file: which file.
        options: how.
        report: takes notes on the file as such.
        progress: told the bytes that were read.

    Attributes:
        is_table: whether every row has every column.
    """

    is_table = False

    def __init__(
        self, file: DataFile, options: ReadOptions, report: ReadReport, progress: ProgressCallback = ignore_progress
    ) -> None:
        self.file, self.options, self.report, self.progress = file, options, report, progress

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.file.name

    @property
    def label_names(self) -> Mapping[str, Sequence[str]]:
        """Names of class numbers by column, where the file itself has them."""
        return {}

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """Numbered rows.

        Args:
            reject: is told number, kind of reason and detail of each row that is left out.
            columns: top-level columns that are wanted; None gives all. A reader may give more.

        Raises:
            DataError: the file as a whole cannot be read.
        """
        raise NotImplementedError

    @cached_property
    def encoding(self) -> Encoding:
        """How the text of the file is decoded; decided over the whole file before the first row is given out."""
        with self.file.open() as opened:
            encoding = find_encoding(opened, self.file.name, DataError, self.options.encoding)
        if encoding.note:
            self.report.note(f"{self.file.name}: {encoding.note}", warning=encoding.fallback)
        return encoding

    def text(self) -> Iterator[str]:
        """Decoded pieces with line ends as they are."""
        encoding = self.encoding
        with self.file.open() as opened:
            for piece in decoded(opened, encoding):
                self.progress(opened.tell(), self.file.size, self.file.name)
                yield piece

    def lines(self, cut: bool = False) -> Iterator[str]:
        """Lines, each with a line feed as its end.

        Args:
            cut: a line above `MAX_RECORD_CHARACTERS` comes cut to one character more than that; otherwise it is an error.

        Raises:
            DataError: a line is too long.
        """
        start, number = "", 0
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        for piece in self.text():
            *whole, rest = (start + newlines.decode(piece)).split("\n")
            for line in whole:
                number += 1
                yield self._bounded(line, number, cut) + "\n"
            start = self._bounded(rest, number + 1, cut)
        if start:
            yield start

    def _bounded(self, line: str, number: int, cut: bool) -> str:
        if len(line) <= MAX_RECORD_CHARACTERS or cut:
            return line[: MAX_RECORD_CHARACTERS + 1]
        raise DataError(f"{self.file.name}, line {number:,} is longer than {MAX_RECORD_CHARACTERS:,} characters.")


class TextReader(RecordReader):
    """Documents of a text file, in the column "text"."""

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """See `RecordReader.rows`."""
        for number, text in enumerate(self._documents(), 1):
            yield number, {"text": text}

    def _documents(self) -> Iterator[str]:
        split_on = self.options.split_on
        if split_on == "lines":
            yield from (line.removesuffix("\n") for line in self.lines() if line.strip())
        elif split_on == "blank lines":
            yield from self._paragraphs()
        elif self.file.size <= LARGE_TEXT_BYTES:
            yield "".join(self._normalised())
        else:
            self.report.note(
                f"{self.file.name} is larger than {LARGE_TEXT_BYTES >> 20} MB and is read in pieces of about "
                f"{PIECE_CHARACTERS >> 20} million characters; each counts as a document"
            )
            yield from self._pieces()

    def _normalised(self) -> Iterator[str]:
        """Pieces with the line feed as the only line end; other ends and marks within the text are noted."""
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        marks = 0
        for piece in self.text():
            text = newlines.decode(piece)
            marks += text.count("\ufeff")
            yield text
        yield newlines.decode("", final=True)
        kinds = newlines.newlines
        if isinstance(kinds, tuple):
            self.report.note(f"{self.file.name} mixes line ends ({', '.join(map(repr, kinds))}); all became '\\n'")
        if marks:
            self.report.note(
                f"{self.file.name} holds {marks:,} byte-order marks inside its text (joined files?); they are kept"
            )

    def _pieces(self) -> Iterator[str]:
        held = ""
        for text in self._normalised():
            held += text
            while len(held) > PIECE_CHARACTERS:
                cut = _place_to_cut(held)
                yield held[:cut]
                held = held[cut:]
        if held:
            yield held

    def _paragraphs(self) -> Iterator[str]:
        held: list[str] = []
        for line in self.lines():
            if line.strip():
                held.append(line)
            elif held:
                yield "".join(held).removesuffix("\n")
                held = []
        if held:
            yield "".join(held).removesuffix("\n")


def _place_to_cut(text: str) -> int:
    """Behind the last blank line of the first piece, else behind its last line end, else at its end."""
    for mark in ("\n\n", "\n", " "):
        place = text.rfind(mark, PIECE_CHARACTERS // 2, PIECE_CHARACTERS)
        if place >= 0:
            return place + len(mark)
    return PIECE_CHARACTERS


class CsvReader(RecordReader):
    """Rows of a csv or tsv file; the header names the columns.

    Quotes are read as RFC 4180 has them. Where they do not pair, the file is read once more with quotes as plain characters
    (as in many tsv files), and taken only if every row then has as many fields as the header and no field stands in quotes.
    """

    is_table = True

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """See `RecordReader.rows`."""
        names, records = self._names(self._records(self._quoting))
        for number, (line, fields) in enumerate(records, 1):
            if len(fields) != len(names):
                reject(number, f"has not the {len(names)} fields of the header", f"{len(fields)} fields, line {line:,}")
            else:
                yield number, dict(zip(names, fields, strict=True))

    @cached_property
    def _quoting(self) -> Any:
        """`csv.QUOTE_MINIMAL`, or `csv.QUOTE_NONE` where only that makes sense of the file."""
        try:
            for _ in self._records(csv.QUOTE_MINIMAL):
                pass
            return csv.QUOTE_MINIMAL
        except QuoteError:
            if not self._is_plain():
                raise
        self.report.note(
            f"{self.file.name}: its quotes do not pair, so they were read as plain characters", warning=True
        )
        return csv.QUOTE_NONE

    def _is_plain(self) -> bool:
        """Whether quotes make sense as plain characters: all rows have one width, and no field stands in quotes."""
        widths: set[int] = set()
        for _, fields in self._records(csv.QUOTE_NONE):
            widths.add(len(fields))
            if len(widths) > 1 or any(len(f) > 1 and f.startswith('"') and f.endswith('"') for f in fields):
                return False
        return True

    @cached_property
    def _first_line(self) -> str:
        return next(self.lines(), "").lstrip("\ufeff")

    @cached_property
    def _delimiter(self) -> str:
        """The named one; a tab in tsv; the one of Excel's line "sep=;"; else the one that the header line holds."""
        if self.options.delimiter is not None:
            return self.options.delimiter
        if self.file.kind == "tsv":
            return "\t"
        declared = re.fullmatch(r"sep=(.)\s*", self._first_line)
        if declared:
            return declared[1]
        found = max(",;\t|", key=lambda mark: (self._first_line.count(mark), mark == ","))
        if found != "," and self._first_line.count(found):
            self.report.note(f"{self.file.name}: fields are separated by {found!r}, as in its first line")
            return found
        return ","

    def _records(self, quoting: Any) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of each record; blank lines are left out."""
        lines = self.lines()
        next(lines, None)
        if not re.fullmatch(r"sep=.\s*", self._first_line):
            lines = chain([self._first_line], lines)
        try:
            reader = csv.reader(lines, delimiter=self._delimiter, quoting=quoting, strict=quoting == csv.QUOTE_MINIMAL)
        except (TypeError, ValueError) as error:
            raise DataError(f"delimiter={self.options.delimiter!r} cannot separate fields: {error}.") from error
        try:
            while batch := _read_records(reader):
                for line, fields in batch:
                    if len(fields) > 1 or any(value.strip() for value in fields):
                        yield line, fields
        except _RecordError as error:
            if "field larger" in error.reason:
                raise DataError(
                    f"{self.file.name}, line {error.line:,}: a field is longer than {MAX_RECORD_CHARACTERS:,} characters, or a "
                    "quote that opens there is never closed."
                ) from error
            raise QuoteError(
                f"{self.file.name}, record at line {error.line:,}: its quotes do not pair ({error.reason}). Double the quotes inside a "
                "quoted field, and close the last one."
            ) from error

    def _names(self, records: Iterator[tuple[int, list[str]]]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
        """Names of the columns, and the records below the header."""
        first = next(records, None)
        if first is None:
            raise DataError(f"{self.file.name} holds no row.")
        line, fields = first
        if len(fields) > MAX_COLUMNS:
            raise DataError(f"{self.file.name} has {len(fields):,} columns; at most {MAX_COLUMNS:,} are read.")
        if not self.options.has_header:
            return [f"column {i}" for i in range(1, len(fields) + 1)], chain([first], records)
        names = [value.strip(" \t\r\n\ufeff\xa0") or f"column {i}" for i, value in enumerate(fields, 1)]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise DataError(
                f"{self.file.name} has two columns called {twice!r} (line {line}); rename one of them, or pass "
                "has_header=False where that line is data."
            )
        sentence = len(names) == 1 and " " in names[0]  # most likely a list of texts without a header
        if sentence or any(len(name) > LONGEST_NAME or re.fullmatch(r"[-+.\d]+", name) for name in names):
            self.report.note(
                f"{self.file.name}: the first row was taken for the names of the columns, and looks like data; if it is, pass "
                "has_header=False",
                warning=True,
            )
        return names, records


class JsonLinesReader(RecordReader):
    """One JSON value in each line: objects, or strings (column "text"). Blank lines are left out."""

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """See `RecordReader.rows`."""
        number = 0
        for place, line in enumerate(self.lines(cut=True), 1):
            if not line.strip(" \t\r\n\ufeff"):
                continue
            number += 1
            where = f"line {place:,}"
            if len(line) > MAX_RECORD_CHARACTERS:
                reject(number, "is too long", f"{where}, over {MAX_RECORD_CHARACTERS:,} characters")
                continue
            try:
                value = parse_json(line.lstrip("\ufeff"), where, max_bytes=4 * MAX_RECORD_CHARACTERS)
            except (ConfigError, RecursionError) as error:
                reject(number, "is no JSON that can be taken", str(error).split("\n")[0])
                continue
            row = _as_row(value)
            if row is None:
                reject(number, "is neither an object nor a text", f"{where} holds {_json_kind(value)}")
            else:
                yield number, row


class JsonReader(RecordReader):
    """A whole JSON file: a list of objects or texts, or an object that holds one such list, or columns."""

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """See `RecordReader.rows`."""
        if self._is_lines:
            yield from JsonLinesReader(self.file, self.options, self.report, self.progress).rows(reject)
            return
        for number, value in enumerate(self._list, 1):
            row = _as_row(value)
            if row is None:
                reject(number, "is neither an object nor a text", f"it is {_json_kind(value)}")
            else:
                yield number, row

    @cached_property
    def _is_lines(self) -> bool:
        """Whether the file holds JSON lines under the name .json: then its first line is an object by itself, and another follows."""
        lines = (line for line in self.lines(cut=True) if line.strip(" \t\r\n\ufeff"))
        first, second = next(lines, ""), next(lines, "")
        head = first.strip(" \t\r\n\ufeff")
        if not (head.startswith("{") and head.endswith("}") and second.lstrip().startswith("{")):
            return False
        try:
            parse_json(head, "line 1", max_bytes=4 * MAX_RECORD_CHARACTERS)
        except (ConfigError, RecursionError):
            return False
        self.report.note(f"{self.file.name} holds one object in each line and was read as JSON lines")
        return True

    @cached_property
    def _list(self) -> list[Any]:
        name = self.file.name
        if self.file.size > MAX_JSON_BYTES:
            raise DataError(
                f"{name} holds {self.file.size:,} bytes; a .json file is read as a whole, at most {MAX_JSON_BYTES:,}. Write one "
                "object per line and call it .jsonl."
            )
        text = "".join(self.text()).lstrip("\ufeff")
        if not text.strip():
            raise DataError(f"{name} holds nothing but blanks.")
        try:
            value = parse_json(text, name, max_bytes=4 * MAX_JSON_BYTES)
        except (ConfigError, RecursionError) as error:
            raise DataError(str(error)) from error
        return self._rows_of(value)

    def _rows_of(self, value: Any) -> list[Any]:
        """The rows that a parsed file means."""
        if isinstance(value, dict) and self.options.field is not None:
            if not isinstance(value.get(self.options.field), list):
                raise DataError(
                    f"{self.file.name} has no list under the key {self.options.field!r}; its keys: {_named(value)}."
                )
            return list(value[self.options.field])
        if isinstance(value, list):
            return value
        if not isinstance(value, dict):
            raise DataError(f"{self.file.name} holds {_json_kind(value)}; data is a list of objects or of texts.")
        lists = {key: item for key, item in value.items() if isinstance(item, list)}
        if not lists:
            return [value]
        if len(lists) == 1:
            (key, rows), *_ = lists.items()
            self.report.note(f"{self.file.name}: the rows are the list under the key {key!r}")
            return rows
        lengths = {len(item) for item in lists.values()}
        if (
            len(lists) == len(value)
            and len(lengths) == 1
            and not any(isinstance(v, dict) for r in lists.values() for v in r)
        ):
            return [dict(zip(lists, items, strict=True)) for items in zip(*lists.values(), strict=True)]
        raise DataError(f"{self.file.name} holds several lists ({_named(lists)}); say which: field='...'.")


class ParquetReader(RecordReader):
    """Rows of a Parquet file, a few hundred at a time, of the wanted columns only."""

    is_table = True

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """See `RecordReader.rows`."""
        require("pyarrow", extra="training", feature="Reading Parquet files")
        import pyarrow.parquet as pq

        with self.file.open() as opened, _arrow_faults(self.file.name):
            parquet = pq.ParquetFile(opened)
            self._check(parquet.metadata)
            names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
            if len(set(names)) != len(names):
                raise DataError(f"{self.file.name} has two columns of one name: {_named(names)}.")
            number, total = 0, max(parquet.metadata.num_rows, 1)
            for batch in parquet.iter_batches(PARQUET_ROWS, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
                self.progress(self.file.size * min(number, total) // total, self.file.size, self.file.name)

    @property
    def label_names(self) -> Mapping[str, Sequence[str]]:
        """See `RecordReader.label_names`."""
        import pyarrow.parquet as pq

        with self.file.open() as opened, _arrow_faults(self.file.name):
            return _names_of_classes(pq.read_schema(opened).metadata)

    def _check(self, metadata: Any) -> None:
        if metadata.num_columns > MAX_COLUMNS:
            raise DataError(f"{self.file.name} has {metadata.num_columns:,} columns; at most {MAX_COLUMNS:,} are read.")
        for number in range(metadata.num_row_groups):
            size = metadata.row_group(number).total_byte_size
            if not 0 <= size <= MAX_GROUP_BYTES:
                raise DataError(
                    f"{self.file.name}: row group {number} claims {size:,} bytes; at most {MAX_GROUP_BYTES:,} are read."
                )


class ArrowReader(RecordReader):
    """Rows of an Arrow IPC file or stream (`datasets` writes streams)."""

    is_table = True

    def rows(
        self, reject: Callable[[int, str, str], None], columns: list[str] | None = None
    ) -> Iterator[tuple[int, Row]]:
        """See `RecordReader.rows`."""
        require("pyarrow", extra="training", feature="Reading Arrow files")
        number = 0
        with self.file.open() as opened, _arrow_faults(self.file.name):
            for batch in self._batches(opened):
                batch.validate(full=True)  # a hostile file may hold offsets that lead outside its buffers
                names = batch.schema.names
                if len(set(names)) != len(names):
                    raise DataError(f"{self.file.name} has two columns of one name: {_named(names)}.")
                wanted = [name for name in names if columns is None or name in columns]
                for start in range(0, batch.num_rows, PARQUET_ROWS):
                    for row in batch.select(wanted).slice(start, PARQUET_ROWS).to_pylist():
                        number += 1
                        yield number, row
                self.progress(min(opened.tell(), self.file.size), self.file.size, self.file.name)

    @property
    def label_names(self) -> Mapping[str, Sequence[str]]:
        """See `RecordReader.label_names`."""
        with self.file.open() as opened, _arrow_faults(self.file.name):
            return next((_names_of_classes(batch.schema.metadata) for batch in self._batches(opened)), {})

    @staticmethod
    def _batches(opened: Any) -> Iterator[Any]:
        import pyarrow as pa

        if opened.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(opened)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            opened.seek(0)
            yield from pa.ipc.open_stream(opened)


READERS: dict[str, type[RecordReader]] = {
    "txt": TextReader,
    "csv": CsvReader,
    "tsv": CsvReader,
    "json": JsonReader,
    "jsonl": JsonLinesReader,
    "parquet": ParquetReader,
    "arrow": ArrowReader,
}
"""Kind of file → its reader."""


def _names_of_classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Class names that `datasets` wrote into the schema of a file; {} where there are none that can be read."""
    text = (metadata or {}).get(b"huggingface", b"{}").decode("utf-8", "replace")
    try:
        features = parse_json(text, "the schema")["info"]["features"]
        found = {
            column: feature["names"] for column, feature in features.items() if feature.get("_type") == "ClassLabel"
        }
    except (ConfigError, KeyError, TypeError, AttributeError):
        return {}
    return {column: tuple(map(str, names)) for column, names in found.items() if isinstance(names, list)}


def _as_row(value: Any) -> Row | None:
    if isinstance(value, dict):
        return value
    return {"text": value} if isinstance(value, str) else None


def _json_kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "one text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _named(names: Any, most: int = 12) -> str:
    shown = [repr(name)[:60] for name in names]
    return ", ".join(shown[:most]) + (" …" if len(shown) > most else "")


class _RecordError(Exception):
    """What csv says of a record, and the line at which that begins."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


def _read_records(reader: Any) -> list[tuple[int, list[str]]]:
    """The next records of a csv reader, each with the line at which it begins.

    The limit on the length of a field belongs to the whole process: it is raised for this call alone, by one thread at a time.
    """
    batch: list[tuple[int, list[str]]] = []
    with _FIELD_LIMIT:
        before = csv.field_size_limit(MAX_RECORD_CHARACTERS)
        try:
            while len(batch) < CSV_RECORDS:
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    raise _RecordError(line, str(error)) from error
                if fields is None:
                    break
                batch.append((line, fields))
        finally:
            csv.field_size_limit(before)
    return batch


@contextmanager
def _arrow_faults(name: str) -> Iterator[None]:
    """Turns what pyarrow raises on a damaged file into an error that names the file."""
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, KeyError, IndexError) as error:
        first = (str(error) or type(error).__name__).split("\n")[0][:200]
        raise DataError(f"{name} is damaged or no file of its kind: {first}. Nothing of it was kept.") from error
