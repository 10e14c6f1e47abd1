from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from checks import models as m
from checks.test_attribution import tiny_vit
from utils.adapters.model_adapter import adapt
from utils.checks import layer_similarity as similarity
from utils.checks.layers import LayerOutput


def cka(one: torch.Tensor, other: torch.Tensor, batch: int = 1) -> float:
    return float(similarity.similarities([LayerOutput("a", one, None), LayerOutput("b", other, None)], batch)[0, 1])


def drawn(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_rotations_scales_and_shifts_do_not_matter():
    x = drawn(50, 20)
    turned = x @ torch.linalg.qr(drawn(20, 20, 1))[0] * 3 + 5
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, turned) == pytest.approx(1, abs=1e-5)


def test_unrelated_layers_are_not_alike_even_when_wide():
    one, other = drawn(60, 400), drawn(60, 400, 1)
    assert abs(cka(one, other)) < 0.05

    def plain(x, y):  # Kornblith et al. 2019, equation 3 on centred features
        x, y = x - x.mean(0), y - y.mean(0)
        return float((y.t() @ x).norm() ** 2 / ((x.t() @ x).norm() * (y.t() @ y).norm()))

    assert plain(one, other) > 0.8, "the reason for the unbiased estimate"
    x = drawn(4000, 6)
    y = x @ drawn(6, 5, 2) + drawn(4000, 5, 3)
    assert cka(x, y) == pytest.approx(plain(x, y), abs=0.01)


def test_constant_layers_have_no_similarity():
    assert np.isnan(cka(drawn(20, 4), torch.full((20, 4), 0.3)))


def test_layers_with_other_numbers_of_rows_are_compared_by_example():
    x = drawn(12, 6)
    finer = x.repeat_interleave(4, 0) + 0.01 * drawn(48, 6, 1)
    assert cka(x, finer, batch=12) > 0.95


def test_neighbours_are_more_alike_than_ends():
    torch.manual_seed(0)
    result = similarity.check(adapt(m.Healthy(layers=4)))
    matrix = result.arrays["cka"]
    assert matrix.shape == (4, 4) and np.allclose(np.diag(matrix), 1) and np.allclose(matrix, matrix.T)
    assert matrix[0, 1] > matrix[0, 3]
    assert result.status == "pass" and all(row["change"] > 0.01 for row in result.measured["table"])


class Idle(m.Healthy):
    """The second block computes, and gives back its input."""

    def __init__(self):
        super().__init__(layers=3)
        inner = self.blocks[1].forward
        self.blocks[1].forward = lambda x: (inner(x), x)[1]


class Gated(m.Block):
    """A residual branch that starts closed (ReZero)."""

    def __init__(self, width, **settings):
        super().__init__(width, **settings)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.gate * self.mlp(x)


class StartsClosed(m.Healthy):
    def __init__(self):
        super().__init__()
        self.blocks[1] = Gated(m.WIDTH)


def test_a_layer_that_does_nothing_is_a_warning():
    result = similarity.check(adapt(Idle()))
    assert result.status == "warn" and "1 of 3 layers give back their input: blocks.1" in result.headline


def test_a_gate_that_starts_closed_is_a_note():
    result = similarity.check(adapt(StartsClosed()))
    assert result.status == "pass" and "blocks.1 starts as the identity" in result.headline
    assert result.measured["identity_at_start"] == ["blocks.1"]


def test_images_and_broken_numbers():
    assert similarity.check(tiny_vit()).status == "pass"
    assert similarity.check(adapt(m.NaNWeight())).status == "skip"
