"""Byte-level BPE from a person's own text. Leaves the choice between kinds of tokenizers to `adaptive_tokenizer`, and the
proof that a tokenizer fits a model to `validator`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import TokenizerError
from utils.progress import ProgressCallback, ignore_progress, showing
from utils.tokenization.text_sample import SAMPLE_BYTES, TextSample, take_sample
from utils.tokenization.tokenizer_files import load_saved, save_tokenizer, wrap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

__all__ = ["MINIMUM_VOCABULARY", "SPECIAL_TOKENS", "FastBPETrainer", "save_tokenizer"]

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
"""Padding, unknown, begin of text and end of text; they take the first ids, in this order."""

BYTE_SYMBOLS = 256
"""Entries that a byte-level alphabet needs so that every text can be written."""

MINIMUM_VOCABULARY = BYTE_SYMBOLS + len(SPECIAL_TOKENS)

_FORMAT = 2
"""Raise when the same texts would give another tokenizer: it is part of the cache key."""

_MINIMUM_FREQUENCY = 2
"""A pair that occurs once is no regularity; its merge would only be noise."""

_CHUNK = 256
"""Texts that are handed to the trainer at once; fewer would cost a call each."""


class FastBPETrainer:
    """Trains byte-level BPE tokenizers with the `tokenizers` library."""

    @classmethod
    def train_on_dataset(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
        *,
        sample_bytes: int = SAMPLE_BYTES,
        progress: bool | ProgressCallback = True,
    ) -> PreTrainedTokenizerFast:
        """Train a byte-level BPE tokenizer of at most `vocab_size` entries.

        Every Unicode text survives encoding and decoding unchanged, since all 256 bytes are in the vocabulary. The same
        texts, size and special tokens always give the same tokenizer. Text that spells out a special token, such as
        "</s>", stays text; `tokenizer(text, split_special_tokens=False)` reads it as the token.

        Args:
            texts: documents, as any iterable, generators included; a single string is one document. They are read once.
            vocab_size: most entries, special tokens included: the model's embedding rows. Where the texts hold fewer
                repeated pairs the tokenizer is smaller, and a log line says by how much.
            special_tokens: at least the four of `SPECIAL_TOKENS`; further ones take the next ids. None means those four.
            cache_dir: folder in which finished tokenizers are kept under a hash of texts and settings.
            sample_bytes: most bytes of text to train on. Of a larger text every k-th document is taken (of documents
                beyond 100,000 characters every k-th piece), k being the smallest power of two that fits.
            progress: True shows a display, False none; or a callable (documents done, in total, note).

        Raises:
            TokenizerError: the vocabulary cannot hold all bytes and the special tokens, special tokens are missing,
                double or parts of ordinary text, or there is no text.
        """
        specials = checked_specials(special_tokens)
        _check_size(vocab_size, specials)
        with showing(progress, "Training a tokenizer", "texts") as report:
            sample = take_sample(texts, sample_bytes, report)
            return train_on_sample(sample, vocab_size, specials, cache_dir, report)


def train_on_sample(
    sample: TextSample,
    vocab_size: int,
    specials: Sequence[str],
    cache_dir: str | Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> PreTrainedTokenizerFast:
    """As `FastBPETrainer.train_on_dataset`, for text that is already sampled and specials that are already checked."""
    _check_size(vocab_size, specials)
    folder = None if cache_dir is None else Path(cache_dir) / _cache_key(sample, vocab_size, specials)
    kept = None if folder is None else load_saved(folder)
    if kept is not None:
        logger.info("tokenizer taken from %s", folder)
        return kept
    logger.info("training byte-level BPE on %s", sample.rule)
    tokenizer = _train(sample, vocab_size, specials, progress)
    _report_size(len(tokenizer), vocab_size)
    if folder is not None:
        save_tokenizer(tokenizer, folder)
    return tokenizer


def special_config(specials: Sequence[str]) -> dict[str, object]:
    """Special tokens in the words of a tokenizer_config.json; text that spells them out stays text."""
    pad, unknown, begin, end = SPECIAL_TOKENS
    return {
        "pad_token": pad,
        "unk_token": unknown,
        "bos_token": begin,
        "eos_token": end,
        "additional_special_tokens": [token for token in specials if token not in SPECIAL_TOKENS],
        "split_special_tokens": True,
    }


def checked_specials(special_tokens: Sequence[str] | None) -> list[str]:
    """The special tokens in the order of their ids: the four of `SPECIAL_TOKENS`, then the others.

    Raises:
        TokenizerError: one of the four is missing, one is there twice or empty, or one could also be a piece of ordinary
            text, which would then turn into the special token.
    """
    specials = list(SPECIAL_TOKENS if special_tokens is None else special_tokens)
    missing = [token for token in SPECIAL_TOKENS if token not in specials]
    double = sorted({token for token in specials if specials.count(token) > 1})
    if missing or double or "" in specials:
        raise TokenizerError(
            f"special_tokens must name {', '.join(SPECIAL_TOKENS)}, each once and none empty; got {specials}"
            + (f" (missing: {', '.join(missing)})" if missing else "")
            + (f" (double: {', '.join(double)})" if double else "")
            + "."
        )
    ordinary = [token for token in specials if token not in SPECIAL_TOKENS and _could_be_text(token)]
    if ordinary:
        raise TokenizerError(
            f"The special tokens {', '.join(map(repr, ordinary))} could also be pieces of ordinary text, which would then "
            f"turn into special tokens. Write them so that words and signs mix, e.g. {'<|' + ordinary[0] + '|>'!r}."
        )
    return [*SPECIAL_TOKENS, *(token for token in specials if token not in SPECIAL_TOKENS)]


def _could_be_text(token: str) -> bool:
    """Whether byte-level BPE could merge text into this very entry: all in byte symbols, and one word before merging.

    Each symbol of the alphabet stands for a byte. Entries are written in these symbols, so that "Ġa" means " a".
    """
    from tokenizers import decoders, pre_tokenizers

    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if len(token) == 1:
        return True  # a single character is an entry of character tokenizers, and may be a byte symbol
    if not set(token) <= alphabet:
        return False
    text = decoders.ByteLevel().decode([token])
    return len(pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)) == 1


def _train(
    sample: TextSample, vocab_size: int, specials: Sequence[str], progress: ProgressCallback
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fixed = BYTE_SYMBOLS + len(specials)
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, fixed + sample.kept_bytes),  # each merge needs a byte; the trainer reserves the rest
        min_frequency=_MINIMUM_FREQUENCY,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_fed(sample.texts, progress), trainer=trainer)
    progress(len(sample.texts), len(sample.texts), f"{backend.get_vocab_size():,} entries")
    return wrap(backend, special_config(specials))


def _fed(texts: list[str], progress: ProgressCallback) -> Iterator[list[str]]:
    for start in range(0, len(texts), _CHUNK):
        progress(start, len(texts), "counting words")
        yield texts[start : start + _CHUNK]
    progress(len(texts), len(texts), "merging pairs")


def _check_size(vocab_size: int, specials: Sequence[str]) -> None:
    needed = BYTE_SYMBOLS + len(specials)
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < needed:
        raise TokenizerError(
            f"A byte-level tokenizer needs at least {needed} entries ({BYTE_SYMBOLS} bytes and {len(specials)} special "
            f"tokens); the model offers {vocab_size!r}. Use CharacterLevelTokenizer, export the model with a vocabulary of "
            f"{needed} or more, or pass your own tokenizer with tokenizer=."
        )


def _report_size(size: int, asked: int) -> None:
    if size < asked:
        logger.info(
            "the text fills %d of %d vocabulary entries: it has no more pairs that occur twice. Nothing breaks; the last "
            "%d embedding rows of the model stay unused. More text fills more.",
            size, asked, asked - size,
        )  # fmt: skip


def _cache_key(sample: TextSample, vocab_size: int, specials: Sequence[str]) -> str:
    import tokenizers

    settings = json.dumps([_FORMAT, tokenizers.__version__, vocab_size, list(specials), sample.digest])
    return f"bpe-{vocab_size}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
