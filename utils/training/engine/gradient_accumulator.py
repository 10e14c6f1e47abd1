"""Micro-batches counted against optimizer steps, samples and labels.

Lightning calls `on_train_batch_end` for every micro-batch; what belongs to optimizer steps asks `stepped` there. Weights no
loss: the share of each micro-batch comes with the batch (`tokenization.batch_order`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from utils._tables import html_table, text_table
from utils.adapters.model_outputs import counted
from utils.tokenization.loaders import SHARE
from utils.training.engine.processes import ALONE, Processes

_GROUP = 64
"""Counts that wait on the device before they are read together."""

_COUNTS = ("micro_batches", "optimizer_steps", "samples", "labels", "window_samples", "window_labels")


@dataclass(frozen=True)
class AccumulationStats:
    """What went into the optimizer steps of a run so far, in all its processes, what ran before an interruption included.

    Attributes:
        micro_batches: forward and backward passes; optimizer_steps: updates of the weights.
        accumulation: micro-batches of a full window (the last one of an epoch may have fewer).
        pending: micro-batches since the last optimizer step, whose gradients wait.
        samples, labels: of all micro-batches; labels are those that carry loss.
        window_samples, window_labels: of the last finished window.
    """

    micro_batches: int
    optimizer_steps: int
    accumulation: int
    pending: int
    samples: int
    labels: int
    window_samples: int
    window_labels: int

    @property
    def effective_batch(self) -> int:
        """Samples that the last optimizer step averaged over; 0 before the first one."""
        return self.window_samples

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("optimizer steps", f"{self.optimizer_steps:,}"),
            ("micro-batches", f"{self.micro_batches:,} ({self.accumulation} per step, {self.pending} pending)"),
            ("last step", f"{self.effective_batch:,} samples, {self.window_labels:,} labels"),
            ("in total", f"{self.samples:,} samples, {self.labels:,} labels"),
        ]

    def summary(self) -> str:
        """The counts in a few lines of text."""
        return text_table(("", ""), self._rows(), title="Gradient accumulation")

    def _repr_html_(self) -> str:
        return html_table(("", ""), self._rows())


class GradientAccumulator(pl.Callback):
    """Counts micro-batches, optimizer steps, samples and labels.

    `stepped` holds for every callback's `on_train_batch_end`, whatever the order of the callbacks, and needs no memory of
    the step before, so that nothing has to be restored in a resumed run.

    Example:
        >>> accumulator = GradientAccumulator()
        >>> trainer = pl.Trainer(callbacks=[accumulator], accumulate_grad_batches=4)
        >>> trainer.fit(lit, loader); accumulator.stats.effective_batch
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._accumulation, self._pending, self._stepped = 1, 0, False
        self._samples = 0  # of the open window
        self._window: list[torch.Tensor | int] = []  # labels of the open window, where they lie
        self._unread: list[torch.Tensor | int] = []  # labels of finished windows
        self._dealt: list[torch.Tensor] = []  # of several: this one's samples and labels in the open window, (2,) each
        self._finished: list[torch.Tensor] = []  # the same of all processes, of finished windows

    @property
    def stepped(self) -> bool:
        """Whether the micro-batch that has just ended completed an optimizer step.

        Under 16-mixed a step that the scaler skipped, because gradients overflowed, counts too: Lightning and the schedule
        count it, and `GradientMonitor` shows a norm that is not finite there.
        """
        return self._stepped

    @property
    def stats(self) -> AccumulationStats:
        """All counts until now. Reading them makes a GPU wait."""
        self._read()
        return AccumulationStats(**self._counts, accumulation=self._accumulation, pending=self._pending)

    # ---- what Lightning tells ----------------------------------------------------------------------------------------
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._accumulation = trainer.accumulate_grad_batches * self._processes.world
        self._pending, self._samples, self._window, self._dealt = 0, 0, [], []  # checkpoints hold no open window

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stepped = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._stepped = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        samples, labels = _size(batch, _shifts(pl_module))
        self._pending += self._processes.world
        self._counts["micro_batches"] += self._processes.world
        if self._processes.several:
            self._deal(_real(samples, labels, batch))
            return
        self._samples += samples
        self._window.append(labels)
        self._counts["samples"] += samples
        if not self._stepped:
            return
        self._counts["optimizer_steps"] += 1
        self._counts["window_samples"] = self._samples
        self._unread.append(_total(self._window))
        self._pending, self._samples, self._window = 0, 0, []
        if len(self._unread) >= _GROUP:
            self._read()

    def _deal(self, counts: torch.Tensor) -> None:
        """Add this process's part of a window; the whole is put together when the window ends."""
        self._dealt.append(counts)
        if not self._stepped:
            return
        self._counts["optimizer_steps"] += 1
        self._finished.append(self._processes.sum(torch.stack(self._dealt).sum(0)))
        self._pending, self._dealt = 0, []
        if len(self._finished) >= _GROUP:
            self._read()

    def _read(self) -> None:
        """Bring finished windows over from the device, together."""
        for samples, labels in torch.stack(self._finished).tolist() if self._finished else ():
            self._counts["samples"] += samples
            self._counts["labels"] += labels
            self._counts["window_samples"], self._counts["window_labels"] = samples, labels
        self._finished = []
        if not self._unread:
            return
        on_device = [item for item in self._unread if isinstance(item, torch.Tensor)]
        read = iter(torch.stack(on_device).tolist() if on_device else [])
        windows = [next(read) if isinstance(item, torch.Tensor) else item for item in self._unread]
        self._counts["labels"] += sum(windows)
        self._counts["window_labels"] = windows[-1]
        self._unread = []

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return dict(self._counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._counts = {name: int(state_dict[name]) for name in _COUNTS}


def _shifts(pl_module: pl.LightningModule) -> bool:
    """Whether the loss shifts labels, so that the first one of each row carries none."""
    contract = getattr(getattr(pl_module, "adapted", None), "contract", None)
    return bool(getattr(contract, "shift", False))


def _size(batch: Any, shifted: bool) -> tuple[int, torch.Tensor | int]:
    """Samples of a batch and its labels that carry loss: a tensor on the batch's device where they must be counted."""
    if not isinstance(batch, Mapping):
        first = next((item for item in batch if isinstance(item, torch.Tensor)), None) if batch is not None else None
        return (0, 0) if first is None else (len(first), len(first))
    inputs = batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))
    labels = batch.get("labels")
    if labels is None:
        labels = inputs
    return len(inputs), counted(labels, int(shifted and labels.dim() > 1))


def _real(samples: int, labels: torch.Tensor | int, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Samples and labels, (2,) int64; none of a batch that only keeps the processes in step."""
    device = batch["input_ids" if "input_ids" in batch else next(iter(batch))].device
    both = torch.stack([torch.as_tensor(count, dtype=torch.int64, device=device) for count in (samples, labels)])
    return both if SHARE not in batch else both * (batch[SHARE] > 0)


def _total(counts: list[torch.Tensor | int]) -> torch.Tensor | int:
    tensors = [item for item in counts if isinstance(item, torch.Tensor)]
    return torch.stack(tensors).sum() if tensors else sum(int(item) for item in counts)
