"""Planted heads must be named right, and the figures must equal sums made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapters import sequence_mixers as s
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import attention_patterns as patterns

T, PERIOD = 16, 8


def one_hot(targets: list[int]) -> torch.Tensor:
    return F.one_hot(torch.tensor(targets).clamp(0, T - 1), T).float()


PLANTED = {  # kind → (T, T) map
    "previous token": one_hot([i - 1 for i in range(T)]),
    "next token": one_hot([i + 1 for i in range(T)]),
    "own token": torch.eye(T),
    "first-token sink": one_hot([0] * T),
    "induction": one_hot([i - PERIOD + 1 if i >= PERIOD else (3 * i + 5) % T for i in range(T)]),
    "uniform": torch.full((T, T), 1 / T),
    "collapsed": one_hot([(5 * i + 7) % T for i in range(T)]),
    "mixed": torch.cat([torch.full((T, 4), 0.25), torch.zeros(T, T - 4)], 1),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_heads_are_named(kind):
    (row,) = patterns.describe("layer", PLANTED[kind][None, None], PERIOD)
    assert row["kind"] == kind


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("uniform", torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]),
        ("collapsed", F.one_hot(torch.arange(T) // 2, T).float()),
        ("previous token", one_hot([max(0, i - 1) for i in range(T)])),
    ],
)
def test_the_first_row_of_a_causal_map_tells_nothing(kind, weights):
    (row,) = patterns.describe("layer", weights[None, None], PERIOD)
    assert row["kind"] == kind
    assert row["entropy"] == pytest.approx(1.0 if kind == "uniform" else 0.0, abs=1e-6)


def test_figures_equal_sums_by_hand():
    weights = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).square()
    weights = weights / weights.sum(-1, keepdim=True)
    rows = patterns.describe("layer", weights)
    w = weights[:, 1].double().numpy()
    distances = np.abs(np.arange(9)[:, None] - np.arange(9))
    assert rows[1]["distance"] == pytest.approx(float((w * distances).sum(-1).mean()), rel=1e-5)
    assert rows[1]["entropy"] == pytest.approx(float(-(w * np.log(w)).sum(-1).mean()) / math.log(9), rel=1e-5)
    assert rows[1]["sparsity"] == pytest.approx(float((w < 0.1 / 9).mean()), rel=1e-5)


def test_twins_are_found_by_jensen_shannon_divergence():
    one, two = (torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(seed)).softmax(-1) for seed in (0, 1))
    rows = patterns.describe("layer", torch.stack([one, two, one], 1))
    assert (rows[0]["twin"], rows[2]["twin"]) == (2, 0)
    assert rows[0]["divergence"] == pytest.approx(0, abs=1e-6)
    middle = (one + two) / 2
    bits = sum(F.kl_div(middle.log(), x, reduction="sum") for x in (one, two)) / (2 * 2 * 9) / math.log(2)
    assert rows[1]["divergence"] == pytest.approx(float(bits), rel=1e-3)
    assert patterns.describe("layer", one[:, None])[0]["twin"] is None


class Planted(nn.Module):
    """Four heads whose scores are what they are meant to be; the model never shows its weights."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(m.VOCABULARY, 16), nn.Linear(16, m.VOCABULARY)

    def scores(self, ids):
        place = torch.arange(ids.shape[1])
        past = place[:, None] >= place
        before = ids.roll(1, 1)
        before[:, 0] = -1
        followed = (before[:, None, :] == ids[:, :, None]) & past  # key j follows an earlier copy of token i
        wanted = [place[:, None] - 1 == place, torch.zeros_like(past), (place == 0).expand(past.shape)]
        stacked = torch.stack([*(w.expand(len(ids), -1, -1) for w in wanted), followed], 1)
        return torch.where(past, 30.0 * stacked, float("-inf"))

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        q = torch.zeros(len(x), 4, x.shape[1], 4)
        mixed = F.scaled_dot_product_attention(q, q, x.unflatten(-1, (4, 4)).transpose(1, 2), self.scores(input_ids))
        return self.head(x + mixed.transpose(1, 2).flatten(2))


def test_heads_planted_in_a_model_are_named():
    torch.manual_seed(0)
    result = patterns.check(adapt(Planted(), {"vocab_size": m.VOCABULARY, "max_seq_len": 64}))
    assert [row["kind"] for row in result.measured["table"]] == [
        "previous token", "uniform", "first-token sink", "induction",
    ]  # fmt: skip
    assert result.status == "pass" and "1 induction" in result.headline


class OneHot(s.Heads):
    """Scores so large that the softmax is one-hot, on no place that has a name."""

    def weigh(self, q, k, v):
        return F.scaled_dot_product_attention(1e6 * q, k, v)


def test_collapsed_on_all_heads_is_a_warning():
    result = patterns.check(s.adapted(OneHot))
    assert result.status == "warn" and "All 2 heads are collapsed" in result.headline and "1/sqrt(d)" in result.cause
    assert patterns.check(s.adapted(s.Heads)).status == "pass"


def test_without_attention_or_numbers_it_is_skipped():
    assert "No attention was found" in patterns.check(s.adapted(s.Recurrent)).headline
    broken = patterns.check(adapt(m.NaNWeight()))
    assert broken.status == "skip" and "not finite" in broken.headline


FAMILIES = {  # name → (model, attention layers)
    "GPT-2": (lambda: s.hugging_face("gpt2", "CausalLM"), 2),
    "Llama": (lambda: s.hugging_face("llama", "CausalLM"), 2),
    "BERT": (lambda: s.hugging_face("bert", "MaskedLM"), 2),
    "encoder": (lambda: s.adapted(s.PreNormEncoder), 2),
    "T5": (lambda: s.hugging_face("t5", "Seq2SeqLM", d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2), 6),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_found_in_each_family(family):
    build, layers = FAMILIES[family]
    result = patterns.check(build())
    rows = result.measured["table"]
    assert (result.status, len({row["layer"] for row in rows}), len(rows)) == ("pass", layers, 2 * layers)
    cross = [row for row in rows if row["distance"] is None]
    assert len(cross) == (4 if family == "T5" else 0), "attention to another sequence has no distance"
    assert set(result.arrays) <= {row["layer"] for row in rows}
