"""How the batches of an epoch are dealt to several processes that train together. Knows numbers, no processes.

Order and accumulation windows stay those of one process, so that an optimizer step sees the same samples whatever the number
of processes. Each batch of a window is cut into so many pieces that all processes get equally many of a full window; a window
that has too few is filled up with pieces that weigh nothing, because processes that talk in every forward pass need equally
many of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.tokenization.batch_order import BatchIndices, EpochBatchSampler


@dataclass(frozen=True)
class Hand:
    """Which of how many processes gets a share of the data."""

    rank: int = 0
    world: int = 1


ONE_HAND = Hand()
"""All of the data, for one process."""


def cuts(accumulation: int, world: int) -> int:
    """Pieces into which each batch is cut."""
    return world // math.gcd(accumulation, world)


def micro_batches(accumulation: int, world: int) -> int:
    """Pieces of a full window that each process gets: its own accumulation."""
    return accumulation * cuts(accumulation, world) // world


@dataclass(frozen=True)
class Piece:
    """Some samples of a batch.

    Attributes:
        indices: the samples; one of the window where the piece only fills it up.
        share: its labels as a multiple of the mean over the pieces of a full window; 0 where it fills up.
    """

    indices: list[int]
    share: float


def dealt(
    window: Sequence[Sequence[int]], accumulation: int, world: int, weights: np.ndarray | None = None
) -> list[list[Piece]]:
    """The pieces of one window, for each process.

    With gradients averaged over the processes and over the micro-batches of each, the shares make the step the mean over
    all labels of the window.

    Args:
        window: its batches; at the end of an epoch there may be fewer than `accumulation`.
        accumulation: batches of a full window.
        world: number of processes.
        weights: labels of each sample that carry loss, (N,); None weighs samples alike.

    Example:
        >>> dealt([[7, 3, 5]], accumulation=1, world=2)
        [[Piece(indices=[7], share=0.666…)], [Piece(indices=[3, 5], share=1.333…)]]
    """
    number = cuts(accumulation, world)
    parts = [part for batch in window for part in _cut(batch, number)]
    labels = [len(part) if weights is None else int(weights[part].sum()) for part in parts]
    unit = accumulation * number / max(sum(labels), 1)
    pieces = [Piece(part, count * unit) if part else Piece([window[0][0]], 0.0) for part, count in zip(parts, labels)]
    pieces += [Piece([window[0][0]], 0.0)] * (-len(pieces) % world)
    return [pieces[rank::world] for rank in range(world)]


def _cut(batch: Sequence[int], number: int) -> list[list[int]]:
    size = len(batch)
    return [list(batch[i * size // number : (i + 1) * size // number]) for i in range(number)]


class DealtBatchSampler(EpochBatchSampler):
    """The batches of one of several processes, in the order of an epoch.

    `resume_at` takes batches of one process, as `EpochBatchSampler` does.

    Args:
        hand: which process.
        weighed: give each batch its share; False gives one only to those that fill up, which are not to be counted.
    """

    def __init__(self, *arguments: object, hand: Hand, weighed: bool = True, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.hand, self.weighed = hand, weighed

    def whole(self, own: int) -> int:
        """Batches of one process that stand for so many of this one's, at the end of a window."""
        if own >= len(self):
            return super().__len__()
        return own // micro_batches(self.accumulation, self.hand.world) * self.accumulation

    def own(self, whole: int) -> int:
        """The other way round."""
        if whole >= super().__len__():
            return len(self)
        return whole // self.accumulation * micro_batches(self.accumulation, self.hand.world)

    def _from(self, start: int, epoch: int) -> Iterator[list[int]]:
        """The batches of this process behind the first `start` of the order, which are whole windows."""
        batches, step = self.batches(epoch), self.accumulation
        for begin in range(start, len(batches), step):
            window = batches[begin : begin + step]
            for piece in dealt(window, step, self.hand.world, self.loss_tokens)[self.hand.rank]:
                share = piece.share if self.weighed or not piece.share else None
                yield BatchIndices(piece.indices, epoch, share)

    def __len__(self) -> int:
        full, rest = divmod(super().__len__(), self.accumulation)
        world = self.hand.world
        return full * micro_batches(self.accumulation, world) + -(-rest * cuts(self.accumulation, world) // world)
