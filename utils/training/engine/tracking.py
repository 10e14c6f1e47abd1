"""Hands what the loops kept to W&B and TensorBoard, once per optimizer step, in groups. Measures nothing itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

from utils.training.engine.loop import LossesPerByte, TrainingLoop, ValidationLoop
from utils.training.engine.resources import ResourceMonitor
from utils.training.tracking import STEP, Destination, Sink

logger = logging.getLogger(__name__)

GROUP_SECONDS = 10.0
"""Between two groups: reading losses makes a GPU wait, and a row takes the client a quarter of a millisecond."""


class TrackingCallback(pl.Callback):
    """Logs each optimizer step with all that is known of it, then what validations, speed and memory said.

    A resumed run goes on where the checkpoint's log ended. Steps that an interrupted process logged after its last checkpoint
    are logged again, with the same values.

    Args:
        destination: where to log; its run begins with the first step and ends with the training, however that ends.
        training, validation: histories.
        bits: turns losses into bits per byte; None logs none.
        resources: samples of speed and memory; None logs none.
        gradient_norms: gives the gradient norm of every optimizer step so far; None logs none.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        destination: Destination,
        training: TrainingLoop,
        validation: ValidationLoop,
        bits: LossesPerByte | None = None,
        resources: ResourceMonitor | None = None,
        gradient_norms: Callable[[], Sequence[float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        destination.check()
        self.destination = destination
        self._training, self._validation = training, validation
        self._bits = bits if bits is not None else LossesPerByte()
        self._resources, self._gradient_norms, self._clock = resources, gradient_norms, clock
        self._sinks: list[Sink] = []
        self._logged, self._untrained, self._last = 0, False, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finish(False)  # of an earlier fit that nobody ended
        self._sinks, self._last = self.destination.open(self._logged + 1), self._clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._clock() - self._last >= GROUP_SECONDS:
            self._last = self._clock()
            self._log(upto=trainer.global_step - 1)  # the newest step may yet be validated

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log(trainer.global_step)
        self._finish(True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Losses that were not read from the device yet stay unread: it may be what failed."""
        self._log(min(len(self._training.step_losses), trainer.global_step), read=False)
        self._finish(False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._finish(False)

    def state_dict(self) -> dict[str, Any]:
        return {"logged": self._logged, "untrained": self._untrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged, self._untrained = int(state_dict["logged"]), bool(state_dict["untrained"])

    def _finish(self, succeeded: bool) -> None:
        for sink in self._sinks:
            sink.finish(succeeded)
        self._sinks = []

    def _log(self, upto: int, read: bool = True) -> None:
        """Log the steps after the last one that was logged, up to and with `upto`."""
        if not self._sinks or upto <= self._logged:
            return
        if read:
            self._training.read_losses()
        rows = self._rows(upto, read)
        for sink in self._sinks:
            sink.log(rows)
        self._logged, self._untrained = upto, True

    def _rows(self, upto: int, read: bool) -> list[dict[str, float]]:
        """One row per step with everything known of it; step 0 holds the validation before training."""
        rows: dict[int, dict[str, float]] = {}
        if not self._untrained and self._validation.untrained is not None:
            rows[0] = self._validated(self._validation.untrained, self._validation.untrained_measures)
        norms = self._gradient_norms() if read and self._gradient_norms is not None else ()
        for step in range(self._logged + 1, upto + 1):
            rows[step] = self._stepped(step, norms)
        for item in self._validation.history:
            if item.step in rows:
                rows[item.step] |= self._validated(item.loss, item.measures)
        for sample in self._resources.samples if self._resources is not None else ():
            if sample.step in rows:
                rows[sample.step]["tokens_per_second"] = sample.tokens_per_second
                if sample.memory_bytes is not None:
                    rows[sample.step]["memory_gib"] = sample.memory_bytes / 2**30
        return [{STEP: step, **row} for step, row in rows.items()]

    def _stepped(self, step: int, norms: Sequence[float]) -> dict[str, float]:
        loss = self._training.step_losses[step - 1]
        row = {"train/loss": loss, "learning_rate": self._training.learning_rates[step - 1]}
        if self._bits.train is not None:
            row["train/bits_per_byte"] = self._bits.train(loss)
        if len(norms) >= step:
            row["gradient_norm"] = float(norms[step - 1])
        return row

    def _validated(self, loss: float, measures: Mapping[str, float]) -> dict[str, float]:
        row = {"val/loss": loss, **{f"val/{name}": value for name, value in measures.items()}}
        return row if self._bits.validation is None else {**row, "val/bits_per_byte": self._bits.validation(loss)}
