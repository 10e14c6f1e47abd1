"""What every kind of training data is to a loader: samples that are asked for by the batch. Knows no text and no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

Batch = dict[str, torch.Tensor]

DEFAULT_BLOCK_LENGTH = 128
"""Tokens per block where neither the settings nor the model name a limit."""


class Samples(Dataset[Batch]):
    """Samples that come as whole batches. A subclass says how many there are and makes a batch of some of them.

    Attributes:
        fingerprint: hash of everything that decides what the samples hold.
        task: the task that they are made for; None where that is not known.
        in_order: whether they can be asked for in rising order only, by one process: nobody shuffles them then.
    """

    fingerprint: str
    task: ClassVar[str | None] = None
    in_order: ClassVar[bool] = False

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch at once."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    @property
    def loss_tokens(self) -> np.ndarray:
        """Labels of each sample that carry loss, (N,) int64: what a mean over a batch weights it by."""
        return np.ones(len(self), dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens of all samples, without padding."""
        lengths = self.lengths
        return int((self.loss_tokens if lengths is None else lengths).sum())

    @property
    def lengths(self) -> np.ndarray | None:
        """Tokens of each sample, (N,), where it pays to put samples of similar length together; None where it does not."""
        return None

    @property
    def longest(self) -> int:
        """Tokens of the longest sample; 0 where samples have no tokens."""
        return 0

    @property
    def largest_id(self) -> int | None:
        """Largest token id that occurs; None where samples have no tokens."""
        return None
