"""Bits per byte, the measure that compares runs with different vocabularies. Knows token ids and tokenizers, no models.

Bits per byte = negative log-likelihood of the predicted tokens in bits / UTF-8 bytes that exactly those tokens stand for.
Packed blocks predict every token but the first of each block, so the first tokens count on neither side. End-of-text and
unknown tokens cost bits and stand for no byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import DataError
from utils.tokenization.batches import PaddedDocuments
from utils.tokenization.packing import PackedBlocks
from utils.tokenization.streaming import StreamedBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = np.ndarray | PackedBlocks | PaddedDocuments | StreamedBlocks
"""Ids of which all are predicted but the first of each row: arrays (N, T), packed blocks, single documents, or a stream, whose
first group stands for all."""


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
    def of(cls, blocks: Tokens, tokenizer: PreTrainedTokenizerBase) -> BitsPerByte:
        """Count the tokens that blocks (N, T) predict, and their bytes.

        Where an id has no fixed bytes (a tokenizer that joins words by rules), the bytes come from decoding; of more than
        `DECODED_BLOCKS` blocks as many are decoded, evenly spaced, and their bytes per token stand for all.

        Raises:
            DataError: the predicted tokens stand for no byte at all.
        """
        lengths = token_byte_lengths(tokenizer)
        tokens = sum(int(part[:, 1:].size) for part in _parts(blocks))
        if lengths is not None:  # the sum of `scored_bytes`, without building the bytes
            size = sum(int(lengths[part[:, 1:]].sum()) for part in _parts(blocks))
        else:
            size = _decoded_size(blocks, tokenizer, tokens)
        if size == 0:
            raise DataError("The blocks stand for no text at all (only special tokens): bits per byte are not defined.")
        return cls(tokens, size)


DECODED_BLOCKS = 2048
"""Blocks that are decoded to count bytes: about ten seconds for blocks of 512 tokens."""


def _parts(blocks: Tokens) -> Iterable[np.ndarray]:
    """The blocks without padding, as arrays (n, T)."""
    return [blocks] if isinstance(blocks, np.ndarray) else blocks.parts()


def _decoded_size(blocks: Tokens, tokenizer: PreTrainedTokenizerBase, tokens: int) -> int:
    count = sum(len(part) for part in _parts(blocks))
    step = -(-count // DECODED_BLOCKS)
    size = seen = place = 0
    for part in _parts(blocks):
        for row in part[-place % step :: step].tolist():
            size += len(_decoded(row, tokenizer).scored)
            seen += len(row) - 1
        place += len(part)
    return size if seen == tokens else round(size * tokens / max(seen, 1))


@dataclass(frozen=True)
class Segment:
    """One block as bytes: what is known for free (its first token), and what is scored (all its other tokens)."""

    free: bytes
    scored: bytes


def scored_bytes(blocks: Tokens, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """The bytes over which `BitsPerByte` of these blocks (N, T) is taken, so that other predictors are held to the same."""
    rows = [row for part in _parts(blocks) for row in part.tolist()]
    table = _token_bytes(tokenizer)
    if table is None:
        return [_decoded(row, tokenizer) for row in rows]
    return [Segment(table[row[0]], b"".join(table[index] for index in row[1:])) for row in rows]


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    """UTF-8 bytes per id, 0 for special tokens; None where an id has no fixed bytes (see `_token_bytes`)."""
    table = _token_bytes(tokenizer)
    if table is None:
        return None
    lengths = np.zeros(max(table) + 1, dtype=np.int64)
    for index, value in table.items():
        lengths[index] = len(value)
    return lengths


def _token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes] | None:
    """The bytes of each id where entries are only put together: byte-level and character tokenizers; None for others.

    Special tokens have none.
    """
    kind = _decoder_of(tokenizer)
    if kind not in ("ByteLevel", "Fuse"):
        return None
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
    value_of = _byte_alphabet()
    table = {}
    for token, index in tokenizer.get_vocab().items():
        if index in special or (index in added and added[index].special):
            table[index] = b""
        elif kind == "Fuse" or index in added:
            table[index] = token.encode()
        else:
            table[index] = bytes(value_of[character] for character in token)
    return table


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level entries are written in, with the byte that each stands for."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [value for value in range(256) if value not in set(plain)]  # written as the characters from 256 on
    return {chr(value): value for value in plain} | {chr(256 + place): value for place, value in enumerate(rest)}


def _decoder_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend is not None else None
    return None if decoder is None else str(decoder["type"])


def _decoded(row: list[int], tokenizer: PreTrainedTokenizerBase) -> Segment:
    """A block's text, split after the text of its first token."""
    whole, first = (
        str(tokenizer.decode(part, skip_special_tokens=True)).encode("utf-8", "replace") for part in (row, row[:1])
    )
    return Segment(first, whole[len(first) :])
