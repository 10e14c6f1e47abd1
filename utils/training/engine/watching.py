"""The callbacks that look at a run: gradients, speed and memory, trackers, progress, a person's hooks. Puts them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl

from utils.progress import ProgressCallback, ignore_progress
from utils.training.engine.gradient_accumulator import GradientAccumulator
from utils.training.engine.gradient_monitor import GradientMonitor
from utils.training.engine.hooks import HooksCallback, TrainingHooks
from utils.training.engine.loop import LossesPerByte, MetricsFile, ProgressReporter, TrainingLoop, ValidationLoop
from utils.training.engine.resources import RESOURCES_FILE, ResourceMonitor
from utils.training.engine.tracking import TrackingCallback
from utils.training.live_plot import LivePlot
from utils.training.run_folder import RunFolder
from utils.training.tracking import Destination
from utils.training.training_config import TrainingConfig


@dataclass
class Watched:
    """What was seen of a run besides its losses; kept through a resume."""

    accumulator: GradientAccumulator = field(default_factory=GradientAccumulator)
    gradients: GradientMonitor = field(default_factory=GradientMonitor)

    @classmethod
    def of(cls, states: Mapping[str, Any]) -> Watched:
        """From the states of callbacks in a checkpoint; what an older release did not watch stays empty."""
        found = cls()
        found.load(states)
        return found

    def load(self, states: Mapping[str, Any]) -> None:
        """Take the histories of a checkpoint."""
        for callback in (self.accumulator, self.gradients):
            if callback.state_key in states:
                callback.load_state_dict(states[callback.state_key])

    def histories(self) -> dict[str, Any]:
        """The part of a results mapping that tells what was seen."""
        return {
            "gradient_norm_history": list(self.gradients.gradient_norms),
            "gradient_health": list(self.gradients.health),
            "accumulation": self.accumulator.stats,
        }


@dataclass
class Watchers(Watched):
    """What looks at a run, in the order in which it is called."""

    metrics: MetricsFile = field(kw_only=True)
    rest: list[pl.Callback] = field(kw_only=True)

    def in_order(self) -> list[pl.Callback]:
        """All of them."""
        return [self.accumulator, self.gradients, self.metrics, *self.rest]


class PlotCallback(pl.Callback):
    """Draws the loss as training goes, where a notebook shows it."""

    def __init__(self, training: TrainingLoop, validation: ValidationLoop, plot: LivePlot | None = None) -> None:
        self._training, self._validation, self._plot = training, validation, plot or LivePlot()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._plot.wanted:  # reading losses makes a GPU wait
            self._training.read_losses()
            self._plot.update(self._training.step_losses, self._validated())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._plot.close(self._training.step_losses, self._validated())

    def _validated(self) -> list[tuple[int, float]]:
        return [(item.step, item.loss) for item in self._validation.history]


def watchers(
    run: RunFolder,
    settings: TrainingConfig,
    training: TrainingLoop,
    validation: ValidationLoop,
    bits: LossesPerByte,
    tokens_per_step: int,
    progress: ProgressCallback,
    hooks: TrainingHooks,
    mirrored: Callable[[], str] = str,
) -> Watchers:
    """The watchers of a run.

    Args:
        run: its folder, in which metrics.csv and resources.csv are written.
        settings: where it is tracked besides.
        training: history of the steps; it must stand before the watchers.
        validation: history of the validations; the same.
        bits: turns losses into bits per byte.
        tokens_per_step: of an optimizer step.
        progress: told where the run is.
        hooks: a person's own.
        mirrored: says how far the mirror is; empty where there is none.
    """
    gradients = GradientMonitor()
    resources = ResourceMonitor(tokens_per_step, run.path / RESOURCES_FILE)

    def norms() -> Sequence[float]:
        return gradients.gradient_norms

    def memory() -> str:
        newest = resources.samples[-1].memory_bytes if resources.samples else None
        return "" if newest is None else f"{newest / 1e9:.1f} GB of memory"

    rest: list[Any] = [
        resources,
        ProgressReporter(progress, training, validation, bits, tokens_per_step, (memory, mirrored)),
        HooksCallback(hooks, run.name, training, validation),
    ]
    if progress is not ignore_progress:
        rest.append(PlotCallback(training, validation))
    if settings.wandb_project is not None or settings.tensorboard:
        destination = Destination(
            run.path,
            run.run_id,
            settings.wandb_project,
            settings.tensorboard,
            name=run.name,
            notes=settings.notes,
            config=settings.to_dict(),
        )
        rest.append(TrackingCallback(destination, training, validation, bits, resources, norms))
    metrics = MetricsFile(run.path / "metrics.csv", training, validation, bits, norms)
    return Watchers(GradientAccumulator(), gradients, metrics=metrics, rest=rest)
