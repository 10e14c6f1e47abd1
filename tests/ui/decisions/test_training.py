from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch

from tests.ui.small_setup import small_setup
from utils.errors import ConfigError
from utils.training.tracking import WandbMode
from utils.training.training_config import TrainingConfig
from utils.ui.decisions.training import GIVEN, TrainingDecision

CPU = torch.device("cpu")
ONLINE, OFFLINE = WandbMode("online", "key from a test", "k"), WandbMode("offline", "no key")


@pytest.fixture
def decide(tmp_path, tokenizer):
    """A fresh decision over the same folder, as after a restart of the kernel."""

    def made(mode=OFFLINE, asked=None, **given):
        def choose(secret=None):
            return mode if secret is not None or asked is None else asked

        return TrainingDecision(small_setup(tmp_path, tokenizer, **given), CPU, choose)

    return made


def test_a_folder_on_a_drive_that_is_not_mounted_is_told_before_the_start(decide):
    """Written to all the same, it would be a local folder that looks safe."""
    decision = decide()
    decision.place(mirror=True, mirror_folder="/content/drive/MyDrive/runs")
    (problem,) = decision.problems()
    assert "not mounted" in problem
    decision.place(mirror=False)
    assert decision.problems() == []


def test_nobody_clicking_gets_settings_that_hold_and_say_why(decide):
    decision = decide()
    config, reasons = decision.config(), decision.reasons()
    assert decision.problems() == [] and decision.preset == "standard"
    assert config.batch_size == 64 and config.checkpoint_dir == str(decision.runs)
    assert {"preset", "batch_size", "learning_rate", "epochs", "precision"} <= set(reasons) and all(reasons.values())
    assert decision.precision() == ("32-true", "CPU trains in full precision")


def test_what_was_changed_is_there_after_a_restart(decide):
    decision = decide()
    decision.change("batch_size", 5)
    decision.change("notes", "<b>mine</b>")
    again = decide()
    assert again.config().batch_size == 5 and again.config().notes == "<b>mine</b>"
    assert again.reasons()["batch_size"] == "your choice"


def test_the_settings_of_today_are_those_of_tomorrow(decide):
    """A run goes on only with the settings that it began with: nothing of them may hang on a clock."""
    decision = decide()
    before = decision.config()
    decision.measure()
    assert decision.config() == before == decide().config()


def test_a_preset_replaces_what_was_changed(decide):
    decision = decide()
    decision.change("batch_size", 5)
    decision.choose_preset("fast_dev")
    assert decision.config().max_steps == 20 and decision.config().batch_size == 4
    with pytest.raises(ConfigError, match="no preset 'best'"):
        decision.choose_preset("best")


def test_whoever_counts_epochs_is_not_cut_off_by_steps(decide):
    decision = decide()
    decision.choose_preset("fast_dev")
    decision.change("epochs", 2)
    assert (decision.config().epochs, decision.config().max_steps) == (2, None)


def test_settings_that_were_passed_are_taken_as_they_are(decide):
    decision = decide(training_config=TrainingConfig(batch_size=3, max_steps=9))
    assert decision.preset == GIVEN
    assert (decision.config().batch_size, decision.config().max_steps) == (3, 9)
    decision.choose_preset("standard")
    assert decision.config().batch_size == 64
    decision.choose_preset(GIVEN)
    assert decision.config().batch_size == 3


def test_all_problems_are_told_at_once_and_nothing_is_forecast(decide):
    decision = decide()
    decision.measure()
    decision.change("learning_rate", -1.0)
    decision.change("label_smoothing", "much")
    problems = decision.problems()
    assert len(problems) == 2 and "learning_rate" in problems[0] and "label_smoothing" in problems[1]
    assert decision.forecast() is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("precision", "16-mixed", "needs a CUDA device"), ("vocab_size", 7, "300 embedding rows")],
)
def test_what_only_model_or_machine_refuse_is_told_before_the_start(decide, name, value, words):
    decision = decide()
    decision.change(name, value)
    assert words in " ".join(decision.problems())


def test_an_unknown_setting_is_refused(decide):
    with pytest.raises(ConfigError, match="no setting 'speed'"):
        decide().change("speed", 3)


def test_the_forecast_follows_every_move_within_200_ms(decide):
    decision = decide()
    assert decision.to_measure and decision.forecast() is None
    decision.measure()
    assert not decision.to_measure
    minutes, slowest = [], 0.0
    for epochs in (2, 4, 8):
        begun = time.process_time()
        decision.change("epochs", epochs)
        minutes.append(decision.forecast().minutes)
        slowest = max(slowest, time.process_time() - begun)
    assert minutes[0] < minutes[1] < minutes[2] and slowest < 0.2


@pytest.mark.parametrize(
    ("mirror", "form", "folder", "problem"),
    [
        (None, {}, None, False),
        ("copies", {}, "copies", False),  # a folder that is known is used
        ("copies", {"mirror": False}, None, False),
        (None, {"mirror": True, "mirror_folder": "mine"}, "mine", False),
        ("copies", {"mirror_folder": "mine"}, "mine", False),
        (None, {"mirror": True}, None, True),
    ],
)
def test_checkpoints_are_copied_where_that_is_wanted(decide, tmp_path, mirror, form, folder, problem):
    decision = decide(mirror=None if mirror is None else tmp_path / mirror)
    decision.place(**{key: str(tmp_path / value) if key == "mirror_folder" else value for key, value in form.items()})
    assert decision.config().mirror_dir == (None if folder is None else str(tmp_path / folder))
    assert bool(decision.problems()) == problem


@pytest.mark.parametrize(("mode", "project"), [(ONLINE, "mine"), (OFFLINE, None)])
def test_weights_and_biases_only_where_a_key_is(decide, mode, project):
    decision = decide(mode)
    decision.place(wandb=True, wandb_project="mine")
    assert decision.config().wandb_project == project


def test_colabs_secrets_are_asked_only_when_it_is_wanted(decide):
    decision = decide(OFFLINE, asked=ONLINE)
    decision.place(wandb=True)
    assert decision.config().wandb_project is None
    assert decision.ask_wandb().mode == "online" and decision.config().wandb_project == "transformer-builder"


def test_the_file_of_the_state_holds_no_key(decide, tmp_path):
    decision = decide(ONLINE)
    decision.place(wandb=True)
    kept = json.loads((tmp_path / "wizard" / "wizard.json").read_text())
    assert kept["forms"]["training"] == dataclasses.asdict(decision.form) and "k" not in kept["forms"]["training"]
