"""Which kind of tokenizer was chosen, and why. Chooses nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from utils._tables import html_table, text_table

Strategy = Literal["pretrained", "train_bpe", "character", "custom"]
"""Known pretrained tokenizer, byte-level BPE trained on the text, most frequent characters, or the person's own."""


@dataclass(frozen=True)
class Choice:
    """A kind of tokenizer with its reason; the tokenizers of `AdaptiveTokenizer` carry theirs as `.choice`.

    Attributes:
        strategy: kind of tokenizer.
        reason: why this one, in a sentence.
        rows: embedding rows of the model.
        source: what the tokenizer is, e.g. the name of a Hub repository or a path.
        size: entries of the tokenizer; None while nothing is built.
        alternatives: what else would work, and how to ask for it.
        notes: what happened on the way: tiers that were not to be had, unused rows, coverage, added tokens.
    """

    strategy: Strategy
    reason: str
    rows: int
    source: str = ""
    size: int | None = None
    alternatives: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def _rows(self) -> list[tuple[str, str]]:
        size = [] if self.size is None else [("entries", f"{self.size:,} of {self.rows:,} rows")]
        source = [("source", self.source)] if self.source else []
        return [
            ("reason", self.reason),
            *source,
            *size,
            *(("note", text) for text in self.notes),
            *(("alternative", text) for text in self.alternatives),
        ]

    def summary(self) -> str:
        """The choice as text."""
        return text_table(("what", "finding"), self._rows(), title=f"Tokenizer: {self.strategy}")

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return html_table(("what", "finding"), [("strategy", self.strategy), *self._rows()])
