from __future__ import annotations

import time

import pytest
import torch

from tests.training.tiny import make_tiny
from utils.training import forecast_scaling
from utils.training.engine.memory import MemoryEstimate
from utils.training.forecast import Cost
from utils.training.forecast_scaling import Extent, MeasuredModel, Point, measure_model, scaled
from utils.training.training_config import TrainingConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("sizes", "values", "wanted", "value"),
    [
        ([(1, 8)], [2.0], (4, 16), 16.0),  # per token
        ([(1, 8), (1, 16)], [2.0, 3.0], (2, 16), 5.0),  # 1 + 1/8 per token
        ([(1, 8), (1, 16), (4, 16)], [2.0, 3.0, 9.0], (8, 16), 17.0),
        (
            [(1, 8), (1, 16), (4, 16)],
            [8 + 0.64, 16 + 2.56, 64 + 10.24],
            (2, 16),
            32 + 5.12,
        ),  # 1 per token, 0.01 per pair
        ([(1, 8), (1, 16)], [3.0, 2.0], (1, 16), 2.308),  # noise: growing never costs less than nothing
    ],
)
def test_a_cost_is_followed_to_other_sizes(sizes, values, wanted, value):
    assert scaled(sizes, values, wanted) == pytest.approx(value, rel=0.03)


def measured(**changes):
    points = (
        Point(1, 8, Cost(0.1 + 0.08, 0.01, 0.08)),  # one micro-batch: 0.02 for the optimizer and 0.01 per token
        Point(1, 16, Cost(0.18 + 0.16, 0.02, 0.16)),
    )
    memory = MemoryEstimate({"parameters": 100.0, "gradients": 100.0}, 50.0, 7.0)
    return MeasuredModel(make_tiny(), points, memory, 16, "32-true", CPU, **changes)


@pytest.mark.parametrize(
    ("settings", "steps", "step_seconds", "memory"),
    [
        ({"batch_size": 4}, 25, 0.02 + 0.64, 207 + 200),
        ({"batch_size": 4, "epochs": 3}, 75, 0.66, 407),
        ({"batch_size": 4, "max_length": 8}, 50, 0.02 + 0.32, 207 + 100),
        ({"batch_size": 2, "gradient_accumulation_steps": 2}, 25, 0.02 + 0.64, 207 + 100),
        ({"batch_size": 4, "max_steps": 7}, 7, 0.66, 407),
        ({"batch_size": 4, "ema_decay": 0.9}, 25, 0.66, 507),
        ({"batch_size": 4, "gradient_checkpointing": True}, 25, 0.66 * 4 / 3, 407),
    ],
)
def test_the_forecast_follows_the_settings(tmp_path, settings, steps, step_seconds, memory):
    found = measured().forecast(TrainingConfig(**settings), Extent(1600.0, 160.0), tmp_path)
    assert (found.steps, found.memory_bytes) == (steps, memory)
    assert found.cost.step == pytest.approx(step_seconds)
    assert found.validation_seconds > 0 and found.device == "CPU"


def test_validations_cost_their_batches(tmp_path):
    config = TrainingConfig(batch_size=4, epochs=2)  # before the first step and after each epoch: 3 times 3 batches
    found = measured().forecast(config, Extent(1600.0, 160.0), tmp_path)
    assert found.validation_seconds == pytest.approx(3 * 3 * 0.08)


def test_labelled_examples_are_counted_and_not_cut_into_blocks():
    assert Extent(100, 20, packed=False).samples(16) == (100, 20)
    assert Extent(100, 20).samples(16) == (6, 1)
    assert Extent(3, 0).samples(16) == (1, 0)  # too little text still makes one block


def test_each_move_is_arithmetic(tmp_path):
    model, config = measured(), TrainingConfig(batch_size=4)
    begun = time.process_time()
    for batch in range(1, 21):
        config.batch_size = batch
        model.forecast(config, Extent(1e9, 1e7), tmp_path)
    assert (time.process_time() - begun) / 20 < 0.2


def test_a_real_model_is_measured_and_left_as_it_was():
    model, told = make_tiny(), []
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure_model(model, 4, device=CPU, progress=lambda done, total, note: told.append((done, total)))
    assert [(point.batch_size, point.length) for point in found.points] == [(1, 8), (1, 16), (4, 16)]
    assert all(point.step > 0 and point.further > 0 for point in found.points)
    assert told[0] == (0, 3) and told[-1] == (3, 3)
    assert all(model.state_dict()[name].equal(value) for name, value in weights.items())


def test_what_takes_too_long_is_not_measured(monkeypatch):
    monkeypatch.setattr(forecast_scaling, "measure_batch", lambda *_, **__: Cost(4.0, 1.0, 1.0))
    found = measure_model(make_tiny(), 64, device=CPU, seconds=45.0)
    sizes = [(point.batch_size, point.length) for point in found.points]
    assert sizes[0] == (1, 8) and sizes[-1][0] < 64


def test_memory_that_ends_while_measuring_ends_the_measuring(monkeypatch):
    costs = iter([Cost(0.02, 0.01, 0.01)])

    def measure(*_, **__):
        found = next(costs, None)
        if found is None:
            raise RuntimeError("CUDA out of memory")
        return found

    monkeypatch.setattr(forecast_scaling, "measure_batch", measure)
    assert len(measure_model(make_tiny(), 4, device=CPU).points) == 1
