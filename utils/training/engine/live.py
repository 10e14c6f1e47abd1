"""Feeds the live plot of a notebook from the loops. Draws nothing itself."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from utils.training.engine.loop import TrainingLoop, ValidationLoop
from utils.training.live_plot import LivePlot


class LivePlotCallback(pl.Callback):
    """Shows the loss while a notebook trains; elsewhere it does nothing.

    Args:
        training, validation: histories.
        plot: where to draw; None chooses.
    """

    def __init__(self, training: TrainingLoop, validation: ValidationLoop, plot: LivePlot | None = None) -> None:
        self._training, self._validation = training, validation
        self._plot = plot if plot is not None else LivePlot()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._plot.wanted:  # reading losses makes a GPU wait
            self._training.read_losses()
            self._plot.update(self._training.step_losses, self._validated())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training.read_losses()
        self._plot.close(self._training.step_losses, self._validated())

    def _validated(self) -> list[tuple[int, float]]:
        return [(item.step, item.loss) for item in self._validation.history]
