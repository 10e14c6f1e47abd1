from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from utils.adapters.snapshot import left_as_it_was


class Careless(nn.Module):
    """Changes one thing of each kind at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(2))
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("unset", torch.full((2,), float("nan")))
        self.cache, self.generator = torch.zeros(3), torch.Generator().manual_seed(1)
        self.facts, self.later = {"deep": {"counts": [0]}, "tensors": [torch.zeros(2)]}, None

    def forward(self) -> None:
        self.running = torch.ones(5)
        self.cache[0] = 3
        torch.rand(1, generator=self.generator)
        self.facts["deep"]["counts"][0] += 1
        self.facts["tensors"][0] += 1
        self.later, self.new = nn.Linear(2, 2), 3
        self.scale.data.mul_(2)
        self.register_buffer("late", torch.ones(1), persistent=False)
        self.linear.weight = nn.Parameter(torch.zeros(3, 3))
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - the global state is what must come back


def _states(model: Careless) -> list[object]:
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what must come back
    return [random.getstate(), numpy_state, torch.get_rng_state().tolist(), model.generator.get_state().tolist()]


def test_everything_is_put_back() -> None:
    model = Careless()
    model.linear.eval()
    keys, weight = list(model.state_dict()), model.linear.weight
    before = _states(model)
    with left_as_it_was(model):
        assert not model.training
        model()
    assert list(model.state_dict()) == keys and model.linear.weight is weight and model.later is None
    assert model.running.tolist() == [0, 0] and model.cache.tolist() == [0, 0, 0] and model.scale.tolist() == [1, 1]
    assert model.facts["deep"] == {"counts": [0]} and model.facts["tensors"][0].tolist() == [0, 0]
    assert not hasattr(model, "late") and not hasattr(model, "new")
    assert model.training and not model.linear.training
    assert _states(model) == before


def test_modes_are_set_without_train_and_eval() -> None:
    class Merging(nn.Linear):
        """Merges weights when it is told to evaluate, as adapters of weights do."""

        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("nobody may call this")

    model = Merging(2, 2)
    with left_as_it_was(model):
        assert not model.training
    assert model.training


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(1, 2))])
def test_compiled_modules_keep_their_mode(make) -> None:
    model = make(nn.Linear(2, 2))
    with left_as_it_was(model):
        assert not model.training
    assert model.training
