"""What a model must beat: a byte trigram counted on the same training text. Knows bytes, no tokens and no models."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from utils.errors import DataError

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

    def bits(self, text: Sequence[int]) -> float:
        """Bits that the model needs for `text`, beginning with an empty history."""
        reach = self.ORDER - 1
        return -sum(math.log2(self.probability(text[i], text[max(i - reach, 0) : i])) for i in range(len(text)))


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
