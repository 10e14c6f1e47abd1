from __future__ import annotations

import pytest

from utils.training.presets import PRESETS
from utils.training.training_config import TrainingConfig
from utils.ui.decisions.suggestions import PATIENCE_MINUTES, Situation, suggest, suggest_end, suggest_preset


@pytest.mark.parametrize(
    ("task", "parameters", "preset"),
    [
        ("lm", 3_000_000, "standard"),
        ("lm", 124_000_000, "large"),
        ("masked", 3_000_000, "standard"),
        ("classification", 300_000_000, "classification"),
        ("vision", 1000, "vision"),
    ],
)
def test_the_preset_follows_task_and_size(task, parameters, preset):
    name, why = suggest_preset(Situation(task, parameters, 128))
    assert name == preset and why


@pytest.mark.parametrize(
    ("situation", "batch", "rate"),
    [
        (Situation("lm", 3_000_000, 256), 16, 1e-3),
        (Situation("lm", 3_000_000, 256, "cuda"), 64, 1e-3),
        (Situation("lm", 85_000_000, 1024), 4, 7e-4),
        (Situation("lm", 7_000, 16), 64, 2e-3),  # never more samples than a screenful
        (Situation("lm", 100, 100_000), 1, 2e-3),
    ],
)
def test_batch_and_rate_follow_length_machine_and_size(situation, batch, rate):
    found = suggest(situation)
    assert (found.settings["batch_size"], found.settings["learning_rate"]) == (batch, rate)
    assert set(found.settings) <= set(found.reasons)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("task", ["lm", "classification", "vision", "seq2seq"])
def test_every_suggestion_holds(name, task):
    found = suggest(Situation(task, 5_000_000, 64), name)
    assert TrainingConfig.preset(found.preset, **found.settings).problems() == []
    assert found.preset == name


def test_a_trial_keeps_its_own_small_numbers():
    assert suggest(Situation("lm", 5_000_000, 64), "fast_dev").settings == {}


def test_another_preset_is_told_as_the_persons_choice():
    assert "your choice (standard would fit" in suggest(Situation("lm", 5_000_000, 64), "large").reasons["preset"]


MINUTE = 3e10 * 60 / 6
"""Parameters times tokens of one minute on a CPU."""


@pytest.mark.parametrize(
    ("minutes_per_epoch", "end"),
    [
        (0.5, {"epochs": 10}),
        (4, {"epochs": 5}),  # as many validations as epochs
        (8, {"epochs": 2, "val_every_n_steps": 400}),
        (40, {"epochs": 1, "max_steps": 500, "val_every_n_steps": 100}),
    ],
)
def test_a_first_training_ends_within_the_patience(minutes_per_epoch, end):
    assert PATIENCE_MINUTES["cpu"] == 20
    tokens = minutes_per_epoch * MINUTE / 1_000_000
    found, why = suggest_end(Situation("lm", 1_000_000, 64), 10, tokens, 1000)
    assert found == end and why
    assert TrainingConfig(**found).problems() == []
