from __future__ import annotations

import pytest
import torch
from torch import nn

from checks import models as m
from utils.adapters.model_adapter import adapt
from utils.checks import effective_rank as ranks
from utils.checks.effective_rank import effective_rank

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (torch.eye(5), 5.0),
        (torch.ones(5, 7), 1.0),
        (torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])), 2.0),
        (torch.zeros(4, 4), 0.0),
        (torch.diag(torch.tensor([2.0, 1.0, 1.0])), 2 * 2**0.5),  # entropy of (1/2, 1/4, 1/4) is 1.5 ln 2
    ],
)
def test_known_ranks(matrix, expected):
    assert effective_rank(matrix) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (30, 30)])
def test_equal_to_the_singular_values(shape):
    matrix = torch.randn(shape, generator=GENERATOR)
    values = torch.linalg.svdvals(matrix.double())
    shares = values / values.sum()
    assert effective_rank(matrix) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-6)


def test_a_product_of_thin_factors_keeps_their_rank():
    thin = torch.randn(200, 3, generator=GENERATOR) @ torch.randn(3, 100, generator=GENERATOR)
    assert 2 < effective_rank(thin) <= 3.01


def test_of_large_matrices_a_sample_is_taken(monkeypatch):
    monkeypatch.setattr(ranks, "LARGEST", 8)
    rows = [row for row in ranks.check(adapt(m.Healthy())).measured["table"] if row["kind"] == "weight"]
    assert max(row["effective rank"] for row in rows) <= 8
    assert all(0.4 < row["share"] <= 1 for row in rows)


def test_a_healthy_model_uses_its_dimensions():
    torch.manual_seed(0)
    result = ranks.check(adapt(m.Healthy()))
    rows = result.measured["table"]
    assert result.status == "pass" and min(row["share"] for row in rows) > 0.5
    assert sum(row["capacity"] for row in rows if row["kind"] == "weight") == pytest.approx(1)
    assert [row["name"] for row in rows if row["kind"] == "activation"] == ["blocks.0", "blocks.1"]


def test_equal_weights_are_named():
    result = ranks.check(adapt(m.EqualWeights()))
    assert result.status == "warn" and "blocks.0.mlp.0.weight" in result.headline and "rank of 1.0" in result.cause


class SameForAll(m.Healthy):
    """The second block gives every token the same."""

    def __init__(self):
        super().__init__()
        inner = self.blocks[1].forward
        self.blocks[1].forward = lambda x: inner(x).mean((0, 1), keepdim=True).expand_as(x)


class Half(m.Healthy):
    """The second block gives 0.5, whose mean is exact: nothing at all is left of it."""

    def __init__(self):
        super().__init__()
        self.blocks[1].forward = lambda x: torch.full_like(x, 0.5)


@pytest.mark.parametrize("build", [SameForAll, Half])
def test_a_layer_that_gives_the_same_for_every_token_is_named(build):
    result = ranks.check(adapt(build()))
    assert result.status == "warn" and "What 1 of 2 layers give has collapsed: blocks.1" in result.headline


def test_matrices_of_zeros_are_said_and_no_fault():
    result = ranks.check(adapt(m.ZeroHead()))
    assert result.status == "pass" and "All zero: head.weight." in result.headline


class Table(m.Healthy):
    """Decay rates as Mamba has them, equal in each row."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.arange(1.0, 17).log().repeat(16, 1))

    def body(self, input_ids):
        return super().body(input_ids) * torch.exp(-self.rates.mean())


def test_a_table_of_equal_rows_is_no_matrix():
    assert ranks.check(adapt(Table())).status == "pass"


def test_what_is_not_finite_is_left_out():
    rows = ranks.check(adapt(m.NaNWeight())).measured["table"]
    assert rows and "blocks.0.mlp.0.weight" not in [row["name"] for row in rows]
