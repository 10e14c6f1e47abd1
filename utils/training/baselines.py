"""What a model must beat: a byte trigram counted on the same training text.

Counts bytes; which of them a model is scored on is for `tokenization.bits` to say.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.errors import DataError
from utils.tokenization.bits import Tokens, scored_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BYTES = 256


class WittenBellTrigram:
    """An interpolated Witten–Bell model of order 3 over a finite alphabet.

    P(c | h) = (count(h c) + kinds(h) · P(c | shorter h)) / (count(h) + kinds(h)), where kinds(h) is the number of
    different symbols that followed h; below the empty history stands the uniform distribution. A history that was never
    seen hands all its weight to the shorter one. Source: Witten and Bell, IEEE Trans. Inf. Theory 37(4), 1991.
    """

    ORDER = 3

    def __init__(self, train: Sequence[int], alphabet: int = BYTES) -> None:
        self.alphabet = alphabet
        self._counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(self.ORDER)]
        for length, table in enumerate(self._counts):
            for i in range(length, len(train)):
                table[tuple(train[i - length : i])][train[i]] += 1
        self._totals = [{history: counter.total() for history, counter in table.items()} for table in self._counts]

    def probability(self, symbol: int, history: Sequence[int]) -> float:
        """P(symbol | the last two symbols of history)."""
        p = 1.0 / self.alphabet
        for length in range(min(self.ORDER - 1, len(history)) + 1):
            key = tuple(history[len(history) - length :])
            total = self._totals[length].get(key)
            if total is None:
                break  # a longer history cannot have been seen either
            counter = self._counts[length][key]
            p = (counter.get(symbol, 0) + len(counter) * p) / (total + len(counter))
        return p

    def bits(self, text: Sequence[int], start: int = 0) -> float:
        """Bits that the model needs for `text[start:]`; what stands before is history, and nothing stands before that."""
        reach = self.ORDER - 1
        places = range(start, len(text))
        return -sum(math.log2(self.probability(text[i], text[max(i - reach, 0) : i])) for i in places)


def byte_trigram_bits_per_byte(train: bytes, validation: bytes) -> float:
    """Bits per byte of `validation` under an interpolated Witten–Bell byte trigram counted on `train`.

    Raises:
        DataError: one of the two is empty.
    """
    if not train or not validation:
        raise DataError(
            f"The trigram baseline needs training and validation text; got {len(train)} and {len(validation)} bytes."
        )
    return WittenBellTrigram(train).bits(validation) / len(validation)


def byte_trigram_on_blocks(train: bytes, blocks: Tokens, tokenizer: PreTrainedTokenizerBase) -> float:
    """Bits per byte of the same trigram on exactly the bytes that a model is scored on in packed blocks.

    As for the model, the first token of each block is known and free, and nothing before the block is seen. The model also pays for end-of-text marks, which stand for no byte; the trigram
    does not.

    Args:
        train: training text as UTF-8.
        blocks: the validation text as `pack_documents` makes it, or (N, T) token ids.
        tokenizer: the one that made the blocks.

    Raises:
        DataError: no training text, or blocks that stand for no byte.

    Example:
        >>> blocks = pack_documents(text.validation, result.tokenizer, result["block_length"])
        >>> byte_trigram_on_blocks(text.train_bytes, blocks, result.tokenizer)
    """
    segments = scored_bytes(blocks, tokenizer)
    size = sum(len(segment.scored) for segment in segments)
    if not train or not size:
        raise DataError(
            f"The trigram baseline needs training text and scored bytes; got {len(train)} and {size} bytes."
        )
    model = WittenBellTrigram(train)
    return sum(model.bits(part.free + part.scored, start=len(part.free)) for part in segments) / size
