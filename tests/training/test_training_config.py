from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

import utils.training.training_config as module
from utils.errors import ConfigError
from utils.training.training_config import TrainingConfig, write_json

WRONG = [
    ("learning_rate", 0), ("learning_rate", -1e-3), ("learning_rate", 11), ("learning_rate", float("nan")), ("learning_rate", "fast"),
    ("learning_rate", True), ("batch_size", 0), ("batch_size", 2.5), ("batch_size", True), ("batch_size", None), ("epochs", 0), ("epochs", "3"),
    ("max_steps", 0), ("max_steps", -1), ("max_length", 1), ("warmup_ratio", -0.1), ("warmup_ratio", 1.1), ("weight_decay", -1),
    ("gradient_clip_norm", -1), ("gradient_clip_norm", float("inf")), ("gradient_accumulation_steps", 0), ("precision", "bf16"),
    ("precision", 16), ("random_seed", -1), ("random_seed", 2**32), ("deterministic", 1), ("deterministic", "yes"),
    ("validation_fraction", 0), ("validation_fraction", 1), ("val_every_n_steps", 0), ("save_every_n_epochs", 0), ("save_every_n_steps", 0),
    ("save_every_n_minutes", -1), ("keep_checkpoints", 1), ("run_name", ""), ("run_name", "../up"), ("run_name", "a/b"), ("run_name", ".hidden"),
    ("run_name", "x" * 121), ("run_name", "a\0b"), ("initialisation", "xavier"), ("objective", "guess"), ("notes", None), ("checkpoint_dir", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda item: str(item)[:20])
def test_each_wrong_setting_is_named(name, value):
    problems = dataclasses.replace(TrainingConfig(), **{name: value}).problems()
    assert (
        len(problems) == 1
        and problems[0].startswith(f"{name}=")
        and ("expected" in problems[0] or "Known" in problems[0])
    )


def test_the_defaults_hold():
    assert TrainingConfig().problems() == []
    TrainingConfig().validate()


def test_all_problems_are_raised_together():
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*batch_size=0.*epochs=-1.*did you mean 'bf16-mixed'"):
        TrainingConfig(batch_size=0, epochs=-1, precision="bf16-mixd").validate()


def test_unknown_names_get_the_nearest_one_together_with_wrong_values():
    with pytest.raises(
        ConfigError, match=r"(?s)2 problems.*'batchsize' is no setting; did you mean 'batch_size'.*epochs=0"
    ):
        TrainingConfig.from_dict({"batchsize": 4, "epochs": 0})


def test_save_and_load_give_the_same_settings(tmp_path):
    config = TrainingConfig(learning_rate=1e-3, max_steps=7, notes="ä <b>", run_name="r")
    assert TrainingConfig.load(config.save(tmp_path / "c.json")) == config
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_a_name_is_made_from_the_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = TrainingConfig().save()
    assert re.fullmatch(r"config_\d{8}_\d{6}\.json", path.name) and path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a list"),
        ('{"format_version": 99}', "version 99"),
        ('{"epoch": 1}', "did you mean 'epochs'"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainingConfig.load(path)
    with pytest.raises(ConfigError, match="no file"):
        TrainingConfig.load(tmp_path / "missing.json")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path / "c.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_every_setting_is_documented_and_read_somewhere():
    source = inspect.getsource(module)
    root = Path(module.__file__).parents[1]
    readers = "\n".join(p.read_text() for p in root.glob("training/**/*.py") if p.name != "training_config.py")
    for field in dataclasses.fields(TrainingConfig):
        assert re.search(rf'    {field.name}: .*\n    """', source), f"{field.name} has no docstring line"
        used = re.search(rf"(settings|config)\.{field.name}\b", readers)
        assert used or field.name == "notes", f"nothing reads {field.name}"
