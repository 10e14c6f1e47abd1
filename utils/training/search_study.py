"""A search over many trials: which comes next, which is stopped, and how it goes on after whatever ended it.

Optuna proposes and remembers; this file keeps count, time and locks. What a trial trains is for the objective to know.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import math
import random
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils._extras import require
from utils._files import write_json
from utils.errors import ConfigError, DivergenceError, TrainingError
from utils.loading.strict_json import parse_json
from utils.progress import ProgressCallback, ignore_progress
from utils.training.run_folder import WITHOUT_EFFECT_ON_WEIGHTS, open_experiment
from utils.training.run_lock import FolderLock
from utils.training.search_journal import JOURNAL_FILE, StudyMirror, holding, open_journal, quiet_optuna
from utils.training.search_space import SearchSpace
from utils.training.search_trial import Objective, PrunedError, RunningTrial, TimeUpError, UnfitError
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of study.json."""

STUDY_FILE, BEST_FILE, RUNS = "study.json", "best_config.json", "trials"

PLACES = 10
"""Validations of a trial, at which it may be compared with the others."""

FIRST_RUNG, KEPT = 2, 2
"""Place at which trials are compared first, and one in how many goes on."""

RANDOM_TRIALS = 5
"""Trials that are drawn before TPE proposes. Optuna's usual 10 leave it 10 of 20 trials to be better with."""

ATTEMPTS = 3
"""How often a trial is begun whose process died: settings that kill the process every time are left alone then."""


class SearchStudy:
    """One search, in a folder of its own, shared by every process that opens it.

    Args:
        folder: of the study; `locks` of it lie beside, under a hidden name.
        space: what is searched.
        config: settings that stay as they are.
        seed: of what TPE draws; together with the number of a trial it settles its proposal.
        pruning: whether trials that are behind are stopped.
        about: what else must be equal for the study to go on, such as model and data.
        mirror_dir: folder that gets a snapshot after each trial.

    Raises:
        ConfigError: the folder holds a study of something else, and the message lists what differs; or its files are damaged.
        MissingPackageError: Optuna is not installed.

    Example:
        >>> study = SearchStudy(Path("runs/searches/first"), SearchSpace(), TrainingConfig(max_steps=300))
        >>> study.run(objective, trials=20)
        >>> study.best.params
    """

    def __init__(
        self,
        folder: Path,
        space: SearchSpace,
        config: TrainingConfig,
        *,
        seed: int = 0,
        pruning: bool = True,
        about: Mapping[str, Any] | None = None,
        mirror_dir: str | Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require("optuna", extra="search", feature="Hyper-parameter search")
        self.folder, self.space, self.config, self.seed, self.pruning = folder, space, config, seed, pruning
        self._clock = clock
        self._locks = folder.parent / ".locks" / folder.name
        self._worker = uuid.uuid4().hex
        with holding(self._locks / "study"), quiet_optuna():
            run_id = open_experiment(folder, mirror_dir)
            self._refuse_changes({"space": space.to_json(), "settings": _fixed(config, space), **(about or {})})
            self.study = self._opened()
        self._mirror = None if mirror_dir is None else StudyMirror(folder, run_id, mirror_dir)

    # ---- what there is ----------------------------------------------------------------------------------------------
    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, in the order in which they were begun or put in line."""
        return self.study.get_trials(deepcopy=False)

    @property
    def best(self) -> optuna.trial.FrozenTrial | None:
        """The completed trial with the lowest loss; None before there is one."""
        done = [trial for trial in self.trials if trial.state.name == "COMPLETE"]
        return min(done, key=_value_of, default=None)

    @property
    def finished(self) -> int:
        """Trials that came to an end: complete, pruned, or given up."""
        return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in self.trials)

    def best_config(self) -> TrainingConfig:
        """The settings of the best trial, as `train` takes them.

        Raises:
            TrainingError: no trial is complete.
        """
        best = self.best
        if best is None:
            raise TrainingError(
                f"No trial of {self.folder.name} is complete ({self.finished} ended otherwise): call search again, with more "
                "seconds= or trials=, or with a space of lower learning rates where the trials diverged."
            )
        return self.space.settings(self.config, best.params)

    # ---- the search -------------------------------------------------------------------------------------------------
    def put_in_line(self, values: Mapping[str, Any], why: str) -> None:
        """Have a trial begin with these values before any that TPE proposes."""
        self.study.enqueue_trial(dict(values), user_attrs={"origin": why})

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes of the study out of the block."""
        with holding(self._locks / "study"):
            yield

    def run(
        self,
        objective: Objective,
        trials: int,
        seconds: float | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> str:
        """Run trials until the study has so many, or the time is over.

        Args:
            objective: trains; see `Objective`.
            trials: of the study in all, those of earlier calls and of other processes included.
            seconds: for this call; the trial that runs then is stopped after its optimizer step, and goes on next time.
            progress: called with (trials done, trials in all, note).

        Returns:
            Why the search ended, in words.

        Raises:
            KeyboardInterrupt: what is done is kept, and the trial that ran goes on next time.
        """
        deadline = None if seconds is None else self._clock() + seconds
        with self._working(), quiet_optuna():
            while True:
                if deadline is not None and self._clock() >= deadline:
                    return f"the {seconds:g} s are over"
                trial = self._next(trials)
                if trial is None:
                    return f"{self.finished} of {trials} trials are done"
                try:
                    self._run(trial, objective, trials, deadline, progress)
                except TimeUpError as error:
                    return f"trial {trial.number} waits for the next call: {error}"

    def _run(
        self,
        trial: optuna.trial.Trial,
        objective: Objective,
        trials: int,
        deadline: float | None,
        progress: ProgressCallback,
    ) -> None:
        """One trial from its beginning to what is written down about it."""
        began = self._clock()

        def tell(note: str) -> None:
            left = "" if deadline is None else f" · {max(deadline - self._clock(), 0):.0f} s left"
            progress(self.finished, trials, f"trial {trial.number}: {note}{self._so_far()}{left}")

        def end(state: str, why: str = "", value: float | None = None, again: bool = False) -> None:
            trial.set_user_attr("why", why)
            trial.set_user_attr("seconds", self._clock() - began)
            self._end(trial, state, value, again, trials)
            progress(self.finished, trials, f"trial {trial.number}: {why or state.lower()}{self._so_far()}")

        try:
            value = objective(self._running(trial, deadline, tell))
            if not math.isfinite(value):
                raise UnfitError(f"its last validation loss is {value}")
        except (PrunedError, UnfitError, DivergenceError) as error:
            end("PRUNED", " ".join(str(error).split()))
        except (TimeUpError, KeyboardInterrupt, SystemExit) as error:  # SIGTERM comes as the last of them
            end("FAIL", str(error) if isinstance(error, TimeUpError) else "interrupted", again=True)
            raise
        except BaseException as error:
            end("FAIL", f"{type(error).__name__}: {error}")
            raise
        else:
            end("COMPLETE", value=value)

    def _running(self, trial: optuna.trial.Trial, deadline: float | None, tell: Callable[[str], None]) -> RunningTrial:
        """What the objective sees.

        Raises:
            UnfitError: the values do not hold together.
        """
        told = set(self.study.trials[trial.number].intermediate_values)

        def reports(place: int, loss: float) -> bool:
            if place not in told:  # a run that goes on may repeat what its earlier attempt has reported
                trial.report(loss, place)
                told.add(place)
            return not (self.pruning and trial.should_prune())

        try:
            settings = self.space.settings(self.config, trial.params)
        except ConfigError as error:
            raise UnfitError(str(error)) from error
        attributes = trial.user_attrs
        return RunningTrial(
            trial.number,
            attributes["run"],
            dataclasses.replace(settings, run_name=attributes["run"]),
            attempt=attributes.get("attempt", 1),
            reports=reports,
            deadline=deadline,
            anything_done=self.finished > 0,
            tell=tell,
            clock=self._clock,
        )

    def _so_far(self) -> str:
        best = self.best
        return "" if best is None else f" · best {_value_of(best):.4g} (trial {best.number})"

    # ---- under the lock of the study --------------------------------------------------------------------------------
    def _next(self, trials: int) -> optuna.trial.Trial | None:
        """The next trial with its values, or None where the study has enough."""
        with self.alone():
            self._take_up_lost()
            known = self.trials
            running = sum(trial.state.name == "RUNNING" for trial in known)
            if self.finished + running >= trials:
                return None
            self.study.sampler = sampler(self.seed, len(known))
            trial = self.study.ask()
            trial.set_user_attr("worker", self._worker)
            self.space.suggested(trial)
            if "run" not in trial.user_attrs:
                trial.set_user_attr("run", f"trial-{trial.number:04d}")
            for place, loss in trial.user_attrs.get("reports", {}).items():
                trial.report(loss, int(place))
                trial.should_prune()  # notes the loss at this place; an earlier attempt has passed it
            return trial

    def _end(self, trial: optuna.trial.Trial, state: str, value: float | None, again: bool, trials: int) -> None:
        """Write down how a trial ended, and what the study is now."""
        from optuna.trial import TrialState

        with self.alone():
            self.study.tell(trial, value, TrialState[state])
            if again:
                ended = self.trials[trial.number]
                self._put_again(ended, ended.user_attrs.get("attempt", 1))  # nothing is held against it
            self._write(trials)

    def _take_up_lost(self) -> None:
        """Put the trials of processes that died in line again."""
        from optuna.trial import TrialState

        for trial in self.trials:
            if trial.state.name != "RUNNING" or self._is_alive(trial.user_attrs.get("worker")):
                continue
            attempt = trial.user_attrs.get("attempt", 1)
            if attempt >= ATTEMPTS:
                logger.warning("trial %d lost its process %d times, and is given up", trial.number, attempt)
                self.study.tell(trial.number, state=TrialState.PRUNED)  # so that TPE keeps away from it
                continue
            logger.warning("trial %d lost its process: it goes on from its newest checkpoint", trial.number)
            self.study.tell(trial.number, state=TrialState.FAIL)
            self._put_again(trial, attempt + 1)

    def _put_again(self, trial: optuna.trial.FrozenTrial, attempt: int) -> None:
        """Put a trial in line once more: same values, same run, with what it had reported."""
        kept: dict[str, Any] = {name: trial.user_attrs[name] for name in ("origin", "run") if name in trial.user_attrs}
        reports = {str(place): loss for place, loss in trial.intermediate_values.items()}
        self.study.enqueue_trial(trial.params, user_attrs={**kept, "attempt": attempt, "reports": reports})

    def _is_alive(self, worker: str | None) -> bool:
        if worker is None:
            return False
        if worker == self._worker:
            return True
        folder = self._locks / "workers" / worker
        if not folder.is_dir():
            return False
        lock = FolderLock.acquire(folder)
        if lock is None:
            return True
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        return False

    def _write(self, trials: int) -> None:
        """The best settings as a file of their own, room on the disk, and a snapshot for the mirror."""
        if self.best is not None:
            self.best_config().save(self.folder / BEST_FILE)
        self._drop_checkpoints()
        if self._mirror is not None:
            self._mirror.snapshot(self.finished, self.finished >= trials)

    def _drop_checkpoints(self) -> None:
        """Delete the checkpoints of trials that are over, but those of the best one: many trials would fill the disk."""
        best = self.best
        for trial in self.trials:
            if trial.state.name in ("COMPLETE", "PRUNED") and (best is None or trial.number != best.number):
                shutil.rmtree(self.folder / RUNS / trial.user_attrs["run"] / "checkpoints", ignore_errors=True)

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Let other processes see that this one lives."""
        folder = self._locks / "workers" / self._worker
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock.acquire(folder)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()
            shutil.rmtree(folder, ignore_errors=True)

    # ---- opening ----------------------------------------------------------------------------------------------------
    def _opened(self) -> optuna.Study:
        import optuna

        try:
            return optuna.create_study(
                storage=open_journal(self.folder, self._locks / "journal"),
                study_name=self.folder.name,
                direction="minimize",
                pruner=pruner() if self.pruning else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self._damaged(self.folder / JOURNAL_FILE, error) from error

    def _damaged(self, file: Path, why: object) -> ConfigError:
        return ConfigError(
            f"{file} is damaged ({why}), so the study cannot go on. Take another name=; with a mirror_dir, delete {self.folder}, "
            "and the next search brings it back from there."
        )

    def _refuse_changes(self, content: Mapping[str, Any]) -> None:
        """Write down what the study is about, or compare with what was written."""
        file = self.folder / STUDY_FILE
        if not file.is_file():
            write_json(file, {"format_version": FORMAT_VERSION, **content})
            return
        try:
            known = parse_json(file.read_text(encoding="utf-8"), STUDY_FILE)
        except ValueError as error:
            raise self._damaged(file, error) from error
        if not isinstance(known, dict):
            raise self._damaged(file, f"it holds a {type(known).__name__}")
        if known.get("format_version", 0) > FORMAT_VERSION:
            raise ConfigError(
                f"{file} has format version {known['format_version']}, this package reads {FORMAT_VERSION}: update it, or take "
                "another name=."
            )
        changed = _differences(known, json.loads(json.dumps(content)))
        if changed:
            listed = "\n".join(f"- {text}" for text in changed)
            raise ConfigError(
                f"The study {self.folder.name!r} in {self.folder.parent} is about something else:\n{listed}\nIts trials do not "
                "compare with new ones: take another name=, or the settings that it began with."
            )


def sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """What proposes the values of a trial: TPE, seeded by the trial's number, so that a study that goes on proposes what it
    would have proposed, and several processes never draw the same.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # what 5.0 made the usual
        return optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS,
            multivariate=True,
            constant_liar=True,  # a trial that runs elsewhere is not proposed again
            seed=random.Random(f"{seed}:{number}").randrange(2**32),
        )


def pruner() -> optuna.pruners.BasePruner:
    """What stops a trial: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), by which the better half goes on at
    the places 2, 4 and 8 of 10.

    `python -m tests.training.search_table` measures it. Tried over 30 seeds of such a task, with 9 places: halving at the places
    2, 4 and 8 saves 41% of the validations at the same best loss, and misses no best region that full trials find. Keeping a
    third instead (places 2 and 6) saves 48% and misses 3 of 30; beginning at place 1 misses a quarter: that early, losses tell
    how fast a trial is and not how far it gets. Hyperband saves 35%, for it spreads 20 trials over several ladders; the median
    rule, which stops nothing before five trials are complete, 30%.
    """
    import optuna

    class Halving(optuna.pruners.SuccessiveHalvingPruner):
        """Compares with trials, and not with attempts that broke off: another trial goes on from each."""

        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            whole = copy.copy(study)
            whole.get_trials = lambda *_, **__: [  # type: ignore[method-assign]
                one for one in study.get_trials(deepcopy=False) if one.state.name != "FAIL"
            ]
            return super().prune(whole, trial)

    return Halving(min_resource=FIRST_RUNG, reduction_factor=KEPT)


def _value_of(trial: optuna.trial.FrozenTrial) -> float:
    return math.inf if trial.value is None else float(trial.value)


def _fixed(config: TrainingConfig, space: SearchSpace) -> dict[str, Any]:
    """The settings that are equal in all trials and change what is learnt."""
    without = {*WITHOUT_EFFECT_ON_WEIGHTS, *space.parts}
    return {name: value for name, value in config.to_dict().items() if name not in without}


def _differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two studies, part by part."""
    found = []
    for part, value in now.items():
        before = known.get(part)
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict):
            names = sorted({*before, *value})
            found += [
                f"{part}, {name}: {before.get(name)} → {value.get(name)}"
                for name in names
                if before.get(name) != value.get(name)
            ]
        else:
            found.append(f"{part}: {before} → {value}")
    return found
