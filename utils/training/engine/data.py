"""Packed blocks, the order in which they are seen, and loaders over them.

Text is tokenised once, documents are joined by end-of-text, and the stream is cut into full blocks, so nothing is padded.
Samples of one block can attend to each other across an end-of-text mark. Knows no Lightning and no model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from utils._files import whole_file
from utils.errors import DataError
from utils.training.dataset_utilities import text_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CACHE_FORMAT = 1
"""Raise when the same text would be cut into other blocks: it is part of the cache key."""


class PackedBlocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of token ids, (N, T), in memory or memory-mapped.

    Args:
        blocks: (N, T) whole numbers.
        fingerprint: hash of text, tokenizer and block length; None hashes the ids themselves.
    """

    def __init__(self, blocks: np.ndarray, fingerprint: str | None = None) -> None:
        if blocks.ndim != 2 or blocks.shape[0] < 1 or blocks.shape[1] < 2 or blocks.dtype.kind not in "iu":
            raise DataError(
                f"Blocks are whole numbers of shape (N, T) with T of 2 or more; got {blocks.dtype} of shape {blocks.shape}."
            )
        self.blocks = blocks
        self.fingerprint = fingerprint or hashlib.sha256(np.ascontiguousarray(blocks).tobytes()).hexdigest()

    def __len__(self) -> int:
        return int(self.blocks.shape[0])

    @property
    def block_length(self) -> int:
        """Tokens per block, T."""
        return int(self.blocks.shape[1])

    @property
    def largest_id(self) -> int:
        """Largest token id that occurs."""
        return int(self.blocks.max())

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch at once: `input_ids` and `labels`, both (B, T) int64; the model shifts the labels."""
        ids = torch.from_numpy(self.blocks[np.asarray(indices)].astype(np.int64))  # (B, T)
        return {"input_ids": ids, "labels": ids.clone()}


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of block numbers whose order is a pure function of seed and epoch.

    Only whole accumulation windows are given out, so that every optimizer step averages over equally many blocks; the
    few blocks that an epoch leaves out differ from epoch to epoch. `start` skips batches that an interrupted run has
    already seen; `len()` stays that of the full epoch.

    Args:
        length: number of blocks.
        batch_size: blocks per batch; accumulation: batches per optimizer step.
        seed: seed of the order; shuffle=False keeps the order of the blocks and gives out every block.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, accumulation: int = 1, shuffle: bool = True
    ) -> None:
        self.length, self.batch_size, self.seed, self.accumulation, self.shuffle = (
            length,
            batch_size,
            seed,
            accumulation,
            shuffle,
        )
        self.epoch, self.start = 0, 0
        self.sampler = self  # Lightning announces epochs to `batch_sampler.sampler`

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch at its first batch; the same epoch keeps its place."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume_at(self, epoch: int, start: int) -> None:
        """Go on in `epoch` after its first `start` batches."""
        self.epoch, self.start = epoch, start

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch."""
        if not self.shuffle:
            order = list(range(self.length))
            return [order[i : i + self.batch_size] for i in range(0, self.length, self.batch_size)]
        generator = torch.Generator().manual_seed(_mixed_seed(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches(self.epoch)[self.start :])

    def __len__(self) -> int:
        if not self.shuffle:
            return -(-self.length // self.batch_size)
        return self.length // (self.batch_size * self.accumulation) * self.accumulation


@dataclass(frozen=True)
class Window:
    """How many blocks one optimizer step averages over: `batch_size` blocks in each of `accumulation` micro-batches."""

    batch_size: int
    accumulation: int
    why: str = ""


def fit_window(blocks: int, batch_size: int, accumulation: int) -> Window:
    """Shrink batch and accumulation where the text has fewer blocks than one optimizer step would take."""
    if blocks >= batch_size * accumulation:
        return Window(batch_size, accumulation)
    batch = min(batch_size, blocks)
    steps = max(blocks // batch, 1)
    return Window(
        batch,
        steps,
        f"the text has {blocks} blocks, fewer than {batch_size} × {accumulation} per step: using {batch} × {steps}",
    )


class DataLoaderFactory:
    """Builds loaders that draw nothing from the global random state."""

    def __init__(self, seed: int = 0, pin_memory: bool = False) -> None:
        self.seed, self.pin_memory = seed, pin_memory

    def train(self, blocks: PackedBlocks, window: Window) -> DataLoader[Any]:
        """Shuffled whole windows; the order is a function of seed and epoch."""
        return self._loader(blocks, EpochBatchSampler(len(blocks), window.batch_size, self.seed, window.accumulation))

    def validation(self, blocks: PackedBlocks, batch_size: int) -> DataLoader[Any]:
        """Every block once, in order."""
        return self._loader(blocks, EpochBatchSampler(len(blocks), batch_size, shuffle=False))

    def _loader(self, blocks: PackedBlocks, sampler: EpochBatchSampler) -> DataLoader[Any]:
        return DataLoader(
            blocks,
            batch_sampler=sampler,
            collate_fn=_same,  # `__getitems__` already returns a batch
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(self.seed),  # else each new iterator draws from the global one
        )


def pack_documents(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    cache_dir: str | Path | None = None,
    what: str = "training",
) -> PackedBlocks:
    """Tokenise documents, end each with end-of-text, and cut the stream into full blocks; the incomplete tail is left out.

    Marks that are written out in a text, such as "</s>", are text and are not turned into special tokens.

    Args:
        documents: texts.
        tokenizer: what turns them into ids; its end-of-text token ends each document.
        block_length: tokens per block, T.
        cache_dir: folder for memory-mapped blocks, kept under a hash of texts, tokenizer and block length.
        what: name of the part in error messages.

    Raises:
        DataError: the text does not fill one block, or the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            "The tokenizer has no end-of-text token (eos_token), which packed text needs between documents."
        )
    key = blocks_fingerprint(documents, tokenizer, block_length)
    path = None if cache_dir is None else Path(cache_dir) / f"blocks-{key[:32]}.npy"
    cached = _read_cache(path, block_length)
    if cached is not None:
        return PackedBlocks(cached, key)
    stream = _token_stream(documents, tokenizer)
    count = len(stream) // block_length
    if count == 0:
        raise DataError(
            f"The {what} text gives {len(stream)} tokens ({sum(map(len, documents))} characters), too few for one block of "
            f"{block_length}. Add text, or lower max_length to {max(len(stream), 2)} or less."
        )
    blocks = stream[: count * block_length].reshape(count, block_length)
    if path is None:
        return PackedBlocks(blocks, key)
    _write_cache(path, blocks)
    return PackedBlocks(np.load(path, mmap_mode="r", allow_pickle=False), key)


def blocks_fingerprint(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, block_length: int) -> str:
    """SHA-256 over texts, tokenizer and block length."""
    parts = [
        CACHE_FORMAT,
        text_fingerprint(documents),
        tokenizer_fingerprint(tokenizer),
        block_length,
        tokenizer.eos_token_id,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over all that decides how a tokenizer encodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)  # set and unset by calls; packing uses neither
        state.pop("padding", None)
        text = json.dumps(state, sort_keys=True)
    else:
        text = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _token_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    encoded = tokenizer(
        list(documents), add_special_tokens=False, return_attention_mask=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    end = np.array([tokenizer.eos_token_id], dtype=dtype)
    parts = [part for ids in encoded for part in (np.asarray(ids, dtype=dtype), end)]
    return np.concatenate(parts)


def _read_cache(path: Path | None, block_length: int) -> np.ndarray | None:
    if path is None or not path.is_file():
        return None
    try:
        blocks = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        logger.warning("cached blocks %s cannot be read (%s); tokenising again", path.name, error)
        return None
    return blocks if blocks.ndim == 2 and blocks.shape[1] == block_length else None


def _write_cache(path: Path, blocks: np.ndarray) -> None:
    with whole_file(path) as file:
        np.save(file, blocks, allow_pickle=False)


def _mixed_seed(seed: int, epoch: int) -> int:
    """One 63-bit seed from both numbers, so that neighbouring seeds and epochs share no order."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:8], "little") >> 1


def _same(batch: Any) -> Any:
    return batch
