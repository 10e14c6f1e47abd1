"""Bytes that tensors hold while a block runs, operation by operation, and what they will be at another size.

A training step runs the same operations whatever its batch and length. So each operation's figure is extrapolated by itself and
the peak taken afterwards: at small sizes it lies where the gradients are complete, at large ones where the forward pass ends.
Knows no model and no optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Size = tuple[int, int]
"""Batch and length of a run."""


class _Watch(TorchDispatchMode):
    """Counts storages as operations make them, until they are freed. Views and in-place results share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.trace: list[int] = []
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                self._count(tensor.untyped_storage())
        self.trace.append(self.live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def freed(_: object) -> None:
            self.live -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, freed)
        self.live += size


def allocations(run: Callable[[], object]) -> np.ndarray:
    """Bytes held after each operation of `run`, of what it allocated itself: (operations,) float64.

    What an operation allocates and frees within itself is not seen.
    """
    with _Watch() as watch:
        run()
    return np.asarray(watch.trace, dtype=np.float64)


def peak_at(traces: Mapping[Size, np.ndarray], batch: int, length: int) -> float:
    """The highest figure of a run of that size, in bytes, from runs with two batches at one or two lengths.

    Each operation holds c + d·T + batch·(a·T + b·T²) bytes: gradients do not depend on the size, attention goes with its square.
    Where the number of operations differs (a loop over the length), the peaks of the runs are extrapolated in the same way.

    Args:
        traces: (batch, length) → bytes after each operation. Batches of 1 are no good: there operators take short cuts.
        batch: of the run that is asked for.
        length: of the run that is asked for, in tokens.
    """
    values = dict(traces)
    if len({len(trace) for trace in values.values()}) > 1:
        values = {size: np.asarray([trace.max()]) for size, trace in values.items()}
    (less, more), lengths = sorted({rows for rows, _ in values}), sorted({tokens for _, tokens in values})
    row = {tokens: (values[more, tokens] - values[less, tokens]) / (more - less) for tokens in lengths}
    shared = {tokens: values[less, tokens] - less * row[tokens] for tokens in lengths}
    short, long = lengths[0], lengths[-1]
    if short == long:
        return float((shared[short] + batch * row[short] * length / short).max())
    square = (row[long] / long - row[short] / short) / (long - short)
    linear = row[short] / short - square * short
    slope = (shared[long] - shared[short]) / (long - short)
    predicted = shared[short] + slope * (length - short) + batch * (linear * length + square * length**2)
    return float(predicted.max())
