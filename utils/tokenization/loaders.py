"""Loaders over samples that draw nothing from the global random state, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from utils.tokenization.batch_order import BatchIndices, EpochBatchSampler, Window
from utils.tokenization.pieces import ONE_HAND, DealtBatchSampler, Hand
from utils.tokenization.samples import Samples

SHARE = "loss_share"
"""Key of a batch that says what it weighs in its accumulation window, as a scalar; absent where nothing is accumulated.
In a validation only a batch has it that is not to be counted: it is 0."""


class DataLoaderFactory:
    """Builds loaders.

    Blocks of text are copied out of a memory-mapped file, in less time than a worker process needs to hand them over: no
    workers is right for them. Images that are decoded and scaled on the way are worth workers.

    Args:
        seed: of the order.
        pin_memory: put batches where a GPU reads them without the CPU; pays only with one.
        workers: processes that make batches ahead; 0 makes them when they are asked for.
        hand: which of several training processes the batches are for.
    """

    def __init__(self, seed: int = 0, pin_memory: bool = False, workers: int = 0, hand: Hand = ONE_HAND) -> None:
        self.seed, self.pin_memory, self.workers, self.hand = seed, pin_memory, workers, hand

    def train(self, samples: Samples, window: Window) -> DataLoader[Any]:
        """Every sample once an epoch, shuffled unless they come in an order of their own; a function of seed and epoch."""
        weighed = window.accumulation > 1 or self.hand.world > 1
        order = {
            "seed": self.seed,
            "accumulation": window.accumulation,
            "shuffle": not samples.in_order,
            "loss_tokens": samples.loss_tokens if weighed else None,
            "lengths": samples.lengths,
        }
        return self._loader(samples, self._sampler(len(samples), window.batch_size, **order))

    def validation(self, samples: Samples, batch_size: int, accumulation: int = 1) -> DataLoader[Any]:
        """Every sample once, in order. Several processes get pieces as large as those of a training with `accumulation`."""
        dealt = {"accumulation": accumulation, "weighed": False} if self.hand.world > 1 else {}
        return self._loader(samples, self._sampler(len(samples), batch_size, shuffle=False, **dealt))

    def _sampler(self, length: int, batch_size: int, **order: Any) -> EpochBatchSampler:
        if self.hand.world == 1:
            return EpochBatchSampler(length, batch_size, **order)
        return DealtBatchSampler(length, batch_size, hand=self.hand, **order)

    def _loader(self, samples: Samples, sampler: EpochBatchSampler) -> DataLoader[Any]:
        workers = 0 if samples.in_order else self.workers
        return DataLoader(
            _Weighed(samples),
            batch_sampler=sampler,
            collate_fn=_same,  # `__getitems__` already returns a batch
            pin_memory=self.pin_memory,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(self.seed),  # else each new iterator draws from the global one
        )


class _Weighed(Dataset[Any]):
    """Adds to each batch what it weighs."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index]

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        batch = self.samples.__getitems__(indices)
        share = indices.share if isinstance(indices, BatchIndices) else None
        return batch if share is None else {**batch, SHARE: torch.tensor(share, dtype=torch.float32)}


def _same(batch: Any) -> Any:
    return batch
