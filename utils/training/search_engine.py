"""The objective of a real search: each trial is a run of the one engine, in a folder of its own, on a copy of the model."""

from __future__ import annotations

import copy
import dataclasses
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import ConfigError, TrainingStopped
from utils.progress import TERMINAL_INTERVAL, ProgressCallback
from utils.training.engine.hooks import TrainingHooks
from utils.training.engine.loop import Validation
from utils.training.engine.memory import is_out_of_memory
from utils.training.engine.plan import Plan
from utils.training.engine.trainer import Trainer
from utils.training.forecast import Forecast
from utils.training.result import TrainingResult
from utils.training.search_study import PLACES
from utils.training.search_trial import RunningTrial, TimeUpError, UnfitError
from utils.training.training_core import TrainingCoordinator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.training.task_spec import TaskSpec


class TrainingObjective:
    """Trains a copy of a model with the settings of a trial.

    Args:
        adapted: the model; it is left as it was.
        data: as for `train`.
        tokenizer: None lets the first trial choose one, which the others take.
        task_spec: as for `train`.
        folder: of the runs, one folder for each trial.

    Attributes:
        tokenizer: that of the trials.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        data: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        task_spec: TaskSpec | None,
        folder: Path,
    ) -> None:
        self.adapted, self.data, self.tokenizer = adapted, data, tokenizer
        self.task_spec, self.folder = task_spec, folder

    def __call__(self, trial: RunningTrial) -> float:
        """The validation loss with which the training hands its weights over, nats per label.

        Raises:
            TrialEndedError: the trial ends before its training does.
            DivergenceError: its losses are not finite.
        """
        coordinator = TrialCoordinator(
            trial, copy.deepcopy(self.adapted), self.data, self.tokenizer, self.task_spec, self.folder
        )
        try:
            return final_loss(coordinator.run())
        except TrainingStopped as error:
            raise TimeUpError("the time of the search is over") from error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UnfitError("its training does not fit into memory") from error
        finally:
            self.tokenizer = coordinator.tokenizer
            del coordinator
            gc.collect()  # Lightning's objects hold each other: the next trial needs their memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


class TrialCoordinator(TrainingCoordinator):
    """The walk of `train` for one trial."""

    def __init__(
        self,
        trial: RunningTrial,
        adapted: AdaptedModel,
        data: Any,
        tokenizer: PreTrainedTokenizerBase | None,
        task_spec: TaskSpec | None,
        folder: Path,
    ) -> None:
        super().__init__(
            adapted,
            data,
            tokenizer=tokenizer,
            training_config=trial.settings,
            task_spec=task_spec,
            workspace=folder,
            progress=False,
            resume="continue" if trial.attempt > 1 else "auto",
            hooks=TrialHooks(trial),
            stop=trial.time_is_over,
        )
        self.trial = trial

    def _kind(self) -> type[Trainer]:
        return TrialTrainer

    def _trainer(self, report: ProgressCallback) -> Trainer:
        trainer = super()._trainer(report)
        assert isinstance(trainer, TrialTrainer) and isinstance(self.hooks, TrialHooks)
        trainer.trial, trainer.trial_hooks, trainer.group = self.trial, self.hooks, self.workspace.parent.name
        return trainer


class TrialTrainer(Trainer):
    """The engine, validating at places that compare between trials, and ending where the search says so."""

    trial: RunningTrial
    trial_hooks: TrialHooks

    def _setup_data(self, train_data: Any, val_data: Any) -> Plan:
        plan = super()._setup_data(train_data, val_data)
        if plan.validation is None:
            raise ConfigError(
                "A search compares validation losses, and these data have no validation part: pass data with one, or texts, of "
                "which a part is kept for it (validation_fraction)."
            )
        every = -(-plan.total_steps // PLACES)
        self.settings = dataclasses.replace(self.settings, val_every_n_steps=every)
        self.trial_hooks.every, self.trial_hooks.total_steps = every, plan.total_steps
        return plan

    def _setup_forecast(self, plan: Plan, precision: str) -> Forecast | None:
        if math.isinf(self.trial.seconds_left):
            return None
        found = self._measured_forecast(plan, precision)
        if found is not None:
            self.trial.tell(f"forecast {60 * found.minutes:.0f} s")
            self.trial.check_forecast(60 * found.minutes)
        return found


class TrialHooks(TrainingHooks):
    """Hands a training's steps and validations on to its trial.

    Args:
        trial: that is told.
        clock: monotonic seconds, for the progress display.

    Attributes:
        every, total_steps: optimizer steps between validations, and in all.
    """

    def __init__(self, trial: RunningTrial, clock: Callable[[], float] = time.monotonic) -> None:
        self.trial, self._clock, self._told_at = trial, clock, -math.inf
        self.every, self.total_steps = 1, 1

    def on_step_end(self, step: int, loss: float | None) -> None:
        """Tell the display where the trial is."""
        now = self._clock()
        if now - self._told_at >= TERMINAL_INTERVAL:
            self._told_at = now
            words = "" if loss is None else f" · loss {loss:.3f}"
            self.trial.tell(f"step {step:,}/{self.total_steps:,}{words}")

    def on_validation_end(self, validation: Validation) -> None:
        """Report it; at the last step the training is over anyway."""
        last = validation.step >= self.total_steps
        self.trial.report(-(-validation.step // self.every), validation.loss, last)


def final_loss(result: TrainingResult) -> float:
    """The validation loss of the weights that a training hands over: the best one where validation ended it, else the last."""
    losses = result["val_loss_history"]
    return float(min(losses) if result["ended_early"] else losses[-1])
