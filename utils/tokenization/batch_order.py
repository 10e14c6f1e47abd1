"""The order in which samples are seen, and what each batch weighs. Knows numbers, no text.

The order is a pure function of seed and epoch, and every sample is seen exactly once an epoch. The last batch and the last
accumulation window of an epoch may be smaller; each batch carries its share, so that an optimizer step is the mean over all
labels of its window whatever their number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

POOL_BATCHES = 50
"""Batches among whose samples those of similar length are put together: enough to save padding, and still a shuffle."""


class BatchIndices(list[int]):
    """The samples of one batch, with what its making depends on besides them: it travels to worker processes as it is.

    Attributes:
        epoch: the epoch it belongs to.
        share: labels of the batch as a multiple of the mean of its accumulation window; None where nothing is accumulated.
    """

    def __init__(self, indices: Sequence[int], epoch: int = 0, share: float | None = None) -> None:
        super().__init__(indices)
        self.epoch, self.share = epoch, share

    def __reduce__(self) -> tuple[type[BatchIndices], tuple[list[int], int, float | None]]:
        return BatchIndices, (list(self), self.epoch, self.share)


class Runs(Sequence[list[int]]):
    """Batches of consecutive samples, each made when it is asked for: an order of any length takes no memory.

    Args:
        length: number of samples.
        size: samples per batch; the last one may be smaller.
    """

    def __init__(self, length: int, size: int) -> None:
        self.length, self.size = length, size

    def __len__(self) -> int:
        return -(-self.length // self.size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        begin = range(len(self))[index] * self.size
        return list(range(begin, min(begin + self.size, self.length)))


class EpochBatchSampler(Sampler[list[int]]):
    """Batches of sample numbers whose order is a pure function of seed and epoch; every sample once an epoch.

    `start` skips batches that an interrupted run has already seen; `len()` stays that of the full epoch. Where `now` is set,
    it says which epoch begins, whatever was announced before.

    Args:
        length: number of samples.
        batch_size: samples per batch; the last batch of an epoch may be smaller.
        seed: seed of the order; shuffle=False keeps the order of the samples.
        accumulation: batches per optimizer step; the last step of an epoch may have fewer.
        loss_tokens: labels of each sample that carry loss, (N,); None weights samples alike.
        lengths: tokens of each sample, (N,), to put samples of similar length together; None does not.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        accumulation: int = 1,
        shuffle: bool = True,
        loss_tokens: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.accumulation, self.shuffle = accumulation, shuffle
        self.loss_tokens, self.lengths = loss_tokens, lengths
        self.epoch, self.start = 0, 0
        self.now: Callable[[], int] | None = None
        self.sampler = self  # Lightning announces epochs to `batch_sampler.sampler`

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch at its first batch; the same epoch keeps its place."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume_at(self, epoch: int, start: int) -> None:
        """Go on in `epoch` after its first `start` batches."""
        self.epoch, self.start = epoch, start

    def batches(self, epoch: int) -> Sequence[list[int]]:
        """All batches of an epoch."""
        size = self.batch_size
        if not self.shuffle:
            return Runs(self.length, size)
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator)
        if self.lengths is not None:
            return self._of_similar_length(order.numpy(), generator)
        places = order.tolist()
        return [places[i : i + size] for i in range(0, self.length, size)]

    def shares(self, batches: Sequence[Sequence[int]]) -> list[float | None]:
        """What each batch weighs in its window: 1 where all batches hold equally many labels."""
        if self.accumulation == 1:
            return [None] * len(batches)
        weights = self.loss_tokens
        counts = [len(batch) if weights is None else int(weights[list(batch)].sum()) for batch in batches]
        found: list[float | None] = []
        for i in range(0, len(counts), self.accumulation):
            window = counts[i : i + self.accumulation]
            found += [count * self.accumulation / max(sum(window), 1) for count in window]
        return found

    def whole(self, own: int) -> int:
        """Batches of the order that stand for so many of this sampler's: the same number, where nothing is dealt out."""
        return own

    def own(self, whole: int) -> int:
        """The other way round."""
        return whole

    def __iter__(self) -> Iterator[list[int]]:
        if self.now is not None:
            self.set_epoch(self.now())
        return self._from(self.start, self.epoch)

    def _from(self, start: int, epoch: int) -> Iterator[list[int]]:
        """The batches of an epoch behind its first `start`."""
        batches, step = self.batches(epoch), self.accumulation
        for begin in range(start - start % step, len(batches), step):
            window = batches[begin : begin + step]
            for place, (batch, share) in enumerate(zip(window, self.shares(window)), begin):
                if place >= start:
                    yield BatchIndices(batch, epoch, share)

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def _of_similar_length(self, order: np.ndarray, generator: torch.Generator) -> list[list[int]]:
        """Sort within pools of the shuffled order, cut into batches, and shuffle those; the smaller batch stays the last."""
        assert self.lengths is not None
        pool, size = self.batch_size * POOL_BATCHES, self.batch_size
        parts = [order[i : i + pool] for i in range(0, len(order), pool)]
        ranked = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        rest = len(ranked) % size
        batches = ranked[: len(ranked) - rest].reshape(-1, size)
        shuffled = batches[torch.randperm(len(batches), generator=generator).numpy()].tolist()
        return [*shuffled, ranked[len(ranked) - rest :].tolist()] if rest else shuffled


@dataclass(frozen=True)
class Window:
    """How many samples one optimizer step averages over: `batch_size` in each of `accumulation` micro-batches."""

    batch_size: int
    accumulation: int
    why: str = ""

    def steps(self, samples: int) -> int:
        """Optimizer steps of an epoch over so many samples."""
        return -(-samples // (self.batch_size * self.accumulation))


def fit_window(samples: int, batch_size: int, accumulation: int, what: str = "blocks") -> Window:
    """Shrink batch and accumulation where there are fewer samples than one optimizer step would take."""
    if samples >= batch_size * accumulation:
        return Window(batch_size, accumulation)
    batch = min(batch_size, samples)
    steps = min(accumulation, -(-samples // batch))
    why = f"the text has {samples} {what}, fewer than {batch_size} × {accumulation} per step: each step sees all of it"
    return Window(batch, steps, why)


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, so that neighbouring seeds, epochs and samples share no randomness."""
    text = ":".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
