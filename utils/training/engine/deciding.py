"""The callbacks that change a run: averaged weights, and an end before the last step. Measures nothing."""

from __future__ import annotations

import logging

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging

from utils.training.engine.early_stopping import judge
from utils.training.engine.loop import TrainingLoop, ValidationLoop
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)


class EarlyEnd(pl.Callback):
    """Ends the run where validation has not become better for long enough. `early_stopping.judge` says when.

    Args:
        training, validation: histories; both must stand before this callback.
        patience, min_delta: as for `judge`.
    """

    def __init__(self, training: TrainingLoop, validation: ValidationLoop, patience: int, min_delta: float) -> None:
        self._training, self._validation = training, validation
        self._patience, self._min_delta = patience, min_delta

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.global_step >= self._training.total_steps:
            return
        verdict = judge([item.loss for item in self._validation.history], self._patience, self._min_delta)
        if verdict.stop:
            logger.info("training ends at step %d: %s", trainer.global_step, verdict.reason)
            self._training.end_at(trainer.global_step, verdict.reason)
            trainer.should_stop = True


def deciders(settings: TrainingConfig, training: TrainingLoop, validation: ValidationLoop) -> list[pl.Callback]:
    """Those that the settings ask for; both histories must stand before them."""
    found: list[pl.Callback] = []
    if settings.ema_decay is not None:
        found.append(EMAWeightAveraging(decay=settings.ema_decay))
    if settings.early_stopping_patience is not None:
        patience, least = settings.early_stopping_patience, settings.early_stopping_min_delta
        found.append(EarlyEnd(training, validation, patience, least))
    return found
