from __future__ import annotations

import pytest
import torch

from tests.training.tiny import make_tiny
from utils.adapters.causality import sees_future
from utils.training import forecast
from utils.training.forecast import Cost, measure, steps_within


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
