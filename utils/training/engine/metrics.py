"""Measures that compare runs. Knows token ids and tokenizers, no models.

Bits per byte = negative log-likelihood of the predicted tokens in bits / UTF-8 bytes that exactly those tokens stand for.
Packed blocks predict every token but the first of each block, so the first tokens and the tail of the text count on
neither side. End-of-text tokens cost bits and stand for no byte. Runs with different vocabularies compare.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BitsPerByte:
    """Turns a mean loss into bits per byte.

    Attributes:
        tokens: predicted tokens; size: UTF-8 bytes they stand for (the scored bytes).
    """

    tokens: int
    size: int

    def __call__(self, nats_per_token: float) -> float:
        """Bits per byte of a mean loss in nats per predicted token."""
        return nats_per_token * self.tokens / math.log(2) / self.size

    @classmethod
    def of(cls, blocks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> BitsPerByte:
        """Count the tokens that blocks (N, T) predict, and their bytes.

        Raises:
            DataError: the predicted tokens stand for no byte at all.
        """
        predicted = np.asarray(blocks[:, 1:])  # (N, T - 1)
        lengths = token_byte_lengths(tokenizer)
        if lengths is not None:  # the sum of `scored_bytes`, without building the bytes
            size = int(lengths[predicted].sum())
        else:
            size = sum(len(segment.scored) for segment in scored_bytes(blocks, tokenizer))
        if size == 0:
            raise DataError(
                "The validation blocks stand for no text at all (only special tokens): bits per byte are not defined."
            )
        return cls(int(predicted.size), size)


@dataclass(frozen=True)
class Segment:
    """One block as bytes: what is known for free (its first token), and what is scored (all its other tokens)."""

    free: bytes
    scored: bytes


def scored_bytes(blocks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The bytes over which `BitsPerByte` of these blocks (N, T) is taken, so that other predictors are held to the same."""
    rows = np.asarray(blocks).tolist()
    if not _is_byte_level(tokenizer):
        return [_decoded(row, tokenizer) for row in rows]
    table = _token_bytes(tokenizer)
    return [Segment(table[row[0]], b"".join(table[index] for index in row[1:])) for row in rows]


def _token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The bytes of each id of a byte-level tokenizer; none for special tokens."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [value for value in range(256) if value not in set(plain)]  # written as the characters from 256 on
    value_of = {chr(value): value for value in plain} | {chr(256 + place): value for place, value in enumerate(rest)}
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
    table = {}
    for token, index in tokenizer.get_vocab().items():
        if index in special or (index in added and added[index].special):
            table[index] = b""
        elif index in added:
            table[index] = added[index].content.encode()
        else:
            table[index] = bytes(value_of[character] for character in token)
    return table


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """UTF-8 bytes per id, 0 for special tokens; None where the tokenizer is not byte-level and an id has no fixed bytes."""
    if not _is_byte_level(tokenizer):
        return None
    vocabulary = tokenizer.get_vocab()
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
    for token, index in vocabulary.items():
        lengths[index] = len(token)  # in the byte-level alphabet every character stands for one byte
    for index, added in tokenizer.added_tokens_decoder.items():
        lengths[index] = 0 if added.special else len(added.content.encode())
    lengths[list(tokenizer.all_special_ids)] = 0
    return lengths


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    return decoder is not None and decoder["type"] == "ByteLevel"


def _decoded(row: list[int], tokenizer: PreTrainedTokenizerBase) -> Segment:
    """A block's text, split after the text of its first token."""
    whole, first = (
        str(tokenizer.decode(part, skip_special_tokens=True)).encode("utf-8", "replace") for part in (row, row[:1])
    )
    return Segment(first, whole[len(first) :])
