"""Baselines have the size that was asked for, and are what they are called."""

from __future__ import annotations

import pytest
import torch

from utils.adapters.causality import sees_future
from utils.adapters.model_adapter import adapt
from utils.training import baseline_models


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("wanted", [60_000, 300_000, 2_000_000, 30_000_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: baseline_models.gpt_of_size(n, 500, 64),
        lambda n: baseline_models.lstm_of_size(n, 500),
        lambda n: baseline_models.gpt_classifier_of_size(n, 500, 64, 3),
        lambda n: baseline_models.lstm_classifier_of_size(n, 500, 3),
    ],
    ids=["gpt", "lstm", "gpt classifier", "lstm classifier"],
)
def test_the_size_is_the_wanted_one(make, wanted: int) -> None:
    with torch.device("meta"):
        assert count(make(wanted)) == pytest.approx(wanted, rel=0.1)


def test_a_size_below_the_vocabulary_gives_the_smallest() -> None:
    assert baseline_models.gpt_of_size(10, 500, 16).token_embedding.embedding_dim == 4
    assert baseline_models.lstm_of_size(10, 500).token_embedding.embedding_dim == 1


def test_language_models_are_causal_and_classifiers_read_real_tokens_only() -> None:
    ids = torch.randint(50, (2, 12))
    for model in (baseline_models.gpt_of_size(20_000, 50, 16), baseline_models.lstm_of_size(20_000, 50)):
        assert model(ids).shape == (2, 12, 50)
        assert sees_future(adapt(model, {"vocab_size": 50, "max_seq_len": 16})).causal
    mask = torch.tensor([[1] * 6 + [0] * 6] * 2)
    lstm = baseline_models.lstm_classifier_of_size(20_000, 50, 3)
    assert torch.allclose(lstm(ids, mask), lstm(ids[:, :6]), atol=1e-6)
