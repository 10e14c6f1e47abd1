from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks.sampling import ASSUMED_LIMIT, Sampler, loss_of, run_model
from utils.errors import CheckError, ConfigError


class Endless(m.Healthy):
    """No positions at all: any length runs."""

    def body(self, input_ids):
        return self.norm(self.token_embedding(input_ids))


class NoEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 7))

    def forward(self, input_ids):
        return self.weight[input_ids]


@pytest.mark.parametrize(
    ("build", "config", "limit", "stated"),
    [
        (m.Healthy, None, m.LIMIT, m.LIMIT),
        (lambda: m.Healthy(limit=16), None, 16, 16),
        (m.Healthy, {"max_seq_len": 20}, 20, 20),
        (m.BufferLimit, None, 12, 12),
        (m.BufferLimit, {"max_seq_len": 30}, 12, 30),
        (m.Healthy, {"max_seq_len": 2048}, m.LIMIT, 2048),
        (lambda: m.Healthy(limit=1100), {"max_seq_len": 2048}, 1100, 2048),
    ],
)
def test_the_limit_is_what_runs(build, config, limit, stated):
    sampler = Sampler.of(adapt(build(), config))
    assert (sampler.limit, sampler.stated, sampler.vocabulary) == (limit, stated, m.VOCABULARY)


def test_without_any_limit_one_is_assumed_and_said():
    model = Endless()
    del model.position_embedding
    sampler = Sampler.of(adapt(model))
    assert (sampler.limit, sampler.stated) == (ASSUMED_LIMIT, None)
    assert "assumed" in sampler.limit_source


def test_ids_are_seeded_and_legal():
    sampler = Sampler(5, 8)
    ids = sampler.ids(50, 8)
    assert ids.dtype == torch.int64
    assert set(ids.flatten().tolist()) == set(range(5))
    assert torch.equal(ids, sampler.ids(50, 8))
    assert not torch.equal(ids, sampler.ids(50, 8, seed=1))
    assert sampler.length(100) == 8


@pytest.mark.parametrize("config", [None, {"vocab_size": 5}])
def test_the_vocabulary_comes_from_the_embedding_the_config_or_the_logits(config):
    assert Sampler.of(adapt(m.Healthy(), {"vocab_size": 50})).vocabulary == m.VOCABULARY
    assert Sampler.of(adapt(NoEmbedding(), config)).vocabulary == 7, "the rows that the ids reach, config or not"


def test_an_unknown_vocabulary_is_asked_for():
    adapted = adapt(NoEmbedding())
    adapted.contract = dataclasses.replace(adapted.contract, vocab_size=None, output_size=None)
    adapted.config = dataclasses.replace(adapted.config, vocab_size=None)
    with pytest.raises(ConfigError, match=r"How many token ids NoEmbedding knows.*vocab_size"):
        Sampler.of(adapted)


def test_what_a_model_raises_is_wrapped_with_name_and_shape():
    adapted = adapt(m.Healthy())
    with pytest.raises(
        CheckError, match=r"Healthy raised IndexError on input_ids of shape \(1, 40\) \(train mode\)"
    ) as caught:
        run_model(adapted, torch.zeros((1, 40), dtype=torch.long))
    assert isinstance(caught.value.__cause__, IndexError)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_there_is_a_loss_at_any_length(length):
    loss = loss_of(adapt(m.Healthy()), Sampler(m.VOCABULARY, 32).ids(4, length))
    assert loss.dim() == 0
    assert 2 < loss.item() < 7
