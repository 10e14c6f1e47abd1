"""From rows to one typed result: the columns are chosen, every row is judged, the documents are stored.

A row is taken or rejected with its reason; a source that fails as a whole leaves nothing. Knows rows, not files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

from utils.errors import DataError
from utils.training.data_columns import MAX_LABELS, choose_columns, value_at
from utils.training.data_objects import RowSource
from utils.training.data_readers import MAX_RECORD_CHARACTERS, TextReader
from utils.training.data_sources import part_of
from utils.training.data_store import DocumentStore
from utils.training.loaded_dataset import ColumnChoice, LoadedDataset, Preview, ReadOptions, ReadReport

logger = logging.getLogger(__name__)

SAMPLE_ROWS = 200
SAMPLE_CHARACTERS = 1 << 20
"""Rows, and text, from which the columns are chosen."""

Row = dict[str, Any]


def load_parts(
    name: str, parts: Mapping[str, Sequence[RowSource]], options: ReadOptions, notes: Sequence[str] = ()
) -> LoadedDataset:
    """Load the part that is meant, and keep a validation part beside it.

    Args:
        name: where the data came from, for people.
        parts: name of each part ("" where there is only one) → its sources in order.
        options: how to read.
        notes: what was decided before.

    Raises:
        DataError: there is no such part, or several and none is the training part; or as in `load_rows`.
    """
    chosen, validation, more = _choose_part(name, list(parts), options.split)
    loaded = load_rows(f"{name} [{chosen}]" if chosen else name, parts[chosen], options, [*notes, *more])
    if not validation:
        return loaded
    same = replace(options, split=None)
    if not isinstance(parts[validation][0], TextReader):  # plain text has no columns to name
        choice = loaded.choice
        same = replace(same, column=choice.text, label_column=choice.label or None, target_column=choice.target or None)
    aside = load_rows(f"{name} [{validation}]", parts[validation], same, labels=loaded.label_names)
    return replace(loaded, validation=aside)


def load_rows(
    name: str,
    sources: Sequence[RowSource],
    options: ReadOptions,
    notes: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> LoadedDataset:
    """Read rows into documents.

    Args:
        name: where the data came from, for people.
        sources: what gives the rows.
        options: how to read.
        notes: what was decided before.
        labels: class names of the training part, which a validation part has to share.

    Raises:
        DataError: a source cannot be read, its columns are not clear, or no row holds text. Nothing is kept then.
    """
    report = ReadReport(name)
    for text in notes:
        report.note(text)
    sample = _sample(sources)
    choice = _choice(name, sources, sample, options)
    table = _Labels(labels or _known_names(sources, choice.label)) if choice.label else None
    with DocumentStore(("text", "target") if choice.target else ("text",)) as store:
        _fill(store, table, sources, choice, options, report)
        if store.count == 0:
            raise DataError(_nothing(name, report))
        columns, fingerprint = store.finish()
    report.text_bytes = store.size
    _log(name, choice, report)
    numbers, names = table.finish(choice.label, name) if table is not None else (None, ())
    target = columns[1] if choice.target else None
    return LoadedDataset(name, columns[0], choice, report, Preview.of(sample), fingerprint, numbers, names, target)


def problem_with_text(text: Any) -> tuple[str, str] | None:
    """Why a value cannot be a document, as kind and detail; None where it can."""
    if text is None:
        return "has no text", ""
    if not isinstance(text, str):
        return "holds no text but another type", type(text).__name__
    if not text.strip():
        return "is empty or blank", ""
    if len(text) > MAX_RECORD_CHARACTERS:
        return "is too long", f"{len(text):,} characters; at most {MAX_RECORD_CHARACTERS:,}"
    if "\0" in text:
        return "holds a NUL character", f"at character {text.index(chr(0)):,}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            "holds half a surrogate pair, which is no character",
            f"U+{ord(text[error.start]):04X} at character {error.start:,}",
        )
    return None


def _choose_part(name: str, parts: Sequence[str], wanted: str | None) -> tuple[str, str, list[str]]:
    """The part to read, the part that validates ("" for none), and notes."""
    if wanted is not None:
        if wanted not in parts:
            listed = ", ".join(map(repr, parts)) if parts != [""] else "no parts"
            raise DataError(f"{name} has no part {wanted!r}; it has {listed}.")
        return wanted, "", []
    if len(parts) == 1:
        return parts[0], "", []
    training = "train" if "train" in parts else next((p for p in parts if part_of(p) == "train"), None)
    if training is None:
        raise DataError(f"{name} has several parts ({', '.join(map(repr, parts))}). Say which one: split='{parts[0]}'.")
    validation = next((part for part in parts if part_of(part) == "validation"), "")
    unused = [part for part in parts if part not in (training, validation)]
    notes = [f"the part {training!r} is read" + (f", {validation!r} is kept for validation" if validation else "")]
    notes += [f"not read: {', '.join(map(repr, unused))} (split=)"] if unused else []
    return training, validation, notes


def _sample(sources: Sequence[RowSource]) -> list[Row]:
    """The first rows of the first source that gives any."""
    for source in sources:
        try:
            with closing(source.rows(_ignore_rejects)) as rows:  # type: ignore[type-var]
                first = _first_rows(rows)
        except DataError:
            if len(sources) == 1 or not isinstance(source, TextReader):
                raise
            continue  # one text file of many: it is reported when its turn comes
        if first:
            return first
    return []


def _first_rows(rows: Iterator[tuple[int, Row]]) -> list[Row]:
    """At most `SAMPLE_ROWS`, and not many more characters than `SAMPLE_CHARACTERS`."""
    first: list[Row] = []
    size = 0
    for _, row in islice(rows, SAMPLE_ROWS):
        first.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if size >= SAMPLE_CHARACTERS:
            break
    return first


def _ignore_rejects(number: int, kind: str, detail: str) -> None:
    """The rows of a sample are judged when they are read for good."""


def _choice(name: str, sources: Sequence[RowSource], sample: Sequence[Row], options: ReadOptions) -> ColumnChoice:
    if sources and isinstance(sources[0], TextReader):
        if options.column or options.label_column or options.target_column:
            raise DataError(
                f"{name} is plain text and has no columns; leave column=, label_column= and target_column= out."
            )
        unit = {"lines": "each line is", "blank lines": "each paragraph is"}.get(
            options.split_on or "", "each text file is"
        )
        return ColumnChoice("text", f"{unit} one document")
    if not sample:
        return ColumnChoice("text", "no row was read")
    named = {options.column or "text", options.label_column, options.target_column} - {None}
    if named == {"text"} and all(set(row) == {"text"} for row in sample):
        return ColumnChoice("text", "there is no other column")
    return choose_columns(sample, options, name)


def _known_names(sources: Sequence[RowSource], column: str) -> Sequence[str]:
    return next((s.label_names[column] for s in sources if column in getattr(s, "label_names", {})), ())


def _fill(
    store: DocumentStore,
    table: _Labels | None,
    sources: Sequence[RowSource],
    choice: ColumnChoice,
    options: ReadOptions,
    report: ReadReport,
) -> None:
    for number, row, where in _all_rows(sources, choice, report):
        texts = [value_at(row, choice.text)] + ([value_at(row, choice.target)] if choice.target else [])
        problem = next((found for text in texts if (found := problem_with_text(text)) is not None), None)
        if problem is None and table is not None:
            problem = table.add(value_at(row, choice.label))
        if problem is not None:
            report.reject(where, number, *problem)
            continue
        store.add(*texts)
        if options.max_documents is not None and store.count >= options.max_documents:
            report.note(f"reading stopped after max_documents={options.max_documents:,}")
            return


def _all_rows(sources: Sequence[RowSource], choice: ColumnChoice, report: ReadReport) -> Iterator[tuple[int, Row, str]]:
    """Rows of all sources with their number and the source's name; a text file of many that fails is one rejected row."""
    for source in sources:

        def reject(number: int, kind: str, detail: str, where: str = source.name) -> None:
            report.rows += 1
            report.reject(where, number, kind, detail)

        count = 0
        columns = _wanted(source, choice)
        try:
            for number, row in source.rows(reject, columns):
                count += 1
                report.rows += 1
                if count == 1:
                    _check_columns(source, row, choice)
                yield number, row, source.name
        except DataError as error:
            if len(sources) == 1 or count or not isinstance(source, TextReader):
                raise
            reject(1, "is a file that cannot be read", str(error))


def _wanted(source: RowSource, choice: ColumnChoice) -> list[str]:
    """Top-level columns to read: for a nested one, every prefix of its name could be the column."""
    names = [name for name in (choice.text, choice.label, choice.target) if name]
    return list(dict.fromkeys(prefix for name in names for prefix in _prefixes(name)))


def _prefixes(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:count]) for count in range(1, len(pieces) + 1)]


def _check_columns(source: RowSource, row: Row, choice: ColumnChoice) -> None:
    """A table without the chosen column at all is another table, and not full of rows without text."""
    for name in (choice.text, choice.label, choice.target):
        if source.is_table and name and name not in row and name.split(".")[0] not in row:
            raise DataError(
                f"{source.name} has no column {name!r}; its columns: {', '.join(map(repr, row)) or 'none of the wanted'}."
            )


def _nothing(name: str, report: ReadReport) -> str:
    if not report.rejected_count:
        return f"{name} holds no text: it has no rows."
    (kind, count), *_ = report.reasons.most_common(1)
    what = (
        f"all {count:,} rows: {kind}"
        if count == report.rejected_count
        else f"{report.rejected_count:,} rows, mostly: {kind}"
    )
    return f"{name} holds no text that can be used ({what}). First: {report.rejected[0]}."


def _log(name: str, choice: ColumnChoice, report: ReadReport) -> None:
    logger.info("%s: %s", name, choice.summary())
    for text in report.warnings:
        logger.warning("%s", text)
    if report.rejected_count:
        logger.warning(
            "%s: %d of %d rows were rejected; first: %s", name, report.rejected_count, report.rows, report.rejected[0]
        )


class _Labels:
    """Class labels as numbers.

    Args:
        names: name of each class where they are known; a label is one of them or its number. Otherwise the classes are those
            that occur, in the order of their numbers, else of their names.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self._found: dict[str, int] = {name: place for place, name in enumerate(self.names)}
        self._numbers: list[int] = []

    def add(self, value: Any) -> tuple[str, str] | None:
        """Take one label; returns why it cannot be one."""
        if value is None or value == "":
            return "has no label", ""
        if not isinstance(value, (str, int)):
            return "has a label that is neither a whole number nor a name", repr(value)[:40]
        if self.names:
            return self._add_known(value)
        number = self._found.setdefault(
            str(int(value)) if isinstance(value, bool) else str(value).strip(), len(self._found)
        )
        self._numbers.append(number)
        return None

    def _add_known(self, value: str | int) -> tuple[str, str] | None:
        place = self._found.get(str(value).strip(), -1)
        if place < 0 and isinstance(value, int) and 0 <= value < len(self.names):
            place = int(value)
        if place < 0:
            return "has a label that is none of the classes", repr(value)[:40]
        self._numbers.append(place)
        return None

    def finish(self, column: str, name: str) -> tuple[list[int], tuple[str, ...]]:
        """Class number of each document, and the names."""
        if self.names:
            return self._numbers, self.names
        if len(self._found) > MAX_LABELS:
            raise DataError(
                f"Column {column!r} of {name} holds {len(self._found):,} different values in {len(self._numbers):,} rows: these are no "
                f"classes (at most {MAX_LABELS:,})."
            )
        ordered = sorted(self._found, key=_label_order)
        place = {self._found[label]: number for number, label in enumerate(ordered)}
        return [place[number] for number in self._numbers], tuple(ordered)


def _label_order(label: str) -> tuple[int, int, str]:
    try:
        return 0, int(label), label
    except ValueError:
        return 1, 0, label
