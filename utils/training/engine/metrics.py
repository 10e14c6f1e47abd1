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
        tokens: predicted tokens; size: UTF-8 bytes they stand for.
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
        size = int(lengths[predicted].sum()) if lengths is not None else _decoded_bytes(blocks, tokenizer)
        if size == 0:
            raise DataError(
                "The validation blocks stand for no text at all (only special tokens): bits per byte are not defined."
            )
        return cls(int(predicted.size), size)


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


def _decoded_bytes(blocks: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of each block's text less those of its first token."""
    total = 0
    for block in blocks:
        ids = [int(index) for index in block]
        whole, first = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in (ids, ids[:1]))
        total += len(whole.encode()) - len(first.encode())
    return total
