"""What happened in a run, step by step and epoch by epoch. Callbacks that write history; they decide nothing but the end.

Histories live in the checkpoint, so a resumed run tells the whole story.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import Optimizer

from utils.errors import DivergenceError
from utils.progress import TERMINAL_INTERVAL, ProgressCallback
from utils.training.engine.metrics import perplexity
from utils.training.engine.module import TrainingModule
from utils.training.engine.processes import ALONE, Processes
from utils.training.run_folder import write_csv

logger = logging.getLogger(__name__)

NON_FINITE_LIMIT = 3
"""Optimizer steps in a row without a finite loss after which training stops."""


@dataclass(frozen=True)
class EpochResult:
    """One epoch (the last may be cut short by max_steps).

    Attributes:
        epoch: number of the epoch, from 0; step: optimizer steps done at its end.
        train_loss: mean over the epoch's optimizer steps, nats per token.
        val_loss: newest validation within the epoch, nats per token; None where there was none.
        learning_rate: at the end of the epoch.
        seconds: training time of the epoch, without what ran before an interruption.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Validation:
    """One pass over the validation part: loss in nats per label after `step` optimizer steps in `epoch`, and the other
    measures (see `MetricsEngine.compute`).
    """

    step: int
    epoch: int
    loss: float
    measures: dict[str, float] = field(default_factory=dict)


class TrainingLoop(pl.Callback):
    """Keeps the loss of every optimizer step, ends the run at its last step, and stops it where losses are not finite.

    `total_steps` is the last step of the run, and `ended` why that is not the one that was planned. Several processes know
    the same losses: each is that of the samples of all of them.
    """

    def __init__(
        self, total_steps: int, clock: Callable[[], float] = time.monotonic, processes: Processes = ALONE
    ) -> None:
        self.total_steps, self._processes = total_steps, processes
        self.ended = ""
        self.step_losses: list[float] = []
        self.learning_rates: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self.seconds = 0.0
        self._clock, self._mark, self._epoch_mark = clock, clock(), 0.0
        self._window: list[torch.Tensor] = []
        self._unread: list[torch.Tensor] = []
        self._steps, self._rate = 0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark, self._steps = self._clock(), trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_mark = self.elapsed()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        self._rate = float(
            optimizer.param_groups[0]["lr"]
        )  # the rate of this step: the schedule moves on right after it

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("batch_loss", outputs["loss"])  # Lightning has divided it by the accumulation
        self._window.append(loss.detach())
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self._unread.append(self._processes.sum(torch.stack(self._window).sum()) / self._processes.world)
        self._window = []
        self.learning_rates.append(self._rate)
        if pl_module.device.type == "cpu" or len(self._unread) >= NON_FINITE_LIMIT:
            self.read_losses()
        if self._steps >= self.total_steps:
            trainer.should_stop = True  # Lightning then validates once more and ends

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.read_losses()
        self._close_epoch(trainer.current_epoch, trainer.global_step, self.elapsed())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds, self._mark = self.elapsed(), self._clock()

    def finish(self, epoch: int) -> None:
        """Close the epoch that was open in the checkpoint of a run's last step."""
        if self.step_losses and (not self.epochs or self.epochs[-1]["step"] < len(self.step_losses)):
            self._close_epoch(epoch, len(self.step_losses), self.seconds)

    def end_at(self, step: int, reason: str) -> None:
        """Let the run end with this step, before the last one that was planned."""
        self.total_steps, self.ended = step, reason

    def _close_epoch(self, epoch: int, step: int, elapsed: float) -> None:
        self.epochs.append({"epoch": epoch, "step": step, "seconds": elapsed - self._epoch_mark})

    def read_losses(self) -> None:
        """Bring losses over from the device (a wait on GPUs, hence in groups).

        Raises:
            DivergenceError: the newest losses are not finite.
        """
        if self._unread:
            self.step_losses.extend(torch.stack(self._unread).float().tolist())
            self._unread = []
        newest = self.step_losses[-NON_FINITE_LIMIT:]
        if len(newest) == NON_FINITE_LIMIT and not any(math.isfinite(loss) for loss in newest):
            raise DivergenceError(
                f"The last {NON_FINITE_LIMIT} losses are not finite ({', '.join(map(str, newest))}), at optimizer step "
                f"{len(self.step_losses)}. The newest checkpoint from before stays. Lower learning_rate (now "
                f"{self.learning_rates[-1]:.2g} at that step), lengthen warmup_ratio, or set precision='32-true'."
            )

    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self.seconds + self._clock() - self._mark

    def state_dict(self) -> dict[str, Any]:
        self.read_losses()
        return {
            "step_losses": list(self.step_losses),
            "learning_rates": list(self.learning_rates),
            "epochs": list(self.epochs),
            "seconds": self.elapsed(),
            "epoch_mark": self._epoch_mark,
            "ended": self.ended,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step_losses = list(state_dict["step_losses"])
        self.learning_rates = list(state_dict["learning_rates"])
        self.epochs = list(state_dict["epochs"])
        self.seconds = float(state_dict["seconds"])
        self._mark, self._epoch_mark = self._clock(), float(state_dict["epoch_mark"])
        if state_dict.get("ended"):
            self.end_at(len(self.step_losses), str(state_dict["ended"]))


NEVER = sys.maxsize
"""As Lightning's number of batches between validations: after none of them."""


class ValidationLoop(pl.Callback):
    """Keeps every validation loss, and says when to validate; the loss before the first step is kept apart.

    Lightning counts batches between validations, and the last accumulation window of an epoch may have fewer of them than
    the others. So this callback, which knows whole steps, tells Lightning batch by batch.

    Args:
        every: optimizer steps between validations; None leaves it to Lightning, at the end of epochs.
    """

    def __init__(self, every: int | None = None) -> None:
        self.every = every
        self.untrained: float | None = None
        self.untrained_measures: dict[str, float] = {}
        self.history: list[Validation] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.every is not None:  # where a run goes on after a validation, Lightning asks once more
            self._tell(trainer, trainer.global_step > 0 and trainer.global_step % self.every == 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.every is not None:
            place = batch_idx + 1
            steps = place % trainer.accumulate_grad_batches == 0 or place == trainer.num_training_batches
            self._tell(trainer, steps and (trainer.global_step + 1) % self.every == 0)

    @staticmethod
    def _tell(trainer: pl.Trainer, validate: bool) -> None:
        trainer.val_check_batch = 1 if validate else NEVER

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        measures = pl_module.metrics.compute()
        loss = measures.pop("loss")
        if trainer.state.fn == "fit":
            self.history.append(Validation(trainer.global_step, trainer.current_epoch, loss, measures))
        else:
            self.untrained, self.untrained_measures = loss, measures

    @property
    def newest(self) -> Validation | None:
        """The newest validation, or None."""
        return self.history[-1] if self.history else None

    def loss_at(self, step: int) -> float | None:
        """The validation loss after exactly `step` optimizer steps, where it was taken and is finite."""
        newest = self.newest
        return newest.loss if newest is not None and newest.step == step and math.isfinite(newest.loss) else None

    def state_dict(self) -> dict[str, Any]:
        return {
            "untrained": self.untrained,
            "untrained_measures": dict(self.untrained_measures),
            "history": [[item.step, item.epoch, item.loss, dict(item.measures)] for item in self.history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.untrained = state_dict["untrained"]
        self.untrained_measures = dict(state_dict.get("untrained_measures", {}))
        self.history = [
            Validation(int(step), int(epoch), float(loss), *map(dict, rest))
            for step, epoch, loss, *rest in state_dict["history"]
        ]


@dataclass(frozen=True)
class LossesPerByte:
    """What turns losses in nats per token into bits per byte, for both parts; None where no tokenizer is known."""

    train: Callable[[float], float] | None = None
    validation: Callable[[float], float] | None = None


class ProgressReporter(pl.Callback):
    """Tells a progress callable where the run is: step, loss, bits per byte, tokens per second, and what `beside` adds."""

    def __init__(
        self,
        progress: ProgressCallback,
        training: TrainingLoop,
        validation: ValidationLoop,
        bits: LossesPerByte,
        tokens_per_step: int,
        beside: Sequence[Callable[[], str]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._beside = beside
        self._progress, self._training, self._validation = progress, training, validation
        self._bits, self._tokens_per_step, self._clock = bits, tokens_per_step, clock
        self._last, self._began, self._first = -math.inf, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._first = self._clock(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._clock()
        if now - self._last >= TERMINAL_INTERVAL:  # reading a loss makes a GPU wait
            self._last = now
            self._report(trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer.global_step)

    def _report(self, step: int) -> None:
        self._training.read_losses()
        losses, newest = self._training.step_losses, self._validation.newest
        parts = [f"loss {_with_bits(losses[-1], self._bits.train)}"] if losses else []
        if newest is not None:
            parts.append(f"validation loss {_with_bits(newest.loss, self._bits.validation)}")
        seconds = self._clock() - self._began
        if step > self._first and seconds > 0:
            parts.append(f"{(step - self._first) * self._tokens_per_step / seconds:,.0f} tokens/s")
        parts += [text for text in (say() for say in self._beside) if text]
        self._progress(step, self._training.total_steps, " · ".join(parts))


def _with_bits(loss: float, bits: Callable[[float], float] | None) -> str:
    return f"{loss:.3f}" if bits is None else f"{loss:.3f} ({bits(loss):.3f} bits/byte)"


STEP_COLUMNS = (
    "step",
    "train/loss",
    "learning_rate",
    "val/loss",
    "val/bits_per_byte",
    "train/bits_per_byte",
    "gradient_norm",
    "val/accuracy",
)
"""Columns of metrics.csv: one row per optimizer step, losses in nats per label, empty cells between validations. Bits per
byte of training take the bytes per token of the whole training text."""


class MetricsFile(pl.Callback):
    """Writes metrics.csv from the histories, whole and atomically, whenever there is something new to see."""

    def __init__(
        self,
        path: Path,
        training: TrainingLoop,
        validation: ValidationLoop,
        bits: LossesPerByte,
        gradient_norms: Callable[[], Sequence[float]] = tuple,
    ) -> None:
        self._path, self._training, self._validation, self._bits = path, training, validation, bits
        self._gradient_norms = gradient_norms

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.write()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write()

    def write(self) -> None:
        """Write the file."""
        self._training.read_losses()
        validated = {item.step: item for item in self._validation.history}
        norms = self._gradient_norms()
        pairs = zip(self._training.step_losses, self._training.learning_rates)
        rows = []
        for step, (loss, rate) in enumerate(pairs, start=1):
            found = validated.get(step)
            val, accuracy = (None, None) if found is None else (found.loss, found.measures.get("accuracy"))
            per_byte = (_per_byte(val, self._bits.validation), _per_byte(loss, self._bits.train))
            norm = norms[step - 1] if step <= len(norms) else None
            rows.append((step, loss, rate, val, *per_byte, norm, accuracy))
        try:
            write_csv(self._path, STEP_COLUMNS, rows)
        except OSError as error:  # a full disk ends no training: the histories are in memory and in checkpoints
            logger.warning("%s cannot be written: %s", self._path, error)


def epoch_results(training: TrainingLoop, validations: Sequence[Validation]) -> list[EpochResult]:
    """The epochs of a run, put together from what both loops kept."""
    results, begin = [], 0
    for entry in training.epochs:
        end = int(entry["step"])
        losses = training.step_losses[begin:end]
        within = [item.loss for item in validations if begin < item.step <= end]
        results.append(
            EpochResult(
                epoch=int(entry["epoch"]),
                step=end,
                train_loss=sum(losses) / len(losses) if losses else math.nan,
                val_loss=within[-1] if within else None,
                learning_rate=training.learning_rates[end - 1],
                seconds=float(entry["seconds"]),
            )
        )
        begin = end
    return results


def best_epoch(epochs: Sequence[EpochResult]) -> int:
    """Number of the epoch with the lowest validation loss, or training loss where nothing was validated."""
    rated = [item for item in epochs if item.val_loss is not None]
    if rated:
        return min(rated, key=lambda item: item.val_loss if item.val_loss is not None else math.inf).epoch
    return min(epochs, key=lambda item: item.train_loss).epoch


def metric_row(item: EpochResult, bits: LossesPerByte) -> tuple[Any, ...]:
    """One row of `TrainingResult.metrics_summary`: see `METRIC_COLUMNS`."""
    loss = item.val_loss
    per_byte = _per_byte(loss, bits.validation)
    train = _per_byte(item.train_loss, bits.train)
    surprise = None if loss is None else perplexity(loss)
    return (item.epoch, item.step, item.train_loss, loss, surprise, per_byte, item.learning_rate, item.seconds, train)


def _per_byte(loss: float | None, bits: Callable[[float], float] | None) -> float | None:
    return None if loss is None or bits is None else bits(loss)
