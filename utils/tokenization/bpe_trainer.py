"""Byte-level BPE from a person's own text. Leaves the choice between kinds of tokenizers to a later room, and the proof
that a tokenizer fits a model to `validator`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
"""Padding, unknown, begin of text and end of text; they take the first ids, in this order."""

BYTE_SYMBOLS = 256
"""Entries that a byte-level alphabet needs so that every text can be written."""

MINIMUM_VOCABULARY = BYTE_SYMBOLS + len(SPECIAL_TOKENS)

_FORMAT = 1
"""Raise when the same texts would give another tokenizer: it is part of the cache key."""

_MINIMUM_FREQUENCY = 2
"""A pair that occurs once is no regularity; its merge would only be noise."""


class FastBPETrainer:
    """Trains byte-level BPE tokenizers with the `tokenizers` library."""

    @classmethod
    def train_on_dataset(
        cls,
        texts: str | Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
    ) -> PreTrainedTokenizerFast:
        """Train a byte-level BPE tokenizer of at most `vocab_size` entries.

        Every Unicode text survives encoding and decoding unchanged, since all 256 bytes are in the vocabulary. The same
        texts, size and special tokens always give the same tokenizer.

        Args:
            texts: documents; a single string is one document.
            vocab_size: most entries, special tokens included: the model's embedding rows. Where the texts hold fewer
                repeated pairs the tokenizer is smaller, and a log line says by how much.
            special_tokens: at least the four of `SPECIAL_TOKENS`; further ones take the next ids. None means those four.
            cache_dir: folder in which finished tokenizers are kept under a hash of texts and settings.

        Raises:
            TokenizerError: the vocabulary cannot hold all bytes and the special tokens, special tokens are missing or
                double, or there is no text.
        """
        documents = [texts] if isinstance(texts, str) else list(texts)
        specials = _checked_specials(special_tokens)
        _check_size(vocab_size, specials)
        _check_documents(documents)
        folder = None if cache_dir is None else Path(cache_dir) / _cache_key(documents, vocab_size, specials)
        if folder is not None and (folder / "tokenizer.json").is_file():
            logger.info("tokenizer taken from %s", folder)
            return _load(folder)
        tokenizer = _train(documents, vocab_size, specials)
        _report_size(len(tokenizer), vocab_size)
        if folder is not None:
            save_tokenizer(tokenizer, folder)
        return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write a tokenizer's files so that `folder` appears complete or not at all; a finished folder is left as it is."""
    target = Path(folder)
    if (target / "tokenizer.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        tokenizer.save_pretrained(str(temporary))
        os.replace(temporary, target)
    except OSError:
        if not (target / "tokenizer.json").is_file():  # another process may have finished the same folder first
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _train(documents: list[str], vocab_size: int, specials: list[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=_MINIMUM_FREQUENCY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer=trainer, length=len(documents))
    return _wrap(backend, specials)


def _wrap(backend: object, specials: list[str]) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    pad, unknown, begin, end = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        additional_special_tokens=[token for token in specials if token not in SPECIAL_TOKENS],
        clean_up_tokenization_spaces=False,  # the default of older releases drops spaces before punctuation
    )


def _load(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


def _checked_specials(special_tokens: Sequence[str] | None) -> list[str]:
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
    return [*SPECIAL_TOKENS, *(token for token in specials if token not in SPECIAL_TOKENS)]


def _check_size(vocab_size: int, specials: list[str]) -> None:
    needed = BYTE_SYMBOLS + len(specials)
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < needed:
        raise TokenizerError(
            f"A byte-level tokenizer needs at least {needed} entries ({BYTE_SYMBOLS} bytes and {len(specials)} special "
            f"tokens); the model offers {vocab_size!r}. Export the model with a vocabulary of {needed} or more, or pass "
            "your own tokenizer with tokenizer=."
        )


def _check_documents(documents: list[str]) -> None:
    wrong = next((item for item in documents if not isinstance(item, str)), None)
    if wrong is not None:
        raise TokenizerError(
            f"A tokenizer is trained on texts; one of the documents is of type {type(wrong).__name__}."
        )
    if not any(documents):
        raise TokenizerError(
            "A tokenizer is trained on text, and there is none: pass at least one document that is not empty."
        )


def _report_size(size: int, asked: int) -> None:
    if size < asked:
        logger.warning(
            "the text fills %d of %d vocabulary entries: it has no more pairs that occur twice. Nothing breaks; the last "
            "%d embedding rows of the model stay unused. More text fills more.",
            size, asked, asked - size,
        )  # fmt: skip


def _cache_key(documents: list[str], vocab_size: int, specials: list[str]) -> str:
    import tokenizers

    digest = hashlib.sha256(json.dumps([_FORMAT, tokenizers.__version__, vocab_size, specials]).encode())
    for text in documents:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return f"bpe-{vocab_size}-{digest.hexdigest()[:16]}"
