from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from tests.training.tiny import make_tiny
from utils.adapters.model_adapter import adapt
from utils.training.engine import precision
from utils.training.engine.precision import HALF_MAX, Overflow, find_overflow, pick_precision

CUDA = torch.device("cuda")


class Gated(nn.Module):
    """A language model whose branch `name` gives large numbers at one place."""

    def __init__(self, scale=1.0, at="up"):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.norm, self.head = nn.Embedding(50, 16), nn.LayerNorm(16), nn.Linear(16, 50)
        self.up, self.gate, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale, self.at = scale, at
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, input_ids):
        self.calls += 1
        x = self.token(input_ids)
        y = self.norm(x)
        gated = self.up(y) * self.gate(y)
        x = x + self.down(gated * self.scale if self.at == "product" else gated)
        if self.at == "stream":
            x = x * self.scale  # float32 under autocast, and the norm brings it back
        x = self.norm(x)
        if self.at == "scores":
            weights = (x * self.scale) @ (x * self.scale).transpose(1, 2)
            x = x + torch.softmax(weights, -1).tril() @ x
        return self.head(x)


def gated(**arguments):
    return adapt(Gated(**arguments), {"vocab_size": 50})


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({}, None),
        ({"scale": 1e6, "at": "product"}, "down"),  # the product of a gate is what overflows in practice
        ({"scale": 1e3, "at": "scores"}, "Gated"),  # computed by the model itself, in no module of its own
        ({"scale": 1e6, "at": "stream"}, None),
    ],
)
def test_modules_that_overflow_are_named(half, arguments, where):
    found = find_overflow(gated(**arguments), half=half)
    assert found.found == (where is not None)
    assert [name for name, _ in found.modules][:1] == ([where] if where else [])
    if where is None:
        assert 0 < found.largest < HALF_MAX and "fits float16" in found.reason
    else:
        assert where in found.reason and "65504" in found.reason
        assert half or found.modules[0][1] > HALF_MAX


def test_float16_itself_agrees_with_the_estimate_where_a_scale_grows():
    """The first scale that overflows is the same by both measures, within a factor of two."""
    first = {}
    for half in (False, True):
        scales = [2.0**power for power in range(30)]
        first[half] = next(s for s in scales if find_overflow(gated(scale=s, at="product"), half=half).found)
    assert 0.5 <= first[False] / first[True] <= 2


@pytest.mark.parametrize("half", [False, True])
def test_the_model_is_left_as_it_was(half):
    adapted = gated()
    adapted.eval()
    adapted.model.up.weight.grad = torch.ones_like(adapted.model.up.weight)
    values = {name: value.clone() for name, value in adapted.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    find_overflow(adapted, half=half)
    assert not adapted.training and not adapted.model.up.training
    assert all(value.equal(values[name]) for name, value in adapted.state_dict().items())
    assert adapted.model.up.weight.grad.eq(1).all() and adapted.model.down.weight.grad is None
    assert torch.get_rng_state().equal(states[0]) and random.getstate() == states[1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapted.modules())


def test_a_sample_is_taken_as_the_data_module_gives_it():
    ids = torch.randint(300, (2, 7))
    labels = ids.clone()
    labels[:, 4:] = -100
    found = find_overflow(make_tiny(), {"input_ids": ids, "labels": labels})
    assert not found.found and found.where == "TinyTransformer"  # its tied head is a product of its own


def test_numbers_that_are_no_numbers_count_as_beyond():
    adapted = gated()
    with torch.no_grad():
        adapted.model.up.weight[0, 0] = math.nan
    assert "up" in dict(find_overflow(adapted).modules)


BAD = Overflow((("layers.3.down", 1e6),), (), 1e6, "layers.3.down", "measured in float16 on CUDA")
GOOD = Overflow((), (), 12.0, "head", "measured in float16 on CUDA")


@pytest.mark.parametrize(
    ("capability", "overflow", "expected", "asked", "word"),
    [
        ((7, 5), BAD, "32-true", 1, "layers.3.down"),
        ((7, 5), GOOD, "16-mixed", 1, "gradient scaler"),
        ((8, 0), BAD, "bf16-mixed", 0, "bfloat16"),
    ],
)
def test_precision_falls_back_to_float32_where_float16_overflows(capability, overflow, expected, asked, word):
    calls = []
    precision, why = pick_precision(CUDA, capability, lambda: calls.append(1) or overflow)
    assert precision == expected and word in why and len(calls) == asked


def test_gradients_beyond_float16_are_a_reason():
    found = Overflow((), ("head.weight",), 12.0, "head", "measured in float16 on CUDA")
    assert found.found and "gradients of head.weight are not finite" in found.reason


@pytest.mark.gpu
def test_on_a_gpu_float16_is_used():
    found = find_overflow(gated(scale=1e6, at="product").to("cuda"))
    assert found.modules[0][0] == "down" and math.isinf(found.modules[0][1])


def test_a_number_that_became_infinite_is_told_beside_the_nan_that_follows():
    model = nn.Linear(2, 2)
    watch = precision._Watch(model)
    with watch.modules(), watch:
        model(torch.tensor([[math.inf, -math.inf]]))  # inf − inf
    assert watch.largest() == {"Linear": math.inf}
