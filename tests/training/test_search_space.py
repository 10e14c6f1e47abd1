from __future__ import annotations

import dataclasses

import pytest

from utils.errors import ConfigError
from utils.training.search_space import NOT_SEARCHED, Choices, Range, SearchSpace, searchable
from utils.training.training_config import TrainingConfig


def test_rates_are_searched_on_a_log_scale_and_whole_numbers_stay_whole():
    space = SearchSpace(
        {
            "learning_rate": (1e-5, 1e-2),
            "batch_size": (4, 32),
            "warmup_ratio": (0, 0.3),
            "precision": ["auto", "32-true"],
        }
    )
    assert space.parts == {
        "learning_rate": Range(1e-5, 1e-2, True),
        "batch_size": Range(4, 32, True),
        "warmup_ratio": Range(0.0, 0.3, False),
        "precision": Choices(("auto", "32-true")),
    }
    assert isinstance(space.parts["batch_size"].low, int) and isinstance(space.parts["warmup_ratio"].low, float)
    assert "learning_rate: 1e-05 to 0.01 (log scale)" in space.summary()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"lr": (1e-5, 1e-2)}, r"'lr' is no setting that can be searched; did you mean 'learning_rate'"),
        ({"max_steps": (10, 100)}, r"max_steps cannot be searched: it is the budget of a trial"),
        ({"d_model": [64, 128]}, r"d_model cannot be searched: it describes the model"),
        ({"learning_rate": (1e-2, 1e-5)}, r"from a lower to a higher number; got 0.01 to 1e-05"),
        ({"learning_rate": 1e-3}, r"learning_rate=0.001: expected a range \(low, high\) or a list"),
        ({"learning_rate": (1e-5, 20.0)}, r"learning_rate=20.0: expected a number above 0 and at most 10"),
        ({"learning_rate": []}, r"expected a range"),
        ({"batch_size": (4.0, 8.5)}, r"batch_size is a whole number; got a range from 4.0 to 8.5"),
        ({"precision": ["fp16"]}, r"precision='fp16' is unknown; did you mean '16-mixed'"),
        ({"precision": (1, 2)}, r"precision has no range"),
        ({"gradient_checkpointing": (0, 1)}, r"gradient_checkpointing has no range"),
        ({"batch_size": [4, 4]}, r"a choice is named twice"),
        ({"weight_decay": Range(0.0, 0.1, log=True)}, r"a log scale begins above 0; got 0.0 to 0.1"),
        ({}, r"A search space maps settings to values"),
        ([("learning_rate", 1)], r"A search space maps settings to values"),
        ({"lr": (1, 2), "epochs": (1, 2)}, r"2 problems in the search space"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_expected(space, words):
    with pytest.raises(ConfigError, match=words):
        SearchSpace(space)


def test_every_setting_is_searchable_or_says_why_not():
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert set(NOT_SEARCHED) <= names and set(searchable()) == names - set(NOT_SEARCHED)
    assert {"learning_rate", "batch_size", "weight_decay", "label_smoothing", "ema_decay"} <= set(searchable())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("learning_rate=1e-5..1e-2", Range(1e-5, 1e-2, True)),
        ("--learning-rate=1e-5..1e-2:linear", Range(1e-5, 1e-2, False)),
        ("batch_size=4,8,16", Choices((4, 8, 16))),
        ("learning_rate_schedule=cosine, linear", Choices(("cosine", "linear"))),
        ("compile_mode=off,default", Choices(("off", "default"))),
        ("ema_decay=none,0.99", Choices((None, 0.99))),
        ("gradient_checkpointing=true,false", Choices((True, False))),
    ],
)
def test_a_command_line_spells_a_space(text, part):
    assert list(SearchSpace.from_texts([text]).parts.values()) == [part]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rate", "expected NAME=LOW"),
        ("learning_rate=1..2:cubic", "log or linear; got 'cubic'"),
        ("learning_rate=a..b", "lower to a higher number"),
    ],
)
def test_a_text_that_spells_none_says_how_to(text, words):
    with pytest.raises(ConfigError, match=words):
        SearchSpace.from_texts([text])


def test_a_setting_has_its_values_once():
    with pytest.raises(ConfigError, match="names batch_size twice"):
        SearchSpace.from_texts(["batch_size=4,8", "learning_rate=1e-4..1e-3", "batch-size=16"])


def test_the_start_lies_in_the_space():
    space = SearchSpace({"learning_rate": (1e-5, 1e-3), "batch_size": [4, 16], "warmup_ratio": (0.0, 0.3)})
    config = TrainingConfig(learning_rate=5e-3, batch_size=8)
    assert space.start(config) == {
        "learning_rate": 1e-3,
        "warmup_ratio": 0.1,
    }  # 8 is none of the choices: TPE's to propose
    assert space.start(config, learning_rate=2e-4)["learning_rate"] == 2e-4


def test_values_that_do_not_hold_together_are_refused():
    space = SearchSpace({"warmup_ratio": (0.0, 0.9)})
    with pytest.raises(ConfigError, match="warmup_ratio"):
        space.settings(TrainingConfig(), {"warmup_ratio": 1.5})
