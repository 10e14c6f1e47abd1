"""Padded batches: documents one by one, texts with a class, texts with their answers.

What is padding is known by length and never by id, so that end-of-text keeps its loss even where it doubles as padding. The
mask is 1 for a real token, labels are -100 on padding.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from utils.adapters.model_outputs import IGNORED_LABEL
from utils.errors import DataError
from utils.tokenization.block_cache import TokenStream
from utils.tokenization.samples import Batch, Samples

logger = logging.getLogger(__name__)


class PaddedDocuments(Samples):
    """Documents for next-token training without packing: no sample sees another document.

    A document longer than `max_length` becomes several samples, each of which begins with the last token of the one before:
    every token but a document's first is predicted exactly once. A document of a single token predicts nothing and is left
    out.

    Args:
        stream: documents, each ended by end-of-text.
        max_length: tokens of the longest sample.
        padding: id that fills the shorter rows.
    """

    task = "lm"

    def __init__(self, stream: TokenStream, max_length: int, padding: int) -> None:
        if max_length < 2:
            raise DataError(f"A sample needs 2 tokens or more (one and the next); got max_length={max_length}.")
        self._stream, self._max, self.padding = stream, max_length, padding
        self._begins, self._lengths = _windows(stream.ends, max_length)
        if not len(self._begins):
            raise DataError("No document has two tokens (one and the next): there is nothing to learn. Add text.")
        self.fingerprint = hashlib.sha256(f"{stream.key}:padded:{max_length}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._begins)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample."""
        return self._lengths

    @property
    def loss_tokens(self) -> np.ndarray:
        """Tokens that each sample predicts: all but its first."""
        return self._lengths - 1

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return int(self._lengths.max())

    @property
    def largest_id(self) -> int:
        """Largest token id that occurs."""
        return int(self._stream.ids.max())

    def parts(self) -> Iterator[np.ndarray]:
        """The ids of one sample after another, (1, T)."""
        for begin, length in zip(self._begins.tolist(), self._lengths.tolist()):
            yield self._stream.ids[None, begin : begin + length]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """`input_ids`, `attention_mask` and `labels`, all (B, T) int64; the model shifts the labels."""
        rows = [self._stream.ids[self._begins[i] : self._begins[i] + self._lengths[i]] for i in indices]
        ids, mask = pad(rows, self.padding)
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED_LABEL)}


class LabelledTexts(Samples):
    """Texts with a class each.

    Args:
        stream: texts, cut at their limit.
        labels: (N,) class numbers.
        padding: id that fills the shorter rows; it also stands for a text without tokens, so that no row is empty.
    """

    task = "classification"

    def __init__(self, stream: TokenStream, labels: Sequence[int] | np.ndarray, padding: int) -> None:
        self._stream, self._labels, self.padding = stream, np.asarray(labels, dtype=np.int64), padding
        self._begins, self._lengths = _documents(stream.ends)
        _same_number(len(self._begins), len(self._labels), "labels")
        self.fingerprint = _fingerprint(stream.key, self._labels.tobytes())

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return self._lengths

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(int(self._lengths.max()), 1)

    @property
    def largest_id(self) -> int:
        """Largest token id that occurs."""
        return max(int(self._stream.ids.max(initial=0)), self.padding)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """`input_ids` and `attention_mask` (B, T), `labels` (B,), all int64."""
        ids, mask = pad(_rows(self._stream, self._begins, self._lengths, indices, self.padding), self.padding)
        labels = torch.from_numpy(self._labels[np.asarray(indices)])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class TextPairs(Samples):
    """Texts with the text that answers each: translation, summary, question and answer.

    Args:
        sources, targets: equally many texts, cut at their limits; targets end with end-of-text where they were not cut.
        padding: id that fills the shorter rows of the sources.
    """

    task = "seq2seq"

    def __init__(self, sources: TokenStream, targets: TokenStream, padding: int) -> None:
        self._sources, self._targets, self.padding = sources, targets, padding
        self._begins, self._lengths = _documents(sources.ends)
        self._target_begins, self._target_lengths = _documents(targets.ends)
        _same_number(len(self._begins), len(self._target_begins), "targets")
        self.fingerprint = _fingerprint(sources.key, targets.key.encode())

    def __len__(self) -> int:
        return len(self._begins)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of source and target together."""
        return self._lengths + self._target_lengths

    @property
    def loss_tokens(self) -> np.ndarray:
        """Tokens of each target: all of them are predicted."""
        return self._target_lengths

    @property
    def longest(self) -> int:
        """Tokens of the longest source or target."""
        return int(max(self._lengths.max(), self._target_lengths.max()))

    @property
    def largest_id(self) -> int:
        """Largest token id that occurs."""
        return max(int(part.ids.max(initial=0)) for part in (self._sources, self._targets))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """`input_ids` and `attention_mask` (B, T), `labels` (B, T_target), all int64."""
        ids, mask = pad(_rows(self._sources, self._begins, self._lengths, indices, self.padding), self.padding)
        answers = _rows(self._targets, self._target_begins, self._target_lengths, indices, IGNORED_LABEL)
        return {"input_ids": ids, "attention_mask": mask, "labels": pad(answers, IGNORED_LABEL)[0]}


def pad(rows: Sequence[np.ndarray], filling: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids to the length of the longest, filled up on the right.

    Returns:
        Ids and mask, both (B, T) int64; the mask is 1 where the row itself reaches.
    """
    width = max(map(len, rows))
    ids = np.full((len(rows), width), filling, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def class_numbers(labels: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers from 0 on, and the names of the classes.

    Whole numbers are taken as they are; other labels are numbered in alphabetical order.

    Raises:
        DataError: no labels, negative numbers, or labels that are missing or mixed.
    """
    values = list(labels)
    if not values:
        raise DataError("There are no labels.")
    whole = [isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values]
    if all(whole):
        numbers = np.array(values, dtype=np.int64)
        if numbers.min() < 0:
            raise DataError(
                f"Label {int(numbers.min())} of example {int(numbers.argmin())} is negative: classes are numbered from 0. "
                "Leave unlabelled examples out."
            )
        return numbers, tuple(map(str, range(int(numbers.max()) + 1)))
    wrong = next((i for i, value in enumerate(values) if not isinstance(value, (str, bool))), None)
    if wrong is not None:
        raise DataError(
            f"Label {wrong} is {values[wrong]!r} of type {type(values[wrong]).__name__}: labels are all whole numbers from 0 "
            "on, or all names."
        )
    names = tuple(sorted(set(map(str, values))))
    number = {name: place for place, name in enumerate(names)}
    return np.array([number[str(value)] for value in values], dtype=np.int64), names


def _windows(ends: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of each sample: windows of `max_length` that overlap by one token, within documents."""
    begins, lengths = _documents(ends)
    stride = max_length - 1
    counts = np.maximum(-(-(lengths - 1) // stride), 0)  # predicted tokens over those of a window
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)  # of the window in its document
    return begins[document] + number * stride, np.minimum(lengths[document] - number * stride, max_length)


def _documents(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and length of each document."""
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else np.zeros(0, np.int64)
    return begins, ends - begins


def _rows(
    stream: TokenStream, begins: np.ndarray, lengths: np.ndarray, indices: Sequence[int], empty: int
) -> list[np.ndarray]:
    """The ids of some texts; one without tokens is `empty` once."""
    return [
        stream.ids[begins[i] : begins[i] + lengths[i]] if lengths[i] else np.array([empty], dtype=np.int64)
        for i in indices
    ]


def _same_number(texts: int, others: int, what: str) -> None:
    if texts != others or not texts:
        raise DataError(f"There are {texts} texts and {others} {what}: each text needs one.")


def _fingerprint(key: str, other: bytes) -> str:
    return hashlib.sha256(key.encode() + b":" + other).hexdigest()
