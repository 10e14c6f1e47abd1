"""The callbacks that look at a run: gradients, speed and memory, trackers, progress, a person's hooks. Puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from utils.progress import ProgressCallback
from utils.training.engine.gradient_accumulator import GradientAccumulator
from utils.training.engine.gradient_monitor import GradientMonitor
from utils.training.engine.hooks import HooksCallback, TrainingHooks
from utils.training.engine.loop import LossesPerByte, MetricsFile, ProgressReporter, TrainingLoop, ValidationLoop
from utils.training.engine.resources import RESOURCES_FILE, ResourceMonitor
from utils.training.engine.tracking import TrackingCallback
from utils.training.run_folder import RunFolder
from utils.training.tracking import Destination
from utils.training.training_config import TrainingConfig


@dataclass
class Watchers:
    """What looks at a run, in the order in which it is called; each keeps its own history through a resume."""

    accumulator: GradientAccumulator
    gradients: GradientMonitor
    resources: ResourceMonitor
    metrics: MetricsFile
    rest: list[pl.Callback]

    def in_order(self) -> list[pl.Callback]:
        """All of them."""
        return [self.accumulator, self.gradients, self.resources, self.metrics, *self.rest]

    def with_history(self) -> Sequence[pl.Callback]:
        """Those whose history lies in a checkpoint."""
        return (self.accumulator, self.gradients, self.resources)


def watchers(
    run: RunFolder,
    settings: TrainingConfig,
    training: TrainingLoop,
    validation: ValidationLoop,
    bits: LossesPerByte,
    tokens_per_step: int,
    progress: ProgressCallback,
    hooks: TrainingHooks,
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
    """
    gradients = GradientMonitor()
    resources = ResourceMonitor(tokens_per_step, run.path / RESOURCES_FILE)

    def norms() -> Sequence[float]:
        return gradients.gradient_norms

    rest: list[Any] = [
        ProgressReporter(progress, training, validation, bits, tokens_per_step),
        HooksCallback(hooks, run.name, training, validation),
    ]
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
    return Watchers(GradientAccumulator(), gradients, resources, metrics, rest)
