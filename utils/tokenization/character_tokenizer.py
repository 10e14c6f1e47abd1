"""One entry per character, for vocabularies too small for all bytes. Knows texts and rows; chooses nothing.

A character is a Unicode code point: "é" may be one or two of them, a family emoji is several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.errors import TokenizerError
from utils.tokenization.bpe_trainer import SPECIAL_TOKENS, checked_specials, special_config
from utils.tokenization.text_sample import take_sample
from utils.tokenization.tokenizer_files import wrap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

DEFAULT_CHARACTERS = "".join(map(chr, range(0x20, 0x7F))) + "\n\t"
"""What is taken where no text is given: printable ASCII, line break and tab."""

_SHOWN = 10
"""Characters that a message lists."""


@dataclass(frozen=True)
class Coverage:
    """How much of a text a tokenizer can write without its unknown token.

    Attributes:
        characters: characters of the text; known: those that have an entry.
        missing: characters without an entry and how often they occur, most frequent first.
    """

    characters: int
    known: int
    missing: tuple[tuple[str, int], ...] = ()

    @property
    def share(self) -> float:
        """Known characters over all, 0 to 1; 1 for an empty text."""
        return self.known / self.characters if self.characters else 1.0

    def __str__(self) -> str:
        if not self.missing:
            return f"every one of the text's {self.characters:,} characters has an entry"
        shown = ", ".join(repr(character) for character, _ in self.missing[:_SHOWN])
        more = f" and {len(self.missing) - _SHOWN:,} more" if len(self.missing) > _SHOWN else ""
        return (
            f"{_percent(self.share)} of the text's {self.characters:,} characters have an entry; unknown are "
            f"{shown}{more}, which read as <unk>"
        )


class CharacterLevelTokenizer:
    """Builds character tokenizers: calling it gives a `PreTrainedTokenizerFast`.

    Example:
        >>> tokenizer = CharacterLevelTokenizer(100, texts=["some text"])
        >>> tokenizer.decode(tokenizer("text")["input_ids"])
        'text'
    """

    def __new__(  # type: ignore[misc]  # saved and loaded, it is an ordinary tokenizer; no class of ours must be there
        cls,
        vocab_size: int,
        special_tokens: Sequence[str] | None = None,
        texts: str | Iterable[str] | None = None,
    ) -> PreTrainedTokenizerFast:
        """Take special tokens first, then the most frequent characters of the texts (ties by code point).

        What has no entry reads as `<unk>`; `coverage` says how much that is. Text that spells out a special token stays
        text.

        Args:
            vocab_size: most entries, special tokens included.
            special_tokens: at least the four of `SPECIAL_TOKENS`; None means those.
            texts: documents; None takes `DEFAULT_CHARACTERS`, in that order.

        Raises:
            TokenizerError: no row is left for a character, or the texts or special tokens are unusable.
        """
        specials = checked_specials(special_tokens)
        _check_size(vocab_size, specials)
        if texts is None:
            return build(DEFAULT_CHARACTERS, vocab_size, specials)
        return build(by_frequency(count_characters(take_sample(texts).texts)), vocab_size, specials)

    @staticmethod
    def coverage(tokenizer: PreTrainedTokenizerBase, texts: str | Iterable[str]) -> Coverage:
        """How much of the texts a character tokenizer can write; texts too large to count are sampled."""
        return cover(count_characters(take_sample(texts).texts), tokenizer)


def count_characters(texts: Iterable[str]) -> Counter[str]:
    """How often each character occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def by_frequency(counts: Counter[str]) -> list[str]:
    """Characters, most frequent first, ties by code point."""
    return sorted(counts, key=lambda character: (-counts[character], character))


def cover(counts: Counter[str], tokenizer: PreTrainedTokenizerBase) -> Coverage:
    """Counted characters against the entries of a character tokenizer."""
    known = alphabet(tokenizer)
    missing = tuple((character, counts[character]) for character in by_frequency(counts) if character not in known)
    total = sum(counts.values())
    return Coverage(total, total - sum(count for _, count in missing), missing)


def build(characters: Sequence[str], vocab_size: int, specials: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of these characters, as many as fit beside the special tokens.

    The model is BPE without merges: it gives one token per character like a table of words would, and is twice as fast as
    cutting the text by a pattern first.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    _check_size(vocab_size, specials)
    entries = [*specials, *characters[: vocab_size - len(specials)]]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=SPECIAL_TOKENS[1], fuse_unk=False))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return wrap(backend, special_config(specials))


def alphabet(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Entries of one character that are no special tokens."""
    specials = set(tokenizer.all_special_tokens)
    return {entry for entry in tokenizer.get_vocab() if len(entry) == 1 and entry not in specials}


def is_character_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every entry but the special tokens is a single character, and each other character reads as unknown.

    The entries of a byte-level tokenizer without merges are single symbols too, but it knows every character.
    """
    added = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    entries = {entry for entry in tokenizer.get_vocab() if entry not in added}
    if not entries or tokenizer.unk_token_id is None or any(len(entry) != 1 for entry in entries):
        return False
    stranger = next(chr(point) for point in range(0xE000, 0xF8FF) if chr(point) not in entries)  # for private use
    return tokenizer(stranger, add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def _check_size(vocab_size: int, specials: Sequence[str]) -> None:
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size <= len(specials):
        raise TokenizerError(
            f"A character tokenizer needs more entries than its {len(specials)} special tokens; the model offers "
            f"{vocab_size!r}. Export the model with a larger vocabulary, e.g. 100."
        )


def _percent(share: float) -> str:
    """A share that is not whole never reads as 100%."""
    text = f"{share:.2%}"
    return text if text != "100.00%" or share == 1 else "99.99…%"
