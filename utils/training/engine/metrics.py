"""Measures of a run: what validation says beside the loss. Sums on the device, so that no batch makes a GPU wait.

Bits per byte have their home in `tokenization.bits`, below the training; drift has its in `training.drift_metrics`.
"""

from __future__ import annotations

import math

import torch

from utils.adapters.model_outputs import IGNORED_LABEL, ModelOutputs, cross_entropy
from utils.tokenization.bits import BitsPerByte, Segment, scored_bytes, token_byte_lengths
from utils.training.drift_metrics import DriftMetrics
from utils.training.engine.loss import Batch, LossStrategy
from utils.training.engine.processes import Processes

__all__ = [
    "BitsPerByte",
    "DriftMetrics",
    "MetricsEngine",
    "Segment",
    "perplexity",
    "scored_bytes",
    "token_byte_lengths",
]

PER_CLASS_TASKS = ("classification", "vision")
"""Tasks whose classes are few and rated one by one (macro F1)."""


def perplexity(loss: float) -> float:
    """E to the loss in nats; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 709 else math.inf


class MetricsEngine:
    """Cross-entropy, accuracy and, for classes, macro F1 over many batches, each label counting alike.

    Example:
        >>> engine = MetricsEngine(LossStrategyRegistry.get("classification"))
        >>> engine.update(adapted.on_batch(batch), batch)
        >>> engine.compute()
        {'loss': 0.61, 'accuracy': 0.7, 'macro_f1': 0.68}
    """

    def __init__(self, strategy: LossStrategy) -> None:
        self.strategy = strategy
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: torch.Tensor | None = None
        self._confusion: torch.Tensor | None = None

    @torch.no_grad()
    def update(self, outputs: ModelOutputs, batch: Batch, counts: bool = True) -> None:
        """Add a batch; of `outputs` only the logits are read. One that does not count leaves all sums as they are."""
        scores, labels = self.strategy.targets(outputs.logits, batch)
        if not counts:
            labels = torch.full_like(labels, IGNORED_LABEL)
        real = labels != IGNORED_LABEL
        guesses = scores.argmax(-1)
        loss = cross_entropy(scores, labels, reduction="sum").double()  # without what models add to their training loss
        sums = torch.stack([loss, ((guesses == labels) & real).sum().double(), real.sum().double()])
        self._sums = sums if self._sums is None else self._sums + sums
        if self.strategy.task in PER_CLASS_TASKS:
            self._count_classes(guesses[real], labels[real], scores.shape[-1])

    def gather(self, processes: Processes) -> None:
        """Add what the other processes have counted. Each must have been given a batch."""
        if processes.several:
            assert self._sums is not None  # processes get equally many batches
            self._sums = processes.sum(self._sums)
            self._confusion = None if self._confusion is None else processes.sum(self._confusion)

    def _count_classes(self, guesses: torch.Tensor, labels: torch.Tensor, classes: int) -> None:
        """Rows are true classes, columns are guessed ones."""
        counts = torch.bincount(labels * classes + guesses, minlength=classes * classes).view(classes, classes)
        self._confusion = counts if self._confusion is None else self._confusion + counts

    def compute(self) -> dict[str, float]:
        """`loss` (nats per label), `accuracy` (0 to 1), `perplexity` for tokens, `macro_f1` for classes; NaN without labels."""
        if self._sums is None:
            return {"loss": math.nan, "accuracy": math.nan}
        loss, right, count = self._sums.tolist()
        if count == 0:
            return {"loss": math.nan, "accuracy": math.nan}
        found = {"loss": loss / count, "accuracy": right / count}
        if self._confusion is None:
            return {**found, "perplexity": perplexity(loss / count)}
        return {**found, "macro_f1": macro_f1(self._confusion)}

    @property
    def confusion(self) -> torch.Tensor | None:
        """(classes, classes) counts: rows are true classes, columns are guessed ones; None for tokens."""
        return None if self._confusion is None else self._confusion.cpu()


def macro_f1(confusion: torch.Tensor) -> float:
    """Mean of the F1 of each class that occurs, from counts (true, guessed)."""
    right = confusion.diagonal().double()
    true, guessed = confusion.sum(1).double(), confusion.sum(0).double()
    occurs = true > 0
    return float((2 * right / (true + guessed).clamp(min=1))[occurs].mean())
