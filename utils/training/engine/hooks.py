"""A person's own code at the turns of a run, without knowing Lightning. Decides nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.engine.loop import EpochResult, TrainingLoop, Validation, ValidationLoop
    from utils.training.result import TrainingResult

logger = logging.getLogger(__name__)


class TrainingHooks:
    """Called at the turns of a run; each does nothing until it is overridden. An exception ends the run as any other does.

    Example:
        >>> class Shout(TrainingHooks):
        ...     def on_epoch_end(self, result):
        ...         print(result.epoch, result.val_loss)
        >>> Trainer(model, None, config, hooks=Shout()).train(train, val)
    """

    def on_model_ready(self, model: AdaptedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Before anything is measured: the model that learns (a causal copy where attention saw later tokens), its tokenizer."""

    def on_training_start(self, run_name: str, total_steps: int, first_step: int) -> None:
        """Before the first step; `first_step` is above 0 where a run continues."""

    def on_step_end(self, step: int, loss: float | None) -> None:
        """After an optimizer step. `loss` is that of the newest step whose loss has left the device, None before there is one."""

    def on_validation_end(self, validation: Validation) -> None:
        """After a validation."""

    def on_epoch_end(self, result: EpochResult) -> None:
        """After an epoch."""

    def on_training_end(self, result: TrainingResult) -> None:
        """At the end, with everything that was measured."""


class DefaultHooks(TrainingHooks):
    """Writes a line per epoch to the log."""

    def on_epoch_end(self, result: EpochResult) -> None:
        """Loss of training and validation."""
        validation = "" if result.val_loss is None else f", validation {result.val_loss:.3f}"
        logger.info("epoch %d ended at step %d: loss %.3f%s", result.epoch, result.step, result.train_loss, validation)


class HooksCallback(pl.Callback):
    """Hands Lightning's turns on to `TrainingHooks`."""

    def __init__(self, hooks: TrainingHooks, run_name: str, training: TrainingLoop, validation: ValidationLoop) -> None:
        self._hooks, self._run_name, self._training, self._validation = hooks, run_name, training, validation
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = trainer.global_step
        self._hooks.on_training_start(self._run_name, self._training.total_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        losses = self._training.step_losses
        self._hooks.on_step_end(self._steps, losses[-1] if losses else None)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        newest = self._validation.newest
        if trainer.state.fn == "fit" and newest is not None:
            self._hooks.on_validation_end(newest)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        from utils.training.engine.loop import epoch_results

        self._hooks.on_epoch_end(epoch_results(self._training, self._validation.history)[-1])
