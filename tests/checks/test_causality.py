"""Who may see later tokens, and who may not; how they are found is for `tests/adapters/test_causality.py`."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import causality


class Pair(nn.Module):
    """An encoder-decoder; its decoder is causal, or sees the whole target."""

    def __init__(self, causal=True):
        super().__init__()
        self.causal = causal
        self.embedding, self.places = nn.Embedding(m.VOCABULARY, m.WIDTH), nn.Embedding(m.LIMIT, m.WIDTH)
        self.body = nn.Transformer(m.WIDTH, 2, 1, 1, 2 * m.WIDTH, dropout=0.0, batch_first=True)
        self.head = nn.Linear(m.WIDTH, m.VOCABULARY)

    def forward(self, src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
        source, target = (self.embedding(ids) + self.places(torch.arange(ids.shape[1])) for ids in (src, tgt))
        future = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1]) if self.causal else None
        return self.head(self.body(source, target, tgt_mask=future))


class Classifier(m.Healthy):
    def __init__(self):
        super().__init__(causal=False)
        self.head = nn.Linear(m.WIDTH, 3)

    def forward(self, input_ids):
        return self.head(self.body(input_ids).mean(1))


def _masked(task="masked"):
    adapted = adapt(m.Healthy(causal=False))
    adapted.contract = dataclasses.replace(adapted.contract, task=task)
    return adapted


class SmallForMaskedLM(m.Healthy):
    def __init__(self):
        super().__init__(causal=False)


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (lambda: adapt(m.Healthy()), "pass", "No later token moves an earlier logit"),
        (lambda: adapt(m.Healthy(causal=False)), "warn", "sees the future"),
        (_masked, "pass", "both directions by design"),
        (lambda: adapt(SmallForMaskedLM()), "pass", "it is a SmallForMaskedLM"),
        (lambda: adapt(Pair()), "pass", "No later token moves an earlier logit"),
        (lambda: adapt(Pair(causal=False)), "warn", "causal mask to the decoder's self-attention"),
        (lambda: adapt(Classifier()), "skip", "no next token to hide"),
    ],
)
def test_the_task_says_who_may_see_later_tokens(make, status, words):
    torch.manual_seed(0)
    result = causality.check(make())
    assert result.status == status, result.summary()
    assert words in result.summary()


@pytest.mark.parametrize(("name", "build"), list(m.hugging_face()))
def test_hugging_face_models_raise_no_alarm(name, build):
    result = causality.check(adapt(build()))
    assert result.status == "pass", f"{name}\n{result.summary()}"


class Routed(m.Healthy):
    """Two experts with dropout: each draws for as many tokens as it gets, so a later token shifts earlier tokens' draws."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(m.WIDTH, m.WIDTH), nn.Dropout(0.3)) for _ in range(2))

    def body(self, input_ids):
        x = super().body(input_ids)
        y, chosen = torch.zeros_like(x), input_ids % 2
        for number, expert in enumerate(self.experts):
            y[chosen == number] = expert(x[chosen == number])
        return x + y


def test_dropout_behind_a_router_tells_nothing_of_later_tokens():
    torch.manual_seed(0)
    result = causality.check(adapt(Routed()))
    assert result.status == "pass", result.summary()


def test_a_first_look_finds_a_plain_leak_and_proves_nothing():
    from utils.checks.causality import check, first_look

    assert first_look(adapt(m.Healthy(causal=False))).status == "warn"
    assert first_look(adapt(m.Healthy())).status == "pass"
    assert check.screen is first_look
