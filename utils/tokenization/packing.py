"""Text → full blocks of token ids: no padding but in the last block, no token lost and none twice.

Text is tokenised once, each document is ended by end-of-text, and the stream is cut into blocks. Samples of one block can
attend to each other across an end-of-text mark. The order in which blocks are seen is for `batch_order`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils.adapters.model_outputs import IGNORED_LABEL
from utils.errors import DataError
from utils.progress import ProgressCallback, ignore_progress
from utils.tokenization.block_cache import TokenStream, in_memory, read_stream, write_stream
from utils.tokenization.documents import Documents, as_documents, slices, text_fingerprint
from utils.tokenization.encoding import Encoder, Recipe, tokenizer_fingerprint
from utils.tokenization.samples import Samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CACHE_FORMAT = 2
"""Raise when the same text would give another stream: it is part of the cache key. 2: the incomplete last block stays."""

ENDED = Recipe(end=True)
"""What packing makes of a document: its tokens and end-of-text."""

RELEASE_BYTES = 1 << 27
"""Bytes of a memory-mapped file that may be in memory before its pages are let go, so that an epoch does not fill it."""

FAULT_AROUND = 1 << 20
"""Bytes that reading a single place may map (measured with Linux 6.18 on ext4; older ones map 64 kB): in shuffled order a
block of 1 kB costs a thousand times that."""

ROWS_AT_ONCE = 4096
"""Blocks that are looked at together where all of them are counted."""


class PackedBlocks(Samples):
    """Blocks of token ids, in memory or memory-mapped; all are full but the last.

    A batch holds `input_ids` and `labels`, both (B, T) int64 and unshifted: the model shifts. Where the incomplete last block
    is among full ones, its rest carries label -100, and an `attention_mask` (B, T) says so; alone it needs no padding.

    Args:
        blocks: (N, T) whole numbers, all of them full.
        fingerprint: hash of text, tokenizer and block length; None hashes the ids themselves.
        tail: (t,) ids of the incomplete last block, 0 < t < T.
        padding: id that fills the rest of the tail's row; it carries no loss and is never attended to.
        stream: the token file behind the blocks.
    """

    task = "lm"

    def __init__(
        self,
        blocks: np.ndarray,
        fingerprint: str | None = None,
        tail: np.ndarray | None = None,
        padding: int = 0,
        stream: TokenStream | None = None,
    ) -> None:
        wrong_kind = blocks.ndim != 2 or blocks.dtype.kind not in "iu"
        if wrong_kind or (blocks.shape[0] < 1 and (tail is None or len(tail) < 2)) or blocks.shape[1] < 2:
            raise DataError(
                f"Blocks are whole numbers of shape (N, T) with T of 2 or more; got {blocks.dtype} of shape {blocks.shape}."
            )
        self._full, self.padding, self._stream, self._read = blocks, padding, stream, 0
        self._tail = tail if tail is not None and len(tail) else None
        self.fingerprint = fingerprint or self._hashed()

    @classmethod
    def of(cls, stream: TokenStream, block_length: int, padding: int = 0) -> PackedBlocks:
        """The ids of a stream, cut into blocks."""
        full = len(stream) // block_length
        cut = full * block_length
        fingerprint = hashlib.sha256(f"{stream.key}:{block_length}".encode()).hexdigest()
        return cls(stream.ids[:cut].reshape(full, block_length), fingerprint, stream.ids[cut:], padding, stream)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._stream is not None:  # a worker process maps the file instead of being sent its bytes
            return PackedBlocks.of, (self._stream, self.block_length, self.padding)
        return PackedBlocks, (self._full, self.fingerprint, self._tail, self.padding)

    def __len__(self) -> int:
        return len(self._full) + (self._tail is not None)

    @property
    def blocks(self) -> np.ndarray:
        """All blocks, (N, T), the last one filled up with `padding`. Copies everything where there is an incomplete one."""
        if self._tail is None:
            return self._full
        last = np.full((1, self.block_length), self.padding, dtype=self._full.dtype)
        last[0, : len(self._tail)] = self._tail
        return np.concatenate([self._full, last])

    @property
    def block_length(self) -> int:
        """Tokens per block, T."""
        return int(self._full.shape[1])

    @property
    def longest(self) -> int:
        """Tokens of the longest block: T, or less where there is only an incomplete one."""
        return self.block_length if len(self._full) else len(self._tail)  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        """Tokens of all blocks, without padding."""
        return int(self._full.size) + (0 if self._tail is None else len(self._tail))

    @property
    def largest_id(self) -> int:
        """Largest token id that occurs."""
        return max(int(part.max()) for part in self.parts())

    @property
    def loss_tokens(self) -> np.ndarray:
        """Tokens that each block predicts, (N,) int64: all but its first."""
        counts = np.full(len(self), self.block_length - 1, dtype=np.int64)
        if self._tail is not None:
            counts[-1] = len(self._tail) - 1
        return counts

    def parts(self) -> Iterator[np.ndarray]:
        """All ids without padding as (n, T) arrays of some blocks each, so that a large text can be gone through."""
        for begin in range(0, len(self._full), ROWS_AT_ONCE):
            part = self._full[begin : begin + ROWS_AT_ONCE]
            yield part
            self._has_read(1, part.nbytes)
        if self._tail is not None:
            yield self._tail[None]

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch at once."""
        places = np.asarray(indices, dtype=np.int64)
        places = np.where(places < 0, places + len(self), places)
        short = self._tail is not None and bool((places == len(self._full)).any())
        if not short:
            ids = torch.from_numpy(self._full[places].astype(np.int64))  # (B, T)
            self._has_read(len(places), self._full.itemsize * self.block_length)
            return {"input_ids": ids, "labels": ids.clone()}
        return self._with_tail(places)

    def _with_tail(self, places: np.ndarray) -> dict[str, torch.Tensor]:
        assert self._tail is not None
        is_tail = places == len(self._full)
        width = len(self._tail) if is_tail.all() else self.block_length
        ids = np.full((len(places), width), self.padding, dtype=np.int64)
        mask = np.ones_like(ids)
        ids[~is_tail] = self._full[places[~is_tail], :width]
        ids[is_tail, : len(self._tail)] = self._tail
        mask[is_tail, len(self._tail) :] = 0
        batch = {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(np.where(mask == 1, ids, IGNORED_LABEL)),
        }
        return batch if mask.all() else {**batch, "attention_mask": torch.from_numpy(mask)}

    def _has_read(self, places: int, size: int) -> None:
        """Take down that `size` bytes were read at each of some places."""
        self._read += places * (size + FAULT_AROUND)
        if self._stream is not None and self._read >= RELEASE_BYTES:
            self._read = 0
            self._stream.release()

    def _hashed(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self._full).tobytes())
        if self._tail is not None:
            digest.update(b":" + np.ascontiguousarray(self._tail).tobytes())
        return digest.hexdigest()


def pack_documents(
    documents: Any,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    cache_dir: str | Path | None = None,
    what: str = "training",
    progress: ProgressCallback = ignore_progress,
) -> PackedBlocks:
    """Tokenise documents, end each with end-of-text, and cut the stream into blocks; the last one may be incomplete.

    Marks that are written out in a text, such as "</s>", are text and are not turned into special tokens.

    Args:
        documents: texts, as `as_documents` takes them.
        tokenizer: what turns them into ids; its end-of-text token ends each document.
        block_length: tokens per block, T.
        cache_dir: folder for memory-mapped tokens, kept under a hash of texts and tokenizer.
        what: name of the part in messages.
        progress: called with (documents done, documents, note) while tokenising.

    Raises:
        DataError: there are fewer than two tokens, the tokenizer has no end-of-text token, or the disk is full.
    """
    if block_length < 2:
        raise DataError(f"A block needs 2 tokens or more (one and the next); got block_length={block_length}.")
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token (eos_token), which packed text needs between documents."
        )
    stream = token_stream(as_documents(documents), tokenizer, cache_dir, progress)
    if len(stream) < 2:
        raise DataError(
            f"The {what} text gives {len(stream)} of the two tokens that a block needs: one and the next. Add text."
        )
    if len(stream) < block_length:
        logger.warning(
            "the %s text gives %d tokens, less than one block of %d: it is one short block. Add text, or lower max_length",
            what, len(stream), block_length,
        )  # fmt: skip
    return PackedBlocks.of(stream, block_length, padding_id(tokenizer))


def token_stream(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: str | Path | None = None,
    progress: ProgressCallback = ignore_progress,
    recipe: Recipe = ENDED,
) -> TokenStream:
    """The ids of all documents, by default each ended by end-of-text: from the cache where they lie there, else made and kept.

    Raises:
        DataError: half a surrogate pair in the text, or the disk is full.
    """
    key = stream_fingerprint(documents, tokenizer, recipe)
    path = None if cache_dir is None else Path(cache_dir) / f"tokens-{key[:32]}.bin"
    found = None if path is None else read_stream(path, key)
    if found is not None:
        return found
    encoder = Encoder(tokenizer, recipe)
    chunks = _chunks(documents, encoder, progress)
    if path is None:
        return in_memory(chunks, encoder.dtype, key)
    return write_stream(path, chunks, encoder.dtype, key)


def stream_fingerprint(documents: Documents, tokenizer: PreTrainedTokenizerBase, recipe: Recipe = ENDED) -> str:
    """SHA-256 over texts, tokenizer and recipe."""
    parts = [
        CACHE_FORMAT,
        text_fingerprint(documents),
        tokenizer_fingerprint(tokenizer),
        tokenizer.eos_token_id,
        dataclasses.astuple(recipe),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def blocks_fingerprint(documents: Documents, tokenizer: PreTrainedTokenizerBase, block_length: int) -> str:
    """SHA-256 over texts, tokenizer and block length: that of the blocks which `pack_documents` makes."""
    return hashlib.sha256(f"{stream_fingerprint(documents, tokenizer)}:{block_length}".encode()).hexdigest()


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id that the model has a row for: padding where the tokenizer has it, else end-of-text."""
    index = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if index is None else int(index)


def _chunks(
    documents: Documents, encoder: Encoder, progress: ProgressCallback
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """(ids, length of each document) of one slice of documents after another."""
    done, total = 0, len(documents)
    for texts in slices(documents):
        encoded = encoder(texts)
        yield np.concatenate(encoded), [len(ids) for ids in encoded]
        done += len(texts)
        progress(done, total, "tokenising")
