"""Where a run is in its data, said so that it means the same for any number of processes. Knows Lightning's counters.

Lightning counts the batches of its own process. In a checkpoint they are counted as one process would count them; a process
that goes on from there counts its own again. Both meet at the ends of accumulation windows, where alone checkpoints are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from utils.tokenization.batch_order import EpochBatchSampler

_COUNTS = ("ready", "started", "processed", "completed")


def in_batches_of_one(checkpoint: dict[str, Any], sampler: EpochBatchSampler) -> None:
    """Count in a checkpoint as one process would."""
    _recount(checkpoint, len(sampler), sampler.whole(len(sampler)), sampler.whole)


def in_own_batches(checkpoint: dict[str, Any], sampler: EpochBatchSampler) -> None:
    """Count in a checkpoint as this process does."""
    _recount(checkpoint, sampler.whole(len(sampler)), len(sampler), sampler.own)


def _recount(checkpoint: dict[str, Any], before: int, after: int, count: Callable[[int], int]) -> None:
    """Batches of the epoch, and of all epochs; what separates the counts of a batch from each other stays."""
    if before == after:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    epochs = (total["ready"] - current["ready"]) // before
    lags = [{name: part["ready"] - part[name] for name in _COUNTS} for part in (current, total)]
    ready = count(current["ready"])
    current.update({name: ready - lags[0][name] for name in _COUNTS})
    total.update({name: epochs * after + ready - lags[1][name] for name in _COUNTS})
