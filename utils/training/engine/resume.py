"""When a checkpoint is saved, and how a run comes back exactly where it was.

Lightning keeps weights, optimizer, schedule and its own counters. This callback adds what it does not keep: random states
and the place in the data, which comes from Lightning's counters and never from a loader that may have run ahead. Saves
happen only after whole optimizer steps; where a validation follows such a step, after it, so that it is not lost.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO

from utils.errors import TrainingStopped
from utils.tokenization.batch_order import EpochBatchSampler
from utils.tokenization.data_module import data_position
from utils.training.engine import random_state
from utils.training.engine.checkpoint import CheckpointStore, without_paths
from utils.training.engine.loop import TrainingLoop, ValidationLoop
from utils.training.engine.position import in_batches_of_one, in_own_batches
from utils.training.engine.processes import ALONE, Processes
from utils.training.engine.sharding import local
from utils.training.engine.surroundings import PatientSignals
from utils.training.training_config import TrainingConfig

logger = logging.getLogger(__name__)

STATE_KEY = "transformer_builder"
"""Where this package's own part lies in a checkpoint."""


class VerifiedCheckpointIO(CheckpointIO):
    """Lets Lightning read and write through a `CheckpointStore`.

    Attributes:
        refused: what the disk said where it took no checkpoint. It is not raised: only one process writes, and the others
            wait for it inside Lightning.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self.refused: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        try:
            self.store.write(checkpoint, path)
        except OSError as error:
            self.refused = error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return self.store.load(path)

    def remove_checkpoint(self, path: Any) -> None:
        raise NotImplementedError("checkpoints are deleted by CheckpointStore alone")


class GenerationSaver(pl.Callback):
    """Saves generations of any Lightning training at optimizer-step boundaries, and brings random states back.

    The place in the data is the data module's to keep (`UniversalDataModule` does).

    Args:
        store: where generations go.
        config: how often to save.
        clock: monotonic seconds.
        processes: those that train together. All save at the same steps, and the first one writes.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: TrainingConfig,
        clock: Callable[[], float] = time.monotonic,
        processes: Processes = ALONE,
    ) -> None:
        self.store, self.config, self.processes = store, config, processes
        self._clock, self._saved_at = clock, clock()
        self._steps, self._saved_step, self._due = 0, -1, False
        self._random: dict[str, Any] | None = None
        self._trouble: str | None = None

    # ---- coming back ------------------------------------------------------------------------------------------------
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        without_paths(checkpoint)
        self._random = random_state.of_process(checkpoint.get(STATE_KEY, {}), self.processes)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._steps = self._saved_step = trainer.global_step
        self._saved_at = self._clock()
        self._tell_of_order(trainer)

    def _tell_of_order(self, trainer: pl.Trainer) -> None:
        """Say so where the order of the data cannot go on where it was."""
        sampler = getattr(trainer.train_dataloader, "batch_sampler", None)
        if not hasattr(sampler, "resume_at"):
            logger.warning(
                "the order of the training data is not part of checkpoints: a run that goes on in the middle of an epoch sees "
                "some of its data twice and some not at all. Take a UniversalDataModule, or resume from ends of epochs only"
            )

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
        self._due = self._due or self.processes.any(self._is_due(trainer, last))
        if self._due and not last and not self._validation_follows(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and (self._due or self._ends(trainer) or self._is_best(trainer)):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[STATE_KEY] = random_state.of_all(self.processes)
        checkpoint.pop("hyper_parameters", None)  # the run folder keeps settings; objects of other kinds would not load
        checkpoint.pop("hparams_name", None)

    def _is_due(self, trainer: pl.Trainer, last_of_epoch: bool) -> bool:
        config, step = self.config, trainer.global_step
        minutes = config.save_every_n_minutes
        return (
            self._is_last(trainer, last_of_epoch)  # worth a generation, whatever the intervals say
            or (last_of_epoch and (trainer.current_epoch + 1) % config.save_every_n_epochs == 0)
            or (config.save_every_n_steps is not None and step % config.save_every_n_steps == 0)
            or (minutes > 0 and self._clock() - self._saved_at >= 60 * minutes)
        )

    @staticmethod
    def _is_last(trainer: pl.Trainer, last_of_epoch: bool) -> bool:
        """Whether Lightning ends after this step; at its `on_train_end` the counters have left the place in the epoch."""
        epochs = trainer.max_epochs
        ended = last_of_epoch and epochs not in (None, -1) and trainer.current_epoch + 1 >= (epochs or 0)
        return trainer.should_stop or ended or 0 < trainer.max_steps <= trainer.global_step

    def _validation_follows(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether Lightning validates after the batch that has just ended (not the last of its epoch)."""
        every = trainer.val_check_batch
        if every is None:
            return False
        return bool(trainer.enable_validation and math.isfinite(every) and (batch_idx + 1) % int(every) == 0)

    def _loss_at(self, trainer: pl.Trainer) -> float | None:
        """The validation loss that belongs to this very step."""
        return None

    def _ends(self, trainer: pl.Trainer) -> bool:
        """Whether the run ends with this step; early stopping decides so at a validation."""
        return False

    def _is_best(self, trainer: pl.Trainer) -> bool:
        """Whether the validation that has just ended was the best one."""
        return False

    def _why_not(self, trainer: pl.Trainer) -> str | None:
        """Why the state of this moment must not become a generation, or None."""
        assert trainer.lightning_module is not None
        broken = self.processes.any(not _all_finite(trainer.lightning_module))
        return "weights are not finite" if broken else None

    def _save(self, trainer: pl.Trainer) -> None:
        self._due = False
        step = trainer.global_step
        if step == self._saved_step:
            return
        why_not = self._why_not(trainer)
        if why_not is not None:
            logger.warning("no checkpoint at step %d: %s; the last good one stays", step, why_not)
        elif self._written(trainer):
            self._saved_step = step
        self._saved_at = self._clock()

    def _written(self, trainer: pl.Trainer) -> bool:
        """Write and commit; a full disk costs the oldest generation, and no error of the disk ends the training."""
        while True:
            path = self.processes.lead(lambda: self.store.next_path(trainer.global_step))
            with _through(trainer, self.store) as files:
                trainer.save_checkpoint(path, weights_only=False)
            committed = self.processes.lead(functools.partial(self._committed, trainer, path, files))
            if committed is not None:
                return committed

    def _committed(self, trainer: pl.Trainer, path: Path, files: VerifiedCheckpointIO) -> bool | None:
        """Whether what was written is a generation now; None where the disk has room for another try."""
        step = trainer.global_step
        try:
            if files.refused is not None:
                raise files.refused
            self.store.commit(path, step, self._loss_at(trainer), self._ends(trainer))
        except OSError as error:
            dropped = self.store.make_room() if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
            if dropped is None:
                self._tell_failure(step, error)
                return False
            logger.warning("the disk is full: the checkpoint of step %d makes room", dropped.step)
            return None
        if self._trouble is not None:
            logger.warning("checkpoints can be written again: step %d is saved", step)
        self._trouble = None
        return True

    def _tell_failure(self, step: int, error: OSError) -> None:
        kind = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if kind != self._trouble:  # once a kind, for every step may try
            newest = self.store.newest()
            last = "there is none yet" if newest is None else f"the last good one is that of step {newest.step}"
            logger.warning("no checkpoint at step %d: %s. Training goes on; %s", step, error, last)
        self._trouble = kind


class ResumableCheckpoint(GenerationSaver):
    """The saver of this package's own trainer: keeps the place in the data and the histories. Must be the last callback.

    An interrupt or a request to end waits for the end of the optimizer step, which is then saved; a second interrupt does not.

    Args:
        store: where generations go.
        config: how often to save.
        sampler: order of the training blocks.
        training, validation: histories; the newest validation loss goes into the manifest.
        has_validation: whether validation blocks exist.
        clock: monotonic seconds.
        stop: asked after each step; True ends the training as an interrupt does, with `TrainingStopped`.
        processes: those that train together; what one of them is told by a signal or by `stop` holds for all.

    Attributes:
        facts: what else a result is made of, in plain types; kept in each generation for `recover`.
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
        stop: Callable[[], bool] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(store, config, clock, processes)
        self.sampler, self.facts = sampler, dict[str, Any]()
        self._training, self._validation, self._has_validation = training, validation, has_validation
        self._anew = False  # whether a run goes on without the random states that it had
        self._signals, self._stop = PatientSignals(), stop if stop is not None else lambda: False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._anew = self._random is None
        position = checkpoint[STATE_KEY]["position"]
        self.sampler.resume_at(position["epoch"], position["batch"])
        in_own_batches(checkpoint, self.sampler)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        epoch, batch = data_position(trainer)
        in_batches_of_one(checkpoint, self.sampler)
        checkpoint[STATE_KEY].update(
            position={"epoch": epoch, "batch": self.sampler.whole(batch)},
            facts=dict(self.facts),
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._signals.listen()
        if self._random is None and (self.processes.several or self._anew):
            random_state.seed_anew(self.config.random_seed, trainer.global_step, self.processes.rank)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._signals.leave()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._share_signal()
        self._signals.act()

    def _is_due(self, trainer: pl.Trainer, last_of_epoch: bool) -> bool:
        asked = self._signals.wanted is not None or self._stop()
        return asked or self._ends(trainer) or super()._is_due(trainer, last_of_epoch)

    def _ends(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step >= self._training.total_steps

    def _is_best(self, trainer: pl.Trainer) -> bool:
        losses = [item.loss for item in self._validation.history]
        return len(losses) > 1 and losses[-1] < min(losses[:-1])

    def _validation_follows(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if not self._has_validation:
            return False
        every = self.config.val_every_n_steps
        return trainer.should_stop or (every is not None and trainer.global_step % every == 0)

    def _loss_at(self, trainer: pl.Trainer) -> float | None:
        return self._validation.loss_at(trainer.global_step)

    def _why_not(self, trainer: pl.Trainer) -> str | None:
        self._training.read_losses()
        losses = self._training.step_losses
        if losses and not math.isfinite(losses[-1]):
            return f"its loss is {losses[-1]}"
        return super()._why_not(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        super()._save(trainer)
        self._share_signal()
        if self._signals.wanted is not None:
            self._signals.act()
        if self.processes.any(self._stop()) and not self._ends(trainer):  # a run whose last step is done ends by itself
            raise TrainingStopped(
                f"Training stopped after optimizer step {trainer.global_step:,}; that step is saved and training can go on from it."
            )

    def _share_signal(self) -> None:
        """Want in all processes what any of them was told by a signal."""
        self._signals.wanted = self.processes.highest([self._signals.wanted or 0])[0] or None


@contextlib.contextmanager
def _through(trainer: pl.Trainer, store: CheckpointStore) -> Iterator[VerifiedCheckpointIO]:
    """Let Lightning write into the store for a moment, whatever it writes with otherwise."""
    strategy = trainer.strategy
    before = strategy.checkpoint_io
    strategy.checkpoint_io = files = VerifiedCheckpointIO(store)
    try:
        yield files
    finally:
        strategy.checkpoint_io = before


def _all_finite(module: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in local(module.parameters()) if p.is_floating_point())
