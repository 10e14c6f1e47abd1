"""When a checkpoint is saved, and how a run comes back exactly where it was.

Lightning keeps weights, optimizer, schedule and its own counters. This callback adds what it does not keep: random states
and the place in the data, which comes from Lightning's counters and never from a loader that may have run ahead. Saves
happen only after whole optimizer steps; where a validation follows such a step, after it, so that it is not lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from utils.tokenization.batch_order import EpochBatchSampler
from utils.tokenization.data_module import data_position
from utils.training.engine import random_state
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.engine.loop import TrainingLoop, ValidationLoop
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

STATE_KEY = "transformer_builder"
"""Where this package's own part lies in a checkpoint."""


class VerifiedCheckpointIO(CheckpointIO):
    """Lets Lightning read and write through a `CheckpointStore`."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.store.write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self.store.load(path)

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError("checkpoints are deleted by CheckpointStore alone")


class ResumableCheckpoint(pl.Callback):
    """Saves at optimizer-step boundaries and restores what Lightning leaves out. Must be the last callback.

    Args:
        store: where generations go.
        config: how often to save.
        sampler: order of the training blocks.
        training, validation: histories; the newest validation loss goes into the manifest.
        has_validation: whether validation blocks exist.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: TrainingConfig,
        sampler: EpochBatchSampler,
        training: TrainingLoop,
        validation: ValidationLoop,
        has_validation: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.config, self.sampler = store, config, sampler
        self._training, self._validation, self._has_validation = training, validation, has_validation
        self._clock, self._saved_at = clock, clock()
        self._steps, self._saved_step, self._due = 0, -1, False
        self._random: dict[str, Any] | None = None

    # ---- coming back ------------------------------------------------------------------------------------------------
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        own = checkpoint[STATE_KEY]
        self.sampler.resume_at(own["position"]["epoch"], own["position"]["batch"])
        self._random = own["random"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = self._saved_step = trainer.global_step
        self._saved_at = self._clock()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._random is not None:  # iterators exist by now: nothing draws between this and the forward pass
            random_state.restore(self._random)
            self._random = None

    # ---- saving -----------------------------------------------------------------------------------------------------
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._steps:  # inside an accumulation window: gradients are not part of a checkpoint
            return
        self._steps = trainer.global_step
        last = batch_idx + 1 >= trainer.num_training_batches
        self._due = self._due or self._is_due(trainer, last)
        if self._due and not last and not self._validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = trainer.global_step >= self._training.total_steps  # early stopping decides at a validation
        if trainer.state.fn == "fit" and (self._due or ends):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, batch = data_position(trainer)
        position = {"epoch": epoch, "batch": batch}
        checkpoint[STATE_KEY] = {"random": random_state.capture(), "position": position}
        checkpoint.pop("hyper_parameters", None)  # the run folder keeps settings; objects of other kinds would not load
        checkpoint.pop("hparams_name", None)

    def _is_due(self, trainer: pl.Trainer, last_of_epoch: bool) -> bool:
        config, step = self.config, trainer.global_step
        minutes = config.save_every_n_minutes
        return (
            step >= self._training.total_steps
            or (last_of_epoch and (trainer.current_epoch + 1) % config.save_every_n_epochs == 0)
            or (config.save_every_n_steps is not None and step % config.save_every_n_steps == 0)
            or (minutes > 0 and self._clock() - self._saved_at >= 60 * minutes)
        )

    def _validation_follows(self, trainer: pl.Trainer) -> bool:
        """Whether Lightning validates after the batch that has just ended (not the last of its epoch)."""
        if not self._has_validation:
            return False
        every = self.config.val_every_n_steps
        return trainer.should_stop or (every is not None and trainer.global_step % every == 0)

    def _save(self, trainer: pl.Trainer) -> None:
        self._due = False
        if trainer.global_step == self._saved_step:
            return
        self._training.read_losses()
        assert trainer.lightning_module is not None
        if not _all_finite(trainer.lightning_module):
            logger.warning(
                "no checkpoint at step %d: weights are not finite; the last good one stays", trainer.global_step
            )
            return
        path = self.store.next_path(trainer.global_step)
        trainer.save_checkpoint(path, weights_only=False)
        ends = trainer.global_step >= self._training.total_steps
        self.store.commit(path, trainer.global_step, self._validation.loss_at(trainer.global_step), ends)
        self._saved_step, self._saved_at = trainer.global_step, self._clock()


def _all_finite(module: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in module.parameters() if p.is_floating_point())
