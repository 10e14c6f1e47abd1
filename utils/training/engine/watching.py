"""The callbacks that look at a run: gradients, speed and memory, trackers, progress, a person's hooks. Puts them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl

from utils.progress import ProgressCallback, ignore_progress
from utils.training.engine.gradient_accumulator import GradientAccumulator
from utils.training.engine.gradient_monitor import GradientMonitor
from utils.training.engine.hooks import HooksCallback, TrainingHooks
from utils.training.engine.live import LivePlotCallback
from utils.training.engine.loop import LossesPerByte, MetricsFile, ProgressReporter, TrainingLoop, ValidationLoop
from utils.training.engine.processes import ALONE, Processes
from utils.training.engine.resources import ResourceMonitor
from utils.training.engine.tracking import TrackingCallback
from utils.training.live_plot import LivePlot
from utils.training.run_folder import RESOURCES_FILE, RunFolder
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
    leads: bool = field(default=True, kw_only=True)

    def in_order(self) -> list[pl.Callback]:
        """All of them; of several processes only the leading one writes and reports."""
        if not self.leads:
            return [self.accumulator, self.gradients]
        return [self.accumulator, self.gradients, self.metrics, *self.rest]


def destination_of(
    settings: TrainingConfig,
    folder: Path,
    run_id: str,
    about: Mapping[str, Any] = MappingProxyType({}),
    group: str | None = None,
) -> Destination:
    """Where a run is tracked."""
    config = {**settings.to_dict(), **about}
    project, board = settings.wandb_project, settings.tensorboard
    return Destination(
        folder, run_id, project, board, name=folder.name, notes=settings.notes, config=config, group=group
    )


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
    about: Mapping[str, Any] = MappingProxyType({}),
    plot: LivePlot | None = None,
    processes: Processes = ALONE,
    group: str | None = None,
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
        about: what trackers are told besides the settings, such as the model's name.
        plot: draws the loss while it falls; None draws into the notebook's output, where somebody watches the progress.
        processes: those that train together; others than the leading one watch only what checkpoints and results keep.
        group: of W&B.
    """
    gradients = GradientMonitor(processes=processes)
    accumulator = GradientAccumulator(processes)
    resources = ResourceMonitor(tokens_per_step, run.path / RESOURCES_FILE)

    def norms() -> Sequence[float]:
        return gradients.gradient_norms

    def memory() -> str:
        newest = resources.samples[-1].memory_bytes if resources.samples else None
        return "" if newest is None else f"{newest / 1e9:.1f} GB of memory"

    metrics = MetricsFile(run.path / "metrics.csv", training, validation, bits, norms)
    if not processes.leads:
        return Watchers(accumulator, gradients, metrics=metrics, rest=[], leads=False)
    rest: list[Any] = [
        resources,
        ProgressReporter(progress, training, validation, bits, tokens_per_step, (memory, mirrored)),
        HooksCallback(hooks, run.name, training, validation),
    ]
    if plot is not None or progress is not ignore_progress:
        rest.append(LivePlotCallback(training, validation, plot))
    if settings.wandb_project is not None or settings.tensorboard:
        destination = destination_of(settings, run.path, run.run_id, about, group)
        rest.append(TrackingCallback(destination, training, validation, bits, resources, norms))
    return Watchers(accumulator, gradients, metrics=metrics, rest=rest)
