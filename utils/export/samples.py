"""Inputs as a model is used with: what its files are judged on beside random ids, and what int8 is calibrated with.

A text of its kind where there is one; otherwise what the model itself says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.adapters.model_outputs import IGNORED_LABEL, next_token_loss
from utils.errors import ConfigError, ExportError, TokenIdError
from utils.export.signature import DECODER_IDS, IDS, MASK, Shape, Signature
from utils.export.subject import ExportSubject, undisturbed

TEXT_CHARACTERS = 20_000
"""Validation text beyond this is left out: a few thousand tokens settle bits per byte to the third digit."""
BLOCK = 1024
"""Longest block that bits per byte are taken in, in tokens: the logits of a longer one would not fit into memory."""
SEQUENCES, TOKENS = 8, 64
"""Sequences of a batch, and tokens of each, that the model itself says."""
EXAMPLES = 32
"""Random examples, where a model neither reads nor says text."""

_SEED = 5

Feeds = dict[str, np.ndarray]
Run = Callable[[Feeds], np.ndarray]


@dataclass(frozen=True)
class Text:
    """A text: its token ids, and its size in UTF-8 bytes."""

    ids: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Samples:
    """Inputs as the model is used with.

    Attributes:
        batches: inputs by name, for `Artifact.run`.
        origin: what they are, in words.
        text: the validation text, where one was given and the model scores the next token.
    """

    batches: tuple[Feeds, ...]
    origin: str
    text: Text | None = None


def samples_of(subject: ExportSubject, validation_text: str | None = None) -> Samples:
    """Samples of a model's use.

    Args:
        subject: the model; left as it was.
        validation_text: text of the kind that it is used on; needs `subject.tokenizer`. The first `TEXT_CHARACTERS`
            characters count.

    Raises:
        ConfigError: a text without a tokenizer, for a model of images, or of fewer tokens than the model takes.
        TokenIdError: the tokenizer gives ids that the model has no row for.
    """
    if validation_text is not None:
        return _of_text(subject, validation_text)
    if subject.signature.task == "lm":
        return Samples(_said(subject), "what the model itself says")
    length = subject.signature.allowed_length(min(TOKENS, subject.signature.max_length or TOKENS))
    shape = Shape(EXAMPLES, length, length if subject.signature.has_decoder else None)
    if not subject.signature.takes_tokens:
        return Samples((subject.signature.feeds(Shape(EXAMPLES)),), "random images")
    return Samples((subject.signature.feeds(shape),), "random ids")


def _of_text(subject: ExportSubject, validation_text: str) -> Samples:
    signature = subject.signature
    if not isinstance(validation_text, str):
        raise ConfigError(
            f"validation_text is a text; got {type(validation_text).__name__}. Read a file with Path(…).read_text()."
        )
    if not signature.takes_tokens:
        raise ConfigError(f"validation_text is for models that read text; {subject.name} takes images.")
    if subject.tokenizer is None:
        raise ConfigError("validation_text needs a tokenizer: export(model, tokenizer=…, validation_text=…).")
    excerpt = (
        validation_text[:TEXT_CHARACTERS].encode("utf-8", "replace").decode()
    )  # no tokenizer takes half a character
    ids = token_ids(subject.tokenizer, excerpt)
    least = max(2, signature.allowed_length(1))
    if len(ids) < least:
        raise ConfigError(f"validation_text gives {len(ids)} tokens; at least {least} are needed.")
    _check_rows(ids, subject)
    blocks = [_block(signature, ids[start : start + size]) for start, size in _cuts(signature, len(ids))]
    text = Text(tuple(ids), len(excerpt.encode())) if signature.task == "lm" and blocks[0][IDS].size > 1 else None
    return Samples(tuple(blocks), "the validation text", text)


def _check_rows(ids: list[int], subject: ExportSubject) -> None:
    rows = subject.signature.vocab_size or 0
    wrong = next((token for token in ids if not 0 <= token < rows), None)
    if wrong is not None:
        raise TokenIdError(
            f"The tokenizer gives id {wrong} for validation_text; {subject.name} has rows for 0 to {rows - 1}. Export with "
            "the tokenizer that the model was trained with."
        )


def _cuts(signature: Signature, total: int) -> list[tuple[int, int]]:
    """Beginnings and sizes of blocks of a text, each of a length that the model takes."""
    size = _block_size(signature, 128, total)
    return [(start, size) for start in range(0, total - size + 1, size)]


def _block_size(signature: Signature, most: int, total: int) -> int:
    """The longest block, up to `most` tokens, that the model takes and a text of `total` tokens fills."""
    size = signature.allowed_length(min(most, signature.max_length or most, total))
    return size - signature.multiple_of if size > total else size  # the nearest length may be the next one


def _block(signature: Signature, ids: list[int]) -> Feeds:
    block = np.array([ids], dtype=np.int64)
    made = {IDS: block}
    if signature.takes_mask:
        made[MASK] = np.ones_like(block)
    if signature.has_decoder:
        made[DECODER_IDS] = np.concatenate([signature.first_decoder_ids(block), block[:, :-1]], axis=1)
    return {name: made[name] for name in signature.inputs}


def _said(subject: ExportSubject) -> tuple[Feeds, ...]:
    """Sequences drawn from the model's own distribution, token by token."""
    signature = subject.signature
    generator = np.random.default_rng(_SEED)
    ids = generator.integers(0, signature.vocab_size or 1, (SEQUENCES, signature.allowed_length(1)), dtype=np.int64)
    longest = min(TOKENS, signature.max_length or TOKENS)
    step = signature.multiple_of
    with undisturbed(subject.adapted):
        while ids.shape[1] + step <= longest:
            feeds = {IDS: ids, MASK: np.ones_like(ids)} if signature.takes_mask else {IDS: ids}
            logits = _last_scores(subject, feeds)
            noise = generator.gumbel(size=(step, *logits.shape))
            ids = np.concatenate([ids, (logits + noise).argmax(-1).T], axis=1)
    return ({IDS: ids, MASK: np.ones_like(ids)} if signature.takes_mask else {IDS: ids},)


def _last_scores(subject: ExportSubject, feeds: Feeds) -> np.ndarray:
    """Scores (B, V) of the next token, in float64.

    Raises:
        ExportError: the model fails.
    """
    try:
        return subject.logits(feeds)[:, -1, : subject.signature.vocab_size].astype(np.float64)
    except Exception as error:  # whatever a foreign model raises
        raise ExportError(
            f"{subject.name!r} itself fails for input_ids of shape {feeds[IDS].shape}: {type(error).__name__}: {error}"
        ) from error


def bits_per_byte(run: Run, signature: Signature, text: Text) -> float:
    """Bits that a model needs for a text, per byte of it; in blocks of the length limit, the first token for free.

    Blocks overlap by one token, so that every token but the first is predicted once. A rest that is shorter than the model
    takes is read with more of what stands before it.
    """
    nats, total = 0.0, len(text.ids)
    size, step = _block_size(signature, BLOCK, total), signature.multiple_of
    for start in range(0, total - 1, size - 1):
        end = min(start + size, total)
        begin = end - max(signature.allowed_length(1), -(-(end - start) // step) * step)
        block = np.array([text.ids[begin:end]], dtype=np.int64)
        labels = block.copy()
        labels[:, : start + 1 - begin] = IGNORED_LABEL
        feeds = {IDS: block, MASK: np.ones_like(block)} if signature.takes_mask else {IDS: block}
        nats += float(next_token_loss(torch.from_numpy(run(feeds)), torch.from_numpy(labels), reduction="sum"))
    return nats / math.log(2) / text.size


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text without added marks, from a transformers tokenizer, a `tokenizers.Tokenizer`, or anything that encodes."""
    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    except TypeError:  # a plain encoder knows no such argument
        encoded = tokenizer.encode(text)
    return [int(token) for token in getattr(encoded, "ids", encoded)]
