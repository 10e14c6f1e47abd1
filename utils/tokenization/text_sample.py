"""As much of a text as tokenizers are trained on: all of it, or every k-th piece where it is too large.

Reads any iterable once, keeps at most a budget of bytes, and gives the same sample for the same documents. Trains nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from utils.errors import TokenizerError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.documents import as_documents

SAMPLE_BYTES = 100_000_000
"""Most UTF-8 bytes that a tokenizer is trained on. More changes hardly any merge and costs memory and minutes."""

PIECE_CHARACTERS = 100_000
"""Longest piece: a single huge document is sampled like many small ones, and several threads share it."""

RUN_CHARACTERS = 1_000
"""Longest run without white space. Each merge walks through every word that holds its pair: a word of one megabyte
(base64, DNA) took over six minutes for 8,000 entries, cut it took five seconds, and one pair in a thousand is not seen."""

_LONG_RUN = re.compile(rf"\S{{{RUN_CHARACTERS + 1},}}")
_REPORT_EVERY = 256


@dataclass(frozen=True)
class TextSample:
    """Pieces of text with the rule by which they were taken.

    Attributes:
        texts: the pieces, none empty, in the order of the documents.
        documents: how many documents were read.
        read_bytes: UTF-8 bytes that were read; kept_bytes: those in `texts`.
        stride: every `stride`-th piece was kept; 1 means the whole text.
    """

    texts: list[str]
    documents: int
    read_bytes: int
    kept_bytes: int
    stride: int

    @property
    def rule(self) -> str:
        """How the sample was taken, as a sentence."""
        if self.stride == 1:
            return f"all {self.kept_bytes:,} bytes of the text"
        return (
            f"{self.kept_bytes:,} of the text's {self.read_bytes:,} bytes: one document in {self.stride}, or piece of "
            f"{PIECE_CHARACTERS:,} characters of a longer one"
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the pieces and their lengths."""
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def take_sample(documents: Any, budget: int = SAMPLE_BYTES, progress: ProgressCallback = ignore_progress) -> TextSample:
    """Read documents once and keep every k-th piece, where k is the smallest power of two that fits the budget.

    Memory is bounded by the budget however long the text is. Lists, generators and files of the same documents give the
    same sample.

    Args:
        documents: one text, any iterable of texts (generators too), a `datasets.Dataset` with a text column, or a loaded
            dataset.
        budget: most UTF-8 bytes to keep.
        progress: told how many documents were read.

    Raises:
        TokenizerError: a document is no text, holds a lone surrogate, or there is no text at all.
        DataError: a `datasets.Dataset` has no column that is its text.
    """
    texts = _texts(documents)
    total = len(texts) if isinstance(texts, Sized) else None
    pool = _Pool(budget)
    number = 0
    for number, text in enumerate(texts, start=1):
        for piece in _pieces(text, number):
            pool.offer(piece)
        if number % _REPORT_EVERY == 0:
            progress(number, total, "reading")
    progress(number, total, "read")
    if not pool.kept:
        raise TokenizerError(
            f"A tokenizer is trained on text, and there is none in {number} documents: pass at least one that is not empty."
        )
    return TextSample(pool.kept, number, pool.read_bytes, pool.kept_bytes, pool.stride)


def _texts(documents: Any) -> Iterable[str]:
    """Texts of whatever holds them; a generator stays one, since one pass is enough."""
    held = getattr(documents, "documents", documents)
    if isinstance(held, Mapping) or hasattr(held, "itertuples"):  # going through it gives the names of its columns
        raise TokenizerError(
            f"A {type(documents).__name__} is no list of texts. Pass one column, e.g. list(table['text']), or what "
            "DatasetLoader.from_anything reads of it."
        )
    if isinstance(held, str) and os.path.lexists(held):
        raise TokenizerError(
            f"{held!r} is the path of a file here, not text. DatasetLoader.from_anything(path) reads it; the path itself as text "
            "goes into a list."
        )
    if isinstance(held, str) or hasattr(held, "column_names"):
        return as_documents(held)
    if isinstance(held, Iterable) and not isinstance(held, (bytes, bytearray)):
        return held
    raise TokenizerError(
        f"Texts are wanted: one text, an iterable of texts, or a datasets.Dataset; got {type(documents).__name__}."
    )


class _Pool:
    """Every `stride`-th offered piece; the stride doubles whenever the budget is passed."""

    def __init__(self, budget: int) -> None:
        self.budget, self.stride, self.kept, self.sizes = budget, 1, list[str](), list[int]()
        self.offered = self.read_bytes = self.kept_bytes = 0

    def offer(self, piece: str) -> None:
        size = len(piece) if piece.isascii() else len(piece.encode())
        self.read_bytes += size
        if self.offered % self.stride == 0:
            self.kept.append(piece)
            self.sizes.append(size)
            self.kept_bytes += size
        self.offered += 1
        while self.kept_bytes > self.budget and len(self.kept) > 1:
            self.kept, self.sizes = self.kept[::2], self.sizes[::2]
            self.stride, self.kept_bytes = self.stride * 2, sum(self.sizes)


def _pieces(text: str, number: int) -> Iterator[str]:
    """A document as pieces of at most `PIECE_CHARACTERS`, without runs of more than `RUN_CHARACTERS`."""
    _check_text(text, number)
    start = 0
    while start < len(text):
        end = _cut(text, start)
        yield from _without_long_runs(text[start:end])
        start = end


def _without_long_runs(piece: str) -> Iterator[str]:
    start = 0
    if not _may_hold_long_run(piece):
        yield piece
        return
    for run in _LONG_RUN.finditer(piece):
        for end in range(run.start() + RUN_CHARACTERS, run.end(), RUN_CHARACTERS):
            yield piece[start:end]
            start = end
    yield piece[start:]


def _may_hold_long_run(piece: str) -> bool:
    """A quick look, since nearly all text may pass: a long run covers a whole half-length block without blank."""
    half = RUN_CHARACTERS // 2
    return any(
        piece.find(" ", start, start + half) < 0 and piece.find("\n", start, start + half) < 0
        for start in range(0, len(piece) - half + 1, half)
    )


def _cut(text: str, start: int) -> int:
    """Where the piece that begins at `start` ends: before white space where there is some, so that no word is cut."""
    end = start + PIECE_CHARACTERS
    if end >= len(text):
        return len(text)
    found = max(text.rfind("\n", start + 1, end), text.rfind(" ", start + 1, end))
    return found if found > start else end


def _check_text(text: str, number: int) -> None:
    if not isinstance(text, str):
        raise TokenizerError(
            f"A tokenizer is trained on texts; document {number} is of type {type(text).__name__}. Pass a list of strings."
        )
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"Document {number} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}: half of "
            "a character, which no file can hold. Mend it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from error
