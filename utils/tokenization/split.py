"""Documents → training and validation part, by whole documents, with no text on both sides. Knows no tokens.

Which side a document falls on depends on its content and the seed alone, not on its place: all copies of a text fall on the
same side, and the same text falls on the same side in a longer list of documents as long as the list is about as long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from utils.errors import DataError
from utils.tokenization.documents import Documents, Selection

_HASH_BYTES = 8
"""Of each document; two different documents with one hash only fall on the same side."""


VALIDATION_FRACTION = 0.1
"""Share of the data that is kept for validation where nobody says otherwise."""


@dataclass(frozen=True)
class Split:
    """Both parts, and how they came about.

    Attributes:
        train, validation: documents in their order.
        copies: documents that occur again in the same part.
        empty: documents without any character, which are left out.
        how: the rule in words.
    """

    train: Documents
    validation: Documents
    copies: int
    empty: int
    how: str


def split_documents(documents: Documents, validation_fraction: float = VALIDATION_FRACTION, seed: int = 42) -> Split:
    """Split documents; a single one is cut at the begin of a line, its last part being for validation.

    Raises:
        DataError: no text, a fraction that is not between 0 and 1, or a text too short to be cut.
    """
    _check_fraction(validation_fraction)
    side = sides(documents, validation_fraction, seed)
    if len(np.unique(side.keys[side.kept])) == 1:
        (text,) = {text for text in documents if text}
        if not text.strip():
            raise DataError(f"There is no text in the {len(documents)} documents: all of them are empty or blank.")
        train, validation = split_text(text, validation_fraction)
        return Split(
            (train,), (validation,), side.copies, side.empty, "one document, of which the last part is kept back"
        )
    how = f"{int((side.validation & side.kept).sum()):,} of {int(side.kept.sum()):,} documents, drawn by seed {seed}"
    return Split(
        _kept(documents, side.kept & ~side.validation),
        _kept(documents, side.kept & side.validation),
        side.copies,
        side.empty,
        how,
    )


@dataclass(frozen=True)
class Sides:
    """Where each document falls: arrays over the documents.

    Attributes:
        keys: hash of each; kept: whether it has any character; validation: whether it is drawn for validation.
    """

    keys: np.ndarray
    kept: np.ndarray
    validation: np.ndarray

    @property
    def empty(self) -> int:
        """Documents without a character."""
        return int((~self.kept).sum())

    @property
    def copies(self) -> int:
        """Documents whose text occurs before."""
        return int(self.kept.sum()) - len(np.unique(self.keys[self.kept]))


def sides(texts: Iterable[str], validation_fraction: float, seed: int) -> Sides:
    """Draw the validation part: different texts in an order that the seed mixes, until their copies make up its share.

    Both parts get at least one text where there are two different ones.
    """
    _check_fraction(validation_fraction)
    rows = [(_key(text), bool(text)) for text in texts]
    keys = np.array([key for key, _ in rows], dtype=np.uint64)
    kept = np.array([full for _, full in rows], dtype=bool)
    if not kept.any():
        raise DataError(f"There is no text in the {len(rows)} documents: all of them are empty or blank.")
    different, counts = np.unique(keys[kept], return_counts=True)
    order = np.argsort(_mixed(different, seed), kind="stable")
    wanted = max(round(int(kept.sum()) * validation_fraction), 1)
    before = np.cumsum(counts[order]) - counts[order]  # documents that were drawn earlier
    drawn = order[before < wanted]
    if len(drawn) == len(different):
        drawn = drawn[:-1]
    return Sides(keys, kept, np.isin(keys, different[drawn]))


def split_text(text: str, validation_fraction: float = VALIDATION_FRACTION) -> tuple[str, str]:
    """Cut a text into a training and a validation part.

    Rule: the validation part is the last `validation_fraction` of the characters, begun at the start of the next line
    (so that no line lies in both), or at the character itself where no line begins in the last part.

    Returns:
        Training and validation text; joined they are the text.

    Raises:
        DataError: the fraction is not between 0 and 1, or a part would be empty.
    """
    _check_fraction(validation_fraction)
    cut = len(text) - max(int(len(text) * validation_fraction), 1)
    line = text.find("\n", cut - 1) + 1 if cut > 0 else 0
    cut = line if 0 < line < len(text) else cut
    if cut <= 0:
        raise DataError(f"The text has {len(text)} characters: too few to split into training and validation text.")
    return text[:cut], text[cut:]


def _kept(documents: Documents, kept: np.ndarray) -> Documents:
    """Some of the documents: a tuple of those that lie in memory, else a view that reads them."""
    chosen = Selection(documents, kept)
    return tuple(chosen) if isinstance(documents, (list, tuple)) else chosen


def _check_fraction(validation_fraction: float) -> None:
    if not 0 < validation_fraction < 1:
        raise DataError(f"validation_fraction must lie between 0 and 1; got {validation_fraction!r}.")


def _key(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=_HASH_BYTES).digest(), "little")


def _mixed(keys: np.ndarray, seed: int) -> np.ndarray:
    """Another order of the hashes for each seed: the finaliser of SplitMix64 (Steele et al. 2014) over key and seed."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
