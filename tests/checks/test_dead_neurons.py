from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from adapters import sequence_mixers as s
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import dead_neurons

UNITS = 32


class Feeding(nn.Module):
    """One hidden layer behind an activation of choice; of its 32 units the first are pushed far to one side."""

    def __init__(self, activate, pushed: int = 0, by: float = -50.0, module: bool = False) -> None:
        super().__init__()
        self.embedding, self.up = nn.Embedding(m.VOCABULARY, 16), nn.Linear(16, UNITS)
        self.down = nn.Linear(UNITS, m.VOCABULARY)
        self.act = activate if module else None
        self.activate = None if module else activate
        with torch.no_grad():
            self.up.bias[:pushed] += by

    def forward(self, input_ids):
        x = self.up(self.embedding(input_ids))
        return self.down(self.act(x) if self.act is not None else self.activate(x))


def rows_of(model: nn.Module) -> list[dict]:
    torch.manual_seed(0)
    return dead_neurons.check(adapt(model, {"max_seq_len": 32})).measured["table"]


FUNCTIONS = {
    "relu": F.relu, "torch relu": torch.relu, "method": lambda x: x.relu(), "gelu": F.gelu, "silu": F.silu,
    "in place": lambda x: F.relu(x, inplace=True),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dead_units_behind_a_function_are_counted(name):
    (row,) = rows_of(Feeding(FUNCTIONS[name], pushed=5))
    assert (row["units"], row["dead"]) == (UNITS, 5) and row["layer"].startswith("(")


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.ReLU(inplace=True)], ids=str)
def test_dead_units_behind_a_module_are_counted_once(act):
    (row,) = rows_of(Feeding(act, pushed=5, module=True))
    assert (row["layer"], row["units"], row["dead"]) == ("act", UNITS, 5)


@pytest.mark.parametrize(("act", "by"), [(torch.tanh, 50.0), (torch.tanh, -50.0), (torch.sigmoid, 50.0)])
def test_saturated_units_are_counted(act, by):
    (row,) = rows_of(Feeding(act, pushed=8, by=by))
    assert row["saturated share"] == 8 / UNITS and row["dead"] == 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Feeding(F.relu, pushed=16), "50% of (relu) are dead"),
        (lambda: Feeding(nn.Tanh(), pushed=16, module=True), "50% of act are saturated"),
    ],
)
def test_many_dead_units_are_a_warning(build, words):
    result = dead_neurons.check(adapt(build(), {"max_seq_len": 32}))
    assert result.status == "warn" and words in result.headline


def test_a_healthy_model_has_none():
    result = dead_neurons.check(adapt(m.Healthy()))
    assert result.status == "pass" and "0 of 64 units in 2 activations" in result.headline
    assert result.measured["inputs"] == 4 * 4 * 32


@pytest.mark.parametrize(
    ("build", "places"),
    [
        (lambda: s.hugging_face("gpt2", "CausalLM"), ["transformer.h.0.mlp.act", "transformer.h.1.mlp.act"]),
        (lambda: s.hugging_face("llama", "CausalLM"), ["model.layers.0.mlp.act_fn", "model.layers.1.mlp.act_fn"]),
        (lambda: s.adapted(s.PreNormEncoder), ["mixer.layers.0 (relu)", "mixer.layers.1 (relu)"]),
    ],
    ids=["GPT-2", "Llama", "encoder"],
)
def test_each_activation_is_found_once(build, places):
    assert [row["layer"] for row in dead_neurons.check(build()).measured["table"]] == places


def test_without_activations_it_is_skipped():
    assert dead_neurons.check(s.adapted(s.Recurrent)).status == "skip"
