"""Trials come, are stopped, survive and are shared. The training is a stand-in whose best settings are known."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time

import optuna
import pytest

from tests.training.search_task import SPACE, Standin, found
from utils.errors import ConfigError, DivergenceError, TrainingError
from utils.testing import FakeClock
from utils.training.search_journal import JOURNAL_FILE
from utils.training.search_space import SearchSpace
from utils.training.search_study import ATTEMPTS, PLACES, SearchStudy
from utils.training.training_config import TrainingConfig


def study_in(folder, space=SPACE, **arguments):
    return SearchStudy(folder / "s", space, TrainingConfig(), **arguments)


def states(study):
    return [trial.state.name for trial in study.trials]


def test_a_search_finds_the_best_region_writes_it_down_and_stops_what_is_behind(tmp_path):
    study, task, notes = study_in(tmp_path), Standin(), []
    study.put_in_line(SPACE.start(TrainingConfig()), "the settings")
    ended = study.run(task, 20, progress=lambda done, total, note: notes.append((done, total, note)))
    assert ended == "20 of 20 trials are done" and set(states(study)) == {"COMPLETE", "PRUNED"}
    assert found(study.best_config())
    assert TrainingConfig.load(tmp_path / "s" / "best_config.json") == study.best_config()
    assert task.done < 0.65 * 20 * PLACES
    assert notes[-1][:2] == (20, 20) and "best" in notes[-1][2]
    assert any("behind the other trials" in note for _, _, note in notes)


def test_without_pruning_every_trial_trains_to_its_end(tmp_path):
    study = study_in(
        tmp_path, space=SearchSpace({"learning_rate": (1e-4, 1e-2), "weight_decay": (1e-4, 1.0)}), pruning=False
    )
    task = Standin()
    study.run(task, 6)
    assert task.done == 6 * PLACES and states(study) == ["COMPLETE"] * 6


def test_a_study_that_goes_on_proposes_what_it_would_have_proposed(tmp_path):
    whole = SearchStudy(tmp_path / "a" / "s", SPACE, TrainingConfig(), seed=3)
    whole.run(Standin(), 10)
    SearchStudy(tmp_path / "b" / "s", SPACE, TrainingConfig(), seed=3).run(Standin(), 6)
    parts = SearchStudy(tmp_path / "b" / "s", SPACE, TrainingConfig(), seed=3)
    parts.run(Standin(), 10)
    assert [trial.params for trial in parts.trials] == [trial.params for trial in whole.trials]
    assert len({json.dumps(trial.params) for trial in whole.trials}) == 10


def test_what_is_in_line_comes_first(tmp_path):
    study = study_in(tmp_path)
    study.put_in_line(SPACE.start(TrainingConfig()), "the settings")
    study.run(Standin(), 1)
    assert study.trials[0].params == {"learning_rate": 5e-4, "weight_decay": 0.01}


@pytest.mark.parametrize("error", [DivergenceError("not finite"), None])
def test_a_trial_that_diverges_counts_as_behind_and_the_search_goes_on(tmp_path, error):
    def objective(trial):
        if trial.number == 0:
            if error is not None:
                raise error
            return float("nan")
        return 1.0

    study = study_in(tmp_path)
    study.run(objective, 2)
    assert states(study) == ["PRUNED", "COMPLETE"]
    assert study.trials[0].user_attrs["why"] == (
        "not finite" if error is not None else "its last validation loss is nan"
    )


def test_values_that_do_not_hold_together_end_their_trial_only(tmp_path):
    study = study_in(
        tmp_path, space=SearchSpace({"warmup_ratio": [0.0, 1.0]}, TrainingConfig(learning_rate_schedule="constant"))
    )
    study.config = TrainingConfig(learning_rate_schedule="cosine")  # which leaves no step for its fall
    study.put_in_line({"warmup_ratio": 1.0}, "")
    study.put_in_line({"warmup_ratio": 0.0}, "")
    study.run(lambda trial: 1.0, 2)
    assert states(study) == ["PRUNED", "COMPLETE"] and "warmup_ratio" in study.trials[0].user_attrs["why"]


def test_any_other_error_comes_out_and_what_is_done_stays(tmp_path):
    def objective(trial):
        if trial.number == 1:
            raise OSError("the disk is gone")
        return 1.0

    study = study_in(tmp_path)
    with pytest.raises(OSError, match="the disk is gone"):
        study.run(objective, 5)
    assert states(study) == ["COMPLETE", "FAIL"]
    assert study_in(tmp_path).run(lambda trial: 2.0, 3) == "3 of 3 trials are done"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit(143)])
def test_an_interrupt_keeps_what_is_done_and_the_trial_goes_on(tmp_path, interrupt):
    seen = []

    def objective(trial):
        seen.append((trial.number, trial.run_name, trial.attempt))
        trial.report(1, 3.0)
        if len(seen) == 2:
            raise interrupt
        return 1.0

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        study_in(tmp_path).run(objective, 3)
    study = study_in(tmp_path)
    study.run(objective, 3)
    assert seen[2] == (2, "trial-0001", 1)  # the same run, its attempt not held against it
    assert study.trials[1].params == study.trials[2].params
    assert study.trials[2].intermediate_values == {1: 3.0}
    assert study.finished == 3 and len(study.trials) == 4


def test_a_trial_that_goes_on_is_not_held_against_itself(tmp_path):
    losses = [3.0, 2.0, 1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]

    def objective(trial):
        for place in range(1, 7) if trial.number == 0 else range(7, 11):
            trial.report(place, losses[place - 1])
        if trial.number == 0:
            raise KeyboardInterrupt
        return losses[-1]

    with pytest.raises(KeyboardInterrupt):
        study_in(tmp_path).run(objective, 1)
    study = study_in(tmp_path)
    study.run(objective, 1)
    assert states(study) == ["FAIL", "COMPLETE"]
    first, then = (
        [trial.system_attrs[f"completed_rung_{rung}"] for rung in range(2)] for trial in study.study.get_trials()
    )
    assert first == then == [2.0, 0.5]  # what others are compared with


def test_others_are_compared_with_a_trial_once_however_often_it_was_begun(tmp_path):
    losses = {0: 9.0, 2: 1.0, 3: 2.0}

    def objective(trial):
        if trial.number in losses:
            trial.report(2, losses[trial.number])
        if trial.number == 0:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        study_in(tmp_path).run(objective, 3)
    study = study_in(tmp_path)
    study.run(objective, 3)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE", "PRUNED"]  # 2.0 is not in the better half of 1, 2, 9


def test_the_time_is_kept_and_the_trial_that_ran_goes_on(tmp_path):
    clock = FakeClock()

    def objective(trial):
        for place in range(1, 5):
            clock.sleep(10)
            trial.check_time()
            trial.report(place, 2.0, last=place == 4)
        return 2.0

    study = study_in(tmp_path, pruning=False, clock=clock)
    ended = study.run(objective, 10, seconds=60)
    assert "trial 1 waits for the next call: the time of the search is over" in ended
    assert states(study) == ["COMPLETE", "FAIL", "WAITING"]
    assert study.run(objective, 2, seconds=1000) == "2 of 2 trials are done"
    assert study.trials[2].user_attrs["run"] == "trial-0001"


def test_a_trial_that_cannot_end_in_time_is_not_begun_unless_it_is_the_first(tmp_path):
    clock = FakeClock()

    def objective(trial):
        trial.check_forecast(50)
        clock.sleep(50)
        return 2.0

    study = study_in(tmp_path, clock=clock)
    ended = study.run(objective, 10, seconds=80)
    assert "it would take about 50 s, and 30 s are left" in ended and study.finished == 1
    first = SearchStudy(tmp_path / "t", SPACE, TrainingConfig(), clock=clock)
    first.run(objective, 2, seconds=10)
    assert first.finished == 1


def test_a_study_about_something_else_is_refused_with_what_differs(tmp_path):
    study_in(tmp_path, about={"data": {"name": "a"}})
    with pytest.raises(ConfigError, match=r"data, name: a → b") as caught:
        study_in(tmp_path, space=SearchSpace({"learning_rate": (1e-5, 1e-2)}), about={"data": {"name": "b"}})
    assert "space, weight_decay" in str(caught.value) and "take another name=" in str(caught.value)
    with pytest.raises(ConfigError, match=r"settings, max_steps: None → 5"):
        SearchStudy(tmp_path / "s", SPACE, TrainingConfig(max_steps=5), about={"data": {"name": "a"}})
    SearchStudy(tmp_path / "s", SPACE, TrainingConfig(notes="x"), about={"data": {"name": "a"}})


def test_without_a_complete_trial_there_is_no_best(tmp_path):
    study = study_in(tmp_path)
    with pytest.raises(TrainingError, match="No trial of s is complete"):
        study.best_config()


def test_checkpoints_stay_with_the_best_trial_alone(tmp_path):
    def objective(trial):
        (tmp_path / "s" / "trials" / trial.run_name / "checkpoints").mkdir(parents=True)
        return [3.0, 1.0, 2.0][trial.number]

    study_in(tmp_path).run(objective, 3)
    kept = [path.parent.name for path in (tmp_path / "s" / "trials").glob("*/checkpoints")]
    assert kept == ["trial-0001"]


# ---- what ends processes ------------------------------------------------------------------------------------------------
def _work(folder, trials, kill_in, seconds):
    """A process of a study: trials take a moment; it kills itself in the trial of that number."""

    def objective(trial):
        trial.report(1, 5.0)
        if trial.number == kill_in:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        return 1.0 + trial.number

    SearchStudy(folder / "s", SPACE, TrainingConfig(), pruning=False).run(objective, trials)


def _process(*arguments):
    process = multiprocessing.get_context("fork").Process(target=_work, args=arguments)
    process.start()
    return process


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_loses_no_more_than_the_trial_that_ran_and_that_one_goes_on(tmp_path, caplog):
    process = _process(tmp_path, 5, 2, 0)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    study = study_in(tmp_path, pruning=False)
    assert states(study) == ["COMPLETE", "COMPLETE", "RUNNING"]
    seen = []
    with caplog.at_level(logging.WARNING):
        study.run(lambda trial: seen.append((trial.run_name, trial.attempt)) or 1.0, 5)
    assert seen == [("trial-0002", 2), ("trial-0004", 1), ("trial-0005", 1)]
    assert study.finished == 5 and study.trials[3].intermediate_values == {1: 5.0}
    assert "trial 2 lost its process" in caplog.text


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_settings_that_kill_their_process_every_time_are_given_up(tmp_path):
    for number in range(ATTEMPTS):
        _process(tmp_path, 2, number, 0).join(60)
    study = study_in(tmp_path, pruning=False)
    study.run(lambda trial: 1.0, 2)
    assert states(study) == ["FAIL"] * (ATTEMPTS - 1) + ["PRUNED", "COMPLETE"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_four_processes_share_a_study(tmp_path):
    processes = [_process(tmp_path, 24, None, 0.02) for _ in range(4)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    study = study_in(tmp_path, pruning=False)
    assert states(study) == ["COMPLETE"] * 24
    assert len({json.dumps(trial.params) for trial in study.trials}) == 24
    assert len({trial.user_attrs["worker"] for trial in study.trials}) > 1
    assert study.best.number == 0


def test_half_a_line_that_a_crash_left_is_cut_off(tmp_path, caplog):
    study_in(tmp_path).run(lambda trial: 1.0, 2)
    journal = tmp_path / "s" / JOURNAL_FILE
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    with caplog.at_level(logging.WARNING):
        study = study_in(tmp_path)
    assert "half a line" in caplog.text
    study.run(lambda trial: 1.0, 3)
    assert states(study_in(tmp_path)) == ["COMPLETE"] * 3


def test_a_study_comes_back_from_its_mirror(tmp_path):
    study = study_in(tmp_path / "here", mirror_dir=tmp_path / "mirror")
    study.run(lambda trial: 5.0 - trial.number, 3)
    again = study_in(tmp_path / "there", mirror_dir=tmp_path / "mirror")
    assert [trial.value for trial in again.trials] == [5.0, 4.0, 3.0]
    assert TrainingConfig.load(tmp_path / "there" / "s" / "best_config.json") == study.best_config()
    again.run(lambda trial: 1.0, 4)
    assert len(study_in(tmp_path / "third", mirror_dir=tmp_path / "mirror").trials) == 4


def test_a_mirror_that_fails_ends_no_search(tmp_path, monkeypatch, caplog):
    study = study_in(tmp_path, mirror_dir=tmp_path / "mirror")

    def refuse(number, finished):
        raise OSError("no space")

    monkeypatch.setattr(study._mirror, "_copy", refuse)
    with caplog.at_level(logging.WARNING):
        study.run(lambda trial: 1.0, 3)
    assert study.finished == 3 and caplog.text.count("no space") == 1


def test_optuna_is_as_loud_as_before(tmp_path):
    before = logging.getLogger("optuna").level
    study_in(tmp_path).run(lambda trial: 1.0, 1)
    assert logging.getLogger("optuna").level == before and optuna.logging.get_verbosity() == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", b"{torn"),
        ("study.json", b"[]"),
        ("study.json", b"\xff"),
        (JOURNAL_FILE, b"\xff\n"),
        (JOURNAL_FILE, b"{torn\n" * 2),
    ],
)
def test_a_damaged_study_is_named(tmp_path, name, content):
    study_in(tmp_path)
    (tmp_path / "s" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"(?s){name} is damaged .*Take another name="):
        study_in(tmp_path)
