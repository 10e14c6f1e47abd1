from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.tiny import make_tiny
from utils.adapters.causality import sees_future
from utils.tokenization.packing import PackedBlocks
from utils.training import forecast
from utils.training.forecast import Cost, measure, steps_within
from utils.training.training_config import TrainingConfig

BLOCKS = PackedBlocks(np.random.default_rng(0).integers(0, 300, (12, 16)))


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, 50),
        ({"validations": 5, "validation_blocks": 9}, 45),  # 5 passes of 3 batches of 4 blocks, 1 / 15 s each
        ({"most": 20}, 20),
        ({"validations": 500, "validation_blocks": 9}, 1),
    ],
)
def test_steps_fill_what_validation_leaves(arguments, steps):
    found, why = steps_within(make_tiny(), 4, 16, 10.0, **{"most": 1000, **arguments}, cost=Cost(0.2, 1 / 15))
    assert found == steps and "200 ms" in why
    assert ("validations about" in why) == ("validations" in arguments)


def test_the_model_that_is_trained_is_timed_and_none_is_changed(monkeypatch):
    model, timed = make_tiny(causal=False), []
    original = forecast.copy.deepcopy
    monkeypatch.setattr(forecast.copy, "deepcopy", lambda item, *rest: timed.append(item) or original(item, *rest))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    cost = measure(model, 2, 8)
    assert cost.step > 0 and cost.validation_batch > 0
    assert sees_future(timed[-1]).causal and not sees_future(model).causal
    assert all(model.state_dict()[name].equal(value) for name, value in weights.items())
    assert all(p.grad is None for p in model.parameters())


def test_the_median_is_taken_after_the_warm_up():
    ticks = iter(range(1000))
    cost = measure(make_tiny(), 2, 8, clock=lambda: float(next(ticks)), device=torch.device("cpu"))
    assert cost == Cost(1.0, 1.0)


# ---- the whole forecast ----------------------------------------------------------------------------------------------
def make(config=None, validation=BLOCKS, **arguments):
    config = config or TrainingConfig(batch_size=2, epochs=3)
    arguments = {"cost": Cost(0.5, 0.25), "free": lambda folder: 1e12, **arguments}
    return forecast.forecast(make_tiny(), config, BLOCKS, validation, **arguments)


@pytest.mark.parametrize(
    ("settings", "validated", "steps", "per_epoch", "seconds"),
    [
        ({"epochs": 3}, False, 18, 6, 9.0),
        ({"epochs": 3}, True, 18, 6, 9.0 + 4 * 6 * 0.25),  # before the first step and after each epoch
        ({"epochs": 3, "val_every_n_steps": 5}, True, 18, 6, 9.0 + 5 * 6 * 0.25),  # 0, 5, 10, 15 and 18
        ({"max_steps": 4, "gradient_accumulation_steps": 3}, False, 4, 2, 2.0),
    ],
)
def test_time_follows_steps_and_validations(settings, validated, steps, per_epoch, seconds):
    found = make(TrainingConfig(batch_size=2, **settings), BLOCKS if validated else None)
    assert (found.steps, found.steps_per_epoch) == (steps, per_epoch)
    assert 60 * found.minutes == pytest.approx(seconds)
    assert 60 * found.minutes_per_epoch == pytest.approx(seconds * per_epoch / steps)


def test_what_does_not_fit_is_said_with_what_to_change():
    roomy = make()
    assert roomy.fits and "Forecast: fits" in roomy.summary() and roomy.mirror_free is None
    settings = TrainingConfig(batch_size=2, mirror_dir="/drive", keep_checkpoints=3)
    tight = make(settings, free=lambda folder: 2e5 if folder == Path("/drive") else 1e12)
    assert tight.generations == 5  # three, the best one, and the one that is being written
    assert (
        not tight.fits
        and "on the mirror, 200 kB are free" in tight.problems[0]
        and "keep_checkpoints" in tight.summary()
    )
    assert "does not fit" in tight._repr_html_()
    assert "fit_batch_to_memory" in dataclasses.replace(roomy, memory_available=1.0).problems[0]


def test_checkpoints_are_as_large_as_said(tmp_path):
    from utils.training.engine.trainer import Trainer

    model = make_tiny(width=64)
    said = forecast.checkpoint_bytes(model, steps=6)
    config = TrainingConfig(batch_size=2, epochs=1, run_name="r")
    path = Trainer(model, None, config, workspace=tmp_path).train(BLOCKS)["checkpoint_path"]
    assert Path(path).stat().st_size == pytest.approx(said, rel=0.1)
    shared = sum(p.numel() * 4 for p in model.parameters())
    assert forecast.checkpoint_bytes(model, ema=True) - forecast.checkpoint_bytes(model) == shared


def test_the_real_batches_are_timed_and_the_model_is_left_alone():
    model = make_tiny()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    found = forecast.forecast(model, TrainingConfig(batch_size=2, gradient_accumulation_steps=2), BLOCKS)
    assert found.cost.step > 0 and found.memory_bytes > 4 * 4 * model.num_parameters() and found.local_free > 0
    assert all(model.state_dict()[name].equal(value) for name, value in values.items())
    assert all(p.grad is None for p in model.parameters())


def test_accumulation_adds_passes_and_no_updates():
    ticks = iter(range(1000))
    batch = {"input_ids": torch.zeros((2, 8), dtype=torch.long)}
    cost = forecast.measure_batch(make_tiny(), batch, 4, clock=lambda: float(next(ticks)), device=torch.device("cpu"))
    assert cost == Cost(4.0, 1.0, 1.0)


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    assert forecast.free_bytes(tmp_path / "not" / "there") == forecast.free_bytes(tmp_path) > 0
