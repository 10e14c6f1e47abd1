"""What reading data gives: documents with everything that was decided and refused on the way. Reads nothing itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from utils._extras import require
from utils._pages import render
from utils._tables import text_table
from utils.errors import ConfigError

if TYPE_CHECKING:
    import datasets

SHOWN_REJECTS = 20
"""Rejected rows that are listed one by one; the others are counted by reason."""
PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 60
"""Characters of a cell that a preview shows."""

_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Rejected:
    """One row that was not taken.

    Attributes:
        where: name of the file, or of the data set.
        number: of the row, counted from 1, blank lines and the header left out.
        reason: why, for people.
    """

    where: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.where}, row {self.number:,}: {self.reason}"


@dataclass
class ReadReport:
    """What happened while data was read.

    Attributes:
        source: where the data came from.
        rows: rows that were seen, the rejected ones included.
        rejected: the first `SHOWN_REJECTS` rejected rows.
        reasons: every rejected row, counted by the kind of its reason.
        notes: decisions that the person should know of, such as another encoding.
        warnings: those notes that may mean wrong text.
        text_bytes: UTF-8 bytes of the documents.
    """

    source: str
    rows: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    text_bytes: int = 0

    @property
    def rejected_count(self) -> int:
        """Number of rejected rows."""
        return sum(self.reasons.values())

    def reject(self, where: str, number: int, kind: str, detail: str = "") -> None:
        """Take down one rejected row; `kind` is what rows are counted by, `detail` what tells this one."""
        self.reasons[kind] += 1
        if len(self.rejected) < SHOWN_REJECTS:
            self.rejected.append(Rejected(where, number, f"{kind} ({detail})" if detail else kind))

    def note(self, text: str, *, warning: bool = False) -> None:
        """Take down a decision, once."""
        target = self.warnings if warning else self.notes
        if text not in target:
            target.append(text)

    def summary(self) -> str:
        """Counts, notes, and the rejected rows."""
        lines = [f"{self.rows:,} rows read from {self.source}, {self.rejected_count:,} rejected"]
        lines += [f"  warning: {text}" for text in self.warnings] + [f"  note: {text}" for text in self.notes]
        lines += [f"  rejected {count:,} × {kind}" for kind, count in self.reasons.most_common()]
        lines += [f"    {row}" for row in self.rejected]
        more = self.rejected_count - len(self.rejected)
        return "\n".join([*lines, f"    … and {more:,} more"] if more > 0 else lines)


@dataclass(frozen=True)
class Preview:
    """The first rows as a table; long cells are cut.

    Attributes:
        columns: names of all columns.
        rows: shown values, as text.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Preview:
        """From rows as they were read."""
        columns = tuple(dict.fromkeys(name for row in rows for name in row))
        shown = tuple(tuple(_shown(row.get(name)) for name in columns) for row in rows[:PREVIEW_ROWS])
        return cls(columns, shown)

    def summary(self) -> str:
        """The table as text."""
        return text_table(self.columns, self.rows)


@dataclass(frozen=True)
class ColumnChoice:
    """Which columns are used, and why.

    Attributes:
        text: column of the text, of the source for pairs; a dot leads into a nested column.
        reason: why this one.
        alternatives: other columns that hold text.
        label: column of the class labels; empty where there is none.
        target: column of the target texts; empty where there is none.
        label_candidates: columns that look like class labels.
    """

    text: str
    reason: str
    alternatives: tuple[str, ...] = ()
    label: str = ""
    target: str = ""
    label_candidates: tuple[str, ...] = ()

    def summary(self) -> str:
        """One or two sentences."""
        parts = [f"text: {self.text!r} ({self.reason})"]
        parts += [f"target: {self.target!r}"] if self.target else []
        parts += [f"label: {self.label!r}"] if self.label else []
        parts += [f"other text columns: {', '.join(map(repr, self.alternatives))}"] if self.alternatives else []
        if self.label_candidates and not self.label:
            parts.append(f"could be labels: {', '.join(map(repr, self.label_candidates))} (label_column=)")
        return "; ".join(parts)


Task = Literal["language_modeling", "classification", "seq2seq"]


@dataclass(frozen=True, eq=False)
class LoadedDataset(Sequence[str]):
    """Documents, and how they were come by. It is a sequence of its documents itself.

    Attributes:
        name: where the text came from, for people.
        documents: the texts, in memory or read from disk in slices; may be walked any number of times.
        choice: which columns were used and why.
        report: rows, rejected rows, notes.
        preview: the first rows as they came.
        fingerprint: SHA-256 over the documents, as `text_fingerprint` gives it.
        labels: class numbers, one for each document; None without labels.
        label_names: name of each class number.
        targets: target texts, one for each document; None without targets.
        validation: the part that the source itself sets aside for validation; None where it has none.
    """

    name: str
    documents: Sequence[str]
    choice: ColumnChoice
    report: ReadReport
    preview: Preview
    fingerprint: str
    labels: Sequence[int] | None = None
    label_names: tuple[str, ...] = ()
    targets: Sequence[str] | None = None
    validation: LoadedDataset | None = None

    @property
    def task(self) -> Task:
        """What the columns are made for."""
        if self.labels is not None:
            return "classification"
        return "language_modeling" if self.targets is None else "seq2seq"

    def __len__(self) -> int:
        return len(self.documents)

    def __iter__(self) -> Iterator[str]:
        return iter(self.documents)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.documents[index]

    def to_dataset(self) -> datasets.Dataset:
        """As a `datasets.Dataset` with the columns text and, where they are there, label and target.

        Raises:
            MissingPackageError: `datasets` is not installed.
        """
        library = require("datasets", extra="training", feature="A datasets.Dataset")
        columns: dict[str, Sequence[Any]] = {
            "text": self.documents,
            "label": self.labels or (),
            "target": self.targets or (),
        }
        names = [name for name, values in columns.items() if name == "text" or len(values)]

        def rows() -> Iterator[dict[str, Any]]:
            for values in zip(*(columns[name] for name in names), strict=True):
                yield dict(zip(names, values, strict=True))

        if isinstance(self.documents, tuple):
            return library.Dataset.from_dict({name: list(columns[name]) for name in names})
        return library.Dataset.from_generator(rows)

    def summary(self) -> str:
        """Size, choice of columns, notes and rejected rows, preview."""
        size = f"{self.name}: {len(self):,} documents, {self.report.text_bytes:,} bytes of text"
        lines = [size, self.choice.summary(), self.report.summary()]
        if self.label_names:
            lines.append(f"classes: {', '.join(self.label_names[:20])}{' …' if len(self.label_names) > 20 else ''}")
        if self.validation is not None:
            lines.append(f"set aside for validation: {len(self.validation):,} documents")
        return "\n".join([*lines, "", self.preview.summary()])

    def __repr__(self) -> str:
        return f"<LoadedDataset {self.name!r}: {len(self):,} documents>"

    def _repr_html_(self) -> str:
        return render(_TEMPLATES / "loaded_dataset.html", data=self)


@dataclass(frozen=True)
class ReadOptions:
    """How data is read; each has a value that is right for most data."""

    column: str | None = None
    """Column of the text; None takes the obvious one and says so, or asks where there are several."""
    label_column: str | None = None
    """Column of class labels (whole numbers or names); "auto" takes the obvious one."""
    target_column: str | None = None
    """Column of target texts, for sequence to sequence."""
    config_name: str | None = None
    """Configuration of a Hub data set; None takes its default or its only one."""
    split: str | None = None
    """Part of a data set that has several; None takes "train", and keeps a validation part as such."""
    revision: str | None = None
    """Commit, branch or tag of a Hub data set."""
    split_on: Literal["blank lines", "lines"] | None = None
    """Where a text file is cut into documents; None: a file is one document (see `data_readers`)."""
    encoding: str | None = None
    """Encoding of text; None: byte-order mark, else UTF-8, else Windows-1252 with a warning."""
    delimiter: str | None = None
    """Character between the fields of a csv file; None: the comma, or what the header line has in its place."""
    has_header: bool = True
    """Whether the first row of a csv file names the columns; False calls them "column 1", "column 2", …"""
    field: str | None = None
    """Key of a JSON object under which its rows lie; None takes the only list."""
    pattern: str = "*"
    """Which files of a folder are read, such as "*.txt"; matched with the name and with the path inside the folder."""
    max_documents: int | None = None
    """Stop after so many documents; None reads all."""

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            ConfigError: with all complaints.
        """
        faults = []
        if self.split_on not in (None, "blank lines", "lines"):
            faults.append(f"split_on={self.split_on!r} is unknown; it is None, 'blank lines' or 'lines'")
        if self.max_documents is not None and (not isinstance(self.max_documents, int) or self.max_documents < 1):
            faults.append(f"max_documents={self.max_documents!r} must be a whole number of 1 or more")
        if self.delimiter is not None and len(self.delimiter) != 1:
            faults.append(f"delimiter={self.delimiter!r} must be one character")
        if faults:
            raise ConfigError("; ".join(faults) + ".")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options."""
        return tuple(item.name for item in fields(cls))


def _shown(value: object) -> str:
    text = "" if value is None else value if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else " " for character in text[: 4 * PREVIEW_CHARACTERS])
    return text if len(text) <= PREVIEW_CHARACTERS else text[: PREVIEW_CHARACTERS - 1] + "…"
