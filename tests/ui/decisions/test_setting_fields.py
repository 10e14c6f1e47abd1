from __future__ import annotations

import dataclasses

import pytest

from utils.errors import ConfigError
from utils.training.training_config import TrainingConfig
from utils.ui.decisions.setting_fields import ELSEWHERE, advanced_fields

FIELDS = {field.name: field for field in advanced_fields()}


def test_every_setting_is_in_the_fold_or_elsewhere():
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    assert set(FIELDS) | ELSEWHERE == names and not set(FIELDS) & ELSEWHERE
    assert all(field.help for field in FIELDS.values())


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_default_comes_back_from_the_form(name):
    default = getattr(TrainingConfig(), name)
    assert FIELDS[name].meant(FIELDS[name].shown(default)) == default


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("weight_decay", " 0.1 ", 0.1),
        ("early_stopping_patience", "3", 3),
        ("early_stopping_patience", "none", None),
        ("weight_decay", "much", "much"),  # stays, and is complained about with all other problems
        ("deterministic", True, True),
        ("compile_mode", "default", "default"),
        ("notes", "<b>mine</b>", "<b>mine</b>"),
    ],
)
def test_what_is_typed_becomes_a_setting(name, typed, value):
    assert FIELDS[name].meant(typed) == value


def test_a_secret_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="looks like a Hugging Face token") as caught:
        FIELDS["notes"].meant("hf_" + "a" * 34)
    assert "a" * 34 not in str(caught.value)
