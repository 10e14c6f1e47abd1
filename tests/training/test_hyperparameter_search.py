"""A search from end to end: a tiny model, the real engine, few steps."""

from __future__ import annotations

import json
import logging
import math
import re

import pytest
import torch

from tests.training.tiny import TEXT, make_tiny
from utils.errors import ConfigError, MissingPackageError, TrainingError
from utils.test_functions import test_hyperparameter_search as documented
from utils.tokenization.bpe_trainer import FastBPETrainer
from utils.training.engine.checkpoint import CheckpointStore
from utils.training.hyperparameter_search import search
from utils.training.search_engine import TrainingObjective
from utils.training.search_space import SearchSpace
from utils.training.search_study import PLACES
from utils.training.search_trial import RunningTrial, TimeUpError, UnfitError
from utils.training.training_config import TrainingConfig
from utils.training.training_core import train

TEXTS = [TEXT[begin : begin + 300] for begin in range(0, len(TEXT), 300)]
SPACE = {"learning_rate": (1e-4, 3e-2), "batch_size": [2, 4]}
SETTINGS = {"max_steps": 20, "batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tokenizer():
    return FastBPETrainer.train_on_dataset([TEXT], 300)


def searched(folder, tokenizer, **arguments):
    arguments = {
        "trials": 2,
        "workspace": folder,
        "progress": False,
        "range_test": False,
        "tokenizer": tokenizer,
        **arguments,
    }
    return search(make_tiny(), TEXTS, SPACE, SETTINGS, **arguments)


def test_two_trials_from_end_to_end(tmp_path, tokenizer):
    model, notes = make_tiny(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = search(
        model, TEXTS, SPACE, SETTINGS, trials=2, workspace=tmp_path, tokenizer=tokenizer,
        progress=lambda done, total, note="": notes.append((done, total, note)),
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "the model is left as it was"
    )
    table = found.trials
    assert list(table["state"].isin(["complete", "pruned"])) == [True, True] and table["state"][0] == "complete"
    assert "range test" in table["why"][0] and table["batch_size"][0] == 4
    assert found.best_value == table["loss"].min() < math.log(300)
    assert any("range test: rate" in note for _, _, note in notes) and notes[-1][:2] == (2, 2)
    run = found.folder / "trials" / "trial-0000"
    assert {"config.json", "metrics.csv", "run.json", "manifest.json"} <= {path.name for path in run.iterdir()}
    assert TrainingConfig.load(run / "config.json").val_every_n_steps == SETTINGS["max_steps"] // PLACES
    assert (found.folder / "trials.csv").is_file()
    assert (
        f"Trial {found.study.best.number} is the best" in found.summary() and "learning_rate: 0.01 →" in found.summary()
    )
    assert "<table" in found._repr_html_()
    best = TrainingConfig.load(found.folder / "best_config.json")
    assert best == found.best_config and best.max_steps == 20 and best.run_name is None
    result = train(make_tiny(), TEXTS, best, tokenizer=tokenizer, workspace=tmp_path, progress=False)
    assert result["val_loss_history"][-1] == pytest.approx(
        found.best_value, rel=1e-5
    )  # another rhythm of validations only


def test_the_page_needs_no_network(tmp_path, tokenizer):
    found = searched(tmp_path, tokenizer)
    page = found.save_html().read_text("utf-8")
    assert (
        page.count("Plotly.newPlot(") == 3 and "default-src 'none'" in page
    )  # the browser itself refuses what is outside
    assert not re.search(
        r"<(script|link|img|iframe)[^>]*(src|href)=", re.sub(r"(?s)(<script[^>]*>).*?</script>", r"\1", page)
    )
    assert "it needs 4 complete trials with different losses" in page and "trial-0001" in page
    assert found.importances == {}


def test_the_documented_function_gives_a_dict(tmp_path, tokenizer):
    found = documented(
        make_tiny, None, TEXTS, 1, {"learning_rate": (1e-3, 1e-2)}, {"max_steps": 4},
        workspace=tmp_path, progress=False, range_test=False, tokenizer=tokenizer,
    )  # fmt: skip
    assert set(found["best_params"]) == {"learning_rate"} and found["n_trials"] == len(found["trials"]) == 1
    assert found["best_config"].learning_rate == found["best_params"]["learning_rate"]
    assert documented.__test__ is False


def test_the_same_call_goes_on_and_another_model_is_refused(tmp_path, tokenizer):
    first = searched(tmp_path, tokenizer, trials=1)
    again = searched(tmp_path, tokenizer, trials=1)
    assert again.best_value == first.best_value and len(again.trials) == 1
    with pytest.raises(ConfigError, match=r"(?s)model, weights: .*take another name="):
        search(make_tiny(seed=1), TEXTS, SPACE, SETTINGS, workspace=tmp_path, progress=False, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"trials": 0}, "trials= is a whole number of 1 or more"),
        ({"seconds": -1}, "seconds= is a positive number"),
        ({"name": "a/b"}, "expected a folder name"),
    ],
)
def test_wrong_arguments_say_what_was_expected(tmp_path, tokenizer, arguments, words):
    with pytest.raises(ConfigError, match=words):
        searched(tmp_path, tokenizer, **arguments)


def test_without_optuna_the_extra_is_named(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("utils._extras.is_installed", lambda package: package != "optuna")
    with pytest.raises(MissingPackageError, match=r"Hyper-parameter search needs the package 'optuna'.*\[search\]"):
        searched(tmp_path, tokenizer)


# ---- one trial on the engine --------------------------------------------------------------------------------------------
def running(settings=None, **arguments):
    return RunningTrial(
        0, "trial-0000", TrainingConfig(**{**SETTINGS, **(settings or {}), "run_name": "trial-0000"}), **arguments
    )


def objective(folder, tokenizer):
    return TrainingObjective(make_tiny(), TEXTS, tokenizer, None, folder)


def test_a_trial_whose_time_is_over_is_saved_and_goes_on_to_the_same_loss(tmp_path, tokenizer):
    whole = objective(tmp_path / "whole", tokenizer)(running())
    times = iter(range(10**6))
    with pytest.raises(TimeUpError, match="the time of the search is over"):
        objective(tmp_path / "parts", tokenizer)(running(deadline=12, clock=lambda: next(times)))
    run = tmp_path / "parts" / "trial-0000"
    run_id = json.loads((run / "run.json").read_text("utf-8"))["run_id"]
    newest = CheckpointStore(run / "checkpoints", run_id).newest()
    assert newest is not None and 0 < newest.step < SETTINGS["max_steps"]
    reported = []
    again = running(reports=lambda place, loss: reported.append(place) or True)
    assert objective(tmp_path / "parts", tokenizer)(again) == whole
    assert reported[-1] == PLACES and reported[0] > 1


def test_a_forecast_that_does_not_fit_ends_a_trial_before_its_first_step(tmp_path, tokenizer):
    trial = running(deadline=0.001, anything_done=True, clock=lambda: 0.0)
    with pytest.raises(TimeUpError, match=r"it would take about \d+ s, and 0 s are left"):
        objective(tmp_path, tokenizer)(trial)
    assert not list((tmp_path / "trial-0000" / "checkpoints").glob("*.ckpt"))


def test_a_trial_is_told_at_the_same_places_whatever_its_steps(tmp_path, tokenizer):
    places = {}
    for name, settings in (("few", {"max_steps": 10}), ("many", {"max_steps": 20})):
        seen = places.setdefault(name, [])
        objective(tmp_path / name, tokenizer)(
            running(settings, reports=lambda place, loss, seen=seen: seen.append(place) or True)
        )
    assert places["few"] == places["many"] == list(range(1, PLACES + 1))


def test_memory_that_does_not_suffice_makes_settings_unfit(tmp_path, tokenizer, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("utils.training.search_engine.TrialCoordinator.run", full)
    with pytest.raises(UnfitError, match="does not fit into memory"):
        objective(tmp_path, tokenizer)(running())


def test_data_without_a_validation_part_cannot_be_searched(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("utils.training.training_core.TrainingCoordinator._parts", lambda self, notes: ([TEXT], None))
    with pytest.raises(ConfigError, match="have no validation part"):
        objective(tmp_path, tokenizer)(running())


def test_a_range_test_that_finds_nothing_ends_no_search(tmp_path, tokenizer, monkeypatch, caplog):
    def nothing(*positional, **named):
        raise TrainingError("The range test saw 0 finite losses")

    monkeypatch.setattr("utils.training.hyperparameter_search.rate_range_test", nothing)
    with caplog.at_level(logging.WARNING):
        found = searched(tmp_path, tokenizer, trials=1, range_test=True)
    assert "takes the learning rate of the settings: The range test saw" in caplog.text
    assert found.best_params == {"learning_rate": 1e-2, "batch_size": 4}


def test_a_space_may_come_ready(tmp_path, tokenizer):
    found = search(
        make_tiny(), TEXTS, SearchSpace({"weight_decay": (1e-3, 0.1)}), {**SETTINGS, "max_steps": 2},
        trials=1, workspace=tmp_path, progress=False, tokenizer=tokenizer,
    )  # fmt: skip
    assert found.best_params == {"weight_decay": 0.01}
