"""From what a person passes as `data=` to documents, split into training and validation text.

Knows files, lists and the bundled example; leaves tokens and blocks to `engine.data`.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import DataError

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".md")
TEXT_COLUMNS = ("text", "content", "document")
"""Column names that are taken for the text of a dataset, in this order."""

WHAT_WORKS = (
    "data= takes 'python-docs' (the bundled example), the path of a .txt or .md file, a list of texts, "
    "or a datasets.Dataset with a column named " + ", ".join(repr(name) for name in TEXT_COLUMNS)
)


@dataclass(frozen=True)
class TextData:
    """Documents ready for tokenisation.

    Attributes:
        name: where the text came from, for people.
        train, validation: documents of the two parts; they share no text.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both parts: equal only for equal documents in equal order."""
        return text_fingerprint([*self.train, "\0", *self.validation])

    @property
    def train_bytes(self) -> bytes:
        """Training text as UTF-8."""
        return "\n".join(self.train).encode()

    @property
    def validation_bytes(self) -> bytes:
        """Validation text as UTF-8."""
        return "\n".join(self.validation).encode()


def python_docs() -> str:
    """The English documentation text that ships inside every Python (about half a megabyte), in one fixed order.

    The text differs a little between Python versions; figures are comparable only within one.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


BUNDLED: dict[str, Callable[[], str]] = {"python-docs": python_docs}
"""Examples that need no download."""


def split_text(text: str, validation_fraction: float = 0.1) -> tuple[str, str]:
    """Cut a text into a training and a validation part.

    Rule: the validation part is the last `validation_fraction` of the characters, begun at the start of the next line
    (so that no line lies in both), or at the character itself where no line begins in the last part.

    Returns:
        Training and validation text; joined they are the text.

    Raises:
        DataError: the fraction is not between 0 and 1, or a part would be empty.
    """
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction must lie between 0 and 1; got {validation_fraction!r}.")
    cut = len(text) - max(int(len(text) * validation_fraction), 1)
    line = text.find("\n", cut - 1) + 1 if cut > 0 else 0
    cut = line if 0 < line < len(text) else cut
    if cut <= 0:
        raise DataError(f"The text has {len(text)} characters: too few to split into training and validation text.")
    return text[:cut], text[cut:]


def split_documents(
    documents: Sequence[str], validation_fraction: float = 0.1
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split a list: one document by `split_text`, several by keeping the last share of the documents for validation.

    Documents that occur twice are kept once, so that none lies in both parts.
    """
    unique = list(dict.fromkeys(text for text in documents if text.strip()))
    if not unique:
        raise DataError(f"There is no text in the {len(documents)} documents: all of them are empty or blank.")
    if len(unique) == 1:
        train, validation = split_text(unique[0], validation_fraction)
        return (train,), (validation,)
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction must lie between 0 and 1; got {validation_fraction!r}.")
    count = min(max(round(len(unique) * validation_fraction), 1), len(unique) - 1)
    return tuple(unique[:-count]), tuple(unique[-count:])


def resolve_data(data: Any, validation_fraction: float = 0.1) -> TextData:
    """Turn what was passed as `data=` into documents.

    A string is a bundled name, else the path of an existing file, else an error with the nearest name: text itself goes
    into a list, so that a mistyped path is never trained on.

    Raises:
        DataError: nothing here can be read as text; the message says what works.
    """
    if isinstance(data, TextData):
        return data
    if isinstance(data, (str, Path)):
        name, documents = _from_name(data)
    elif isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray)):
        name, documents = f"{len(data)} texts", _checked_texts(data)
    elif hasattr(data, "column_names") and hasattr(data, "__getitem__"):
        name, documents = _from_dataset(data)
    else:
        raise DataError(f"data of type {type(data).__name__} is not text. {WHAT_WORKS}.")
    train, validation = split_documents(documents, validation_fraction)
    return TextData(name, train, validation)


def text_fingerprint(documents: Sequence[str]) -> str:
    """SHA-256 over documents with their lengths, so that other cuts of the same text differ."""
    digest = hashlib.sha256()
    for text in documents:
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _from_name(data: str | Path) -> tuple[str, list[str]]:
    if isinstance(data, str) and data in BUNDLED:
        return data, [BUNDLED[data]()]
    path = _as_path(data)
    if path is not None:
        return path.name, [_read_text(path)]
    shown = str(data) if len(str(data)) <= 60 else str(data)[:57] + "..."
    near = difflib.get_close_matches(str(data), BUNDLED, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else " To train on this very text, put it into a list: data=[text]."
    raise DataError(f"{shown!r} is neither a bundled example nor an existing file.{hint} {WHAT_WORKS}.")


def _as_path(data: str | Path) -> Path | None:
    """The path where it exists; None for text that cannot be one (too long, NUL, line breaks)."""
    try:
        path = Path(data).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # name too long, embedded NUL, no home folder
        return None


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path} is a folder. {WHAT_WORKS}.")
    if path.suffix.lower() not in TEXT_SUFFIXES:
        raise DataError(
            f"{path.name} is of kind {path.suffix or 'unknown'!r}; text files end in {' or '.join(TEXT_SUFFIXES)}. {WHAT_WORKS}."
        )
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} cannot be decoded. "
            "Save the file as UTF-8, or decode it yourself and pass data=[text]."
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path.name} holds a NUL byte at offset {raw.index(0)}: it is a binary file or UTF-16. Save it as UTF-8 text."
        )
    if not text.strip():
        raise DataError(f"{path.name} holds no text.")
    return text.replace("\r\n", "\n")


def _checked_texts(texts: Sequence[Any]) -> list[str]:
    if not texts:
        raise DataError(f"The list of texts is empty. {WHAT_WORKS}.")
    wrong = next(((i, item) for i, item in enumerate(texts) if not isinstance(item, str)), None)
    if wrong is not None:
        raise DataError(f"Item {wrong[0]} of the list is of type {type(wrong[1]).__name__}, not text. {WHAT_WORKS}.")
    return list(texts)


def _from_dataset(data: Any) -> tuple[str, list[str]]:
    columns = data.column_names
    if isinstance(columns, dict):
        raise DataError(
            f"A DatasetDict holds several splits ({', '.join(map(str, columns))}); pass one of them: data=dataset['train']."
        )
    column = next((name for name in TEXT_COLUMNS if name in (columns or [])), None)
    if column is None:
        raise DataError(
            f"The dataset has the columns {', '.join(map(repr, columns or []))} and none named "
            f"{', '.join(map(repr, TEXT_COLUMNS))}. Rename the one that holds the text: dataset.rename_column(..., 'text')."
        )
    logger.info("text is taken from column %r", column)
    return f"dataset column {column!r}", _checked_texts(list(data[column]))
