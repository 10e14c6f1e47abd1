"""The verb `search`: model, data and a space of settings in, the best settings out. Puts the parts of a search together."""

# ruff: noqa: PT028 -- test_hyperparameter_search is the product, not a test

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from utils._extras import require
from utils._tables import html_table, text_table
from utils.adapters.model_adapter import adapt
from utils.errors import ConfigError, TrainingError
from utils.progress import ProgressCallback, showing
from utils.training.fingerprint import model_identity
from utils.training.rate_range import rate_range_test
from utils.training.run_manifest import describe_data
from utils.training.search_report import importances, save_page, table_rows, trials_table
from utils.training.search_space import SearchSpace
from utils.training.search_study import BEST_FILE, RUNS, SearchStudy
from utils.training.training_config import TrainingConfig, compare_configs, settings_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from utils.adapters.model_adapter import AdaptedModel
    from utils.loading.model_loader import LoadedModel
    from utils.training.task_spec import TaskSpec

logger = logging.getLogger(__name__)

__all__ = ["SearchResult", "SearchSpace", "search", "test_hyperparameter_search"]

FOLDER = "searches"
"""Folder of the workspace that holds one folder per search."""

PAGE_FILE, TABLE_FILE = "report.html", "trials.csv"


class SearchResult:
    """What a search has found so far.

    Attributes:
        folder: of the study: journal, best_config.json, trials.csv, and below `trials` a run folder for each trial.
        ended: why this call ended, in words.
        tokenizer: that of the trials, for a training with the best settings; None where no trial needed one.

    Example:
        >>> found = search(adapted, "notes.txt", {"learning_rate": (1e-5, 1e-2)}, TrainingConfig(max_steps=300))
        >>> result = train(adapted, "notes.txt", found.best_config)
    """

    def __init__(
        self, study: SearchStudy, trials: int, ended: str, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.study, self.ended, self.tokenizer = study, ended, tokenizer
        self.folder, self._trials = study.folder, trials

    @property
    def best_params(self) -> dict[str, Any]:
        """The searched settings of the best trial.

        Raises:
            TrainingError: no trial is complete.
        """
        config = self.best_config
        return {name: getattr(config, name) for name in self.study.space.parts}

    @property
    def best_config(self) -> TrainingConfig:
        """All settings of the best trial, as `train` takes them; they also lie in best_config.json.

        Raises:
            TrainingError: no trial is complete.
        """
        return self.study.best_config()

    @property
    def best_value(self) -> float:
        """Validation loss of the best trial, nats per label; infinite where none is complete."""
        best = self.study.best
        return math.inf if best is None or best.value is None else float(best.value)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: see `search_report.trials_table`."""
        return trials_table(self.study)

    @property
    def importances(self) -> dict[str, float]:
        """Setting → share of the spread of the losses that it explains; empty where too few trials are complete."""
        return importances(self.study)

    def headline(self) -> str:
        """The best trial in one sentence, and why the search ended."""
        best, states = self.study.best, [trial.state.name for trial in self.study.trials]
        counts = f"{states.count('COMPLETE')} trials complete, {states.count('PRUNED')} pruned"
        if best is None:
            return f"No trial is complete yet ({counts}); {self.ended}."
        return f"Trial {best.number} is the best: validation loss {self.best_value:.4f} ({counts}; {self.ended})."

    def summary(self) -> str:
        """The headline, what the best settings change, and the trials."""
        lines = [self.headline()]
        if self.study.best is not None:
            lines += [
                compare_configs(self.study.config, self.best_config).summary(),
                f"settings: {self.folder / BEST_FILE}",
            ]
        table = self.trials.drop(columns=["why", "run"])
        return "\n".join([*lines, text_table(list(table.columns), table_rows(table))])

    __str__ = summary

    def _repr_html_(self) -> str:
        table = self.trials.drop(columns=["run"])
        rows = [
            ("result", self.headline()),
            *[
                (name, f"{value:.4g}" if isinstance(value, float) else value)
                for name, value in (self.best_params if self.study.best is not None else {}).items()
            ],
        ]
        return html_table(("", ""), rows) + html_table(list(table.columns), table_rows(table))

    def save_html(self, path: str | Path | None = None) -> Path:
        """Write the page with its pictures: history, courses, importances, parallel coordinates.

        Args:
            path: None writes report.html into the folder of the study.

        Raises:
            MissingPackageError: plotly is not installed.
        """
        return save_page(self.study, Path(path if path is not None else self.folder / PAGE_FILE), self.headline())


def search(
    model: nn.Module | LoadedModel,
    data: Any = "python-docs",
    space: Mapping[str, Any] | SearchSpace | None = None,
    config: TrainingConfig | Mapping[str, Any] | None = None,
    *,
    trials: int = 20,
    seconds: float | None = None,
    name: str = "search",
    tokenizer: PreTrainedTokenizerBase | None = None,
    task_spec: TaskSpec | None = None,
    workspace: str | Path | None = None,
    pruning: bool = True,
    range_test: bool = True,
    seed: int = 0,
    progress: bool | ProgressCallback = True,
) -> SearchResult:
    """Search for the settings with the lowest validation loss, or go on with a search.

    Each trial trains a copy of the model with the engine of `train`, for the steps or epochs that `config` says; the model is
    left as it was. Trials that are behind at the same place of their training are stopped. The same call, made again, goes on
    after whatever ended it (the end of a session, kill -9): a trial that was torn away continues from its newest
    checkpoint. Made by several processes at once, they share the trials.

    Args:
        model: an `AdaptedModel`, what `load_model` gave, or an `nn.Module`.
        data: as for `train`.
        space: setting → `(low, high)`, a `Range`, or a list of choices; None takes learning rate, weight decay and warm-up.
        config: settings that stay as they are, and the values that the first trial tries. `max_steps` or `epochs` is the
            budget of one trial.
        trials: of the study in all, those of earlier calls included.
        seconds: for this call. Trials whose forecast is longer than the rest of it are not begun; the one that runs when it is
            over is stopped after its optimizer step, and goes on next time.
        name: of the study; its folder is `<workspace>/searches/<name>`.
        tokenizer: as for `train`; None lets the first trial choose one, which the others take.
        task_spec: as for `train`.
        workspace: folder of the runs; None takes `config.checkpoint_dir`.
        pruning: False lets every trial train to its end.
        range_test: whether the first trial takes the learning rate of a range test, where learning rates are searched.
        seed: of the proposals.
        progress: True shows a display, False none; or a callable (trials done, trials in all, note).

    Returns:
        The best settings and all trials.

    Raises:
        ConfigError: a space or settings that do not hold, or a study of that name about something else.
        DataError, TokenizerError: as for `train`.
        MissingPackageError: Optuna or Lightning is not installed.

    Example:
        >>> found = search(adapted, "notes.txt", {"learning_rate": (1e-5, 1e-2), "batch_size": [4, 8]}, {"max_steps": 300})
        >>> print(found.summary())
        >>> result = train(adapted, "notes.txt", found.best_config)
    """
    require("optuna", extra="search", feature="Hyper-parameter search")
    require("pytorch_lightning", extra="training", feature="Training")
    _check_budget(trials, seconds)
    settings = settings_of(config)
    adapted, parts = adapt(model), _space(space, settings)
    root = Path(workspace if workspace is not None else settings.checkpoint_dir).expanduser()
    study = SearchStudy(
        root / FOLDER / _folder_name(name),
        parts,
        settings,
        seed=seed,
        pruning=pruning,
        about=_about(adapted, data, settings),
        mirror_dir=settings.mirror_dir,
    )
    from utils.training.search_engine import TrainingObjective

    objective = TrainingObjective(adapted, data, tokenizer, task_spec, study.folder / RUNS)
    with showing(progress, "Search", "trials") as report:
        with study.alone():
            if not study.trials:
                rate = _start_rate(objective, settings, parts, report) if range_test else None
                values = parts.start(settings, rate)
                study.put_in_line(
                    values, "the settings of config=" + ("" if rate is None else ", with the rate of a range test")
                )
        try:
            ended = study.run(objective, trials, seconds, report)
        finally:
            trials_table(study).to_csv(study.folder / TABLE_FILE, index=False)
    return SearchResult(study, trials, ended, objective.tokenizer)


def test_hyperparameter_search(
    model: nn.Module | LoadedModel | Callable[[], nn.Module],
    config: Any = None,
    train_data: Any = "python-docs",
    n_trials: int = 10,
    search_space: Mapping[str, Any] | None = None,
    training_config: TrainingConfig | Mapping[str, Any] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Search for settings; the documented form of `search`.

    Args:
        model: a model, or a function without arguments that makes one.
        config: what is known about the model, for `adapt`.
        train_data: as `data` of `search`.
        n_trials: trials in all.
        search_space: as `space` of `search`.
        training_config: as `config` of `search`.
        arguments: further ones of `search`.

    Returns:
        best_params, best_value (validation loss, nats per label), best_config (a `TrainingConfig`), trials (DataFrame),
        importances, n_trials, study_folder, and result (the `SearchResult`).

    Raises:
        TrainingError: no trial is complete.

    Example:
        >>> test_hyperparameter_search(model, config, n_trials=5)["best_params"]
        {'learning_rate': 0.0012, 'weight_decay': 0.03, 'warmup_ratio': 0.08}
    """
    made = model() if not isinstance(model, nn.Module) and callable(model) else model
    found = search(adapt(made, config), train_data, search_space, training_config, trials=n_trials, **arguments)
    return {
        "best_params": found.best_params,
        "best_value": found.best_value,
        "best_config": found.best_config,
        "trials": found.trials,
        "importances": found.importances,
        "n_trials": len(found.trials),
        "study_folder": found.folder,
        "result": found,
    }


test_hyperparameter_search.__test__ = False  # type: ignore[attr-defined] # a product function, which pytest must not collect


def _start_rate(
    objective: Any, settings: TrainingConfig, space: SearchSpace, progress: ProgressCallback
) -> float | None:
    """The rate of a range test; None where no learning rate is searched, or the test finds none, which ends no search."""
    if "learning_rate" not in space.parts:
        return None

    def report(done: int, total: int | None, note: str = "") -> None:  # the search counts trials
        progress(0, None, f"range test: {note}")

    try:
        found = rate_range_test(
            objective.adapted,
            objective.data,
            settings,
            tokenizer=objective.tokenizer,
            task_spec=objective.task_spec,
            workspace=objective.folder,
            progress=report,
        )
    except TrainingError as error:
        logger.warning("the first trial takes the learning rate of the settings: %s", error)
        return None
    logger.info("range test: learning rate %.2g, %s", found.suggestion, found.reason)
    return found.suggestion


def _space(space: Mapping[str, Any] | SearchSpace | None, settings: TrainingConfig) -> SearchSpace:
    return space if isinstance(space, SearchSpace) else SearchSpace(space, settings)


def _check_budget(trials: int, seconds: float | None) -> None:
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise ConfigError(f"trials= is a whole number of 1 or more, for the study in all; got {trials!r}.")
    if seconds is not None and not 0 < seconds < math.inf:
        raise ConfigError(f"seconds= is a positive number, or None for all the time; got {seconds!r}.")


def _folder_name(name: str) -> str:
    """The name of a study, where a folder may have it."""
    TrainingConfig(run_name=name).validate()
    return name


def _about(adapted: AdaptedModel, data: Any, settings: TrainingConfig) -> dict[str, Any]:
    """What must be equal for a study to go on, besides space and settings."""
    return {"model": model_identity(adapted), "data": describe_data(data, settings.stream_data)}
